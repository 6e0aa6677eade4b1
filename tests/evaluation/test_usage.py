"""Measures that need only the text: co-occurrences, spelling, analogies."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import sparse

from coupled_adam import text
from coupled_adam.evaluation import usage, words


def of(rows, variant="trained"):
    return {(row.measure, row.set): row for row in rows if row.variant == variant}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    random, letters = np.random.default_rng(0), np.array(list("abcdefgh "))
    for number in range(40):
        (folder / f"{number:02}.txt").write_text("".join(random.choice(letters, 400)))
    return text.load(folder, 270, cache=folder / "cache")


@pytest.mark.parametrize("window", [1, 3])
def test_cooccurrences_are_counted_one_by_one(documents, monkeypatch, window):
    monkeypatch.setattr(usage, "_PIECE", 10**9)  # all of it in one piece
    found = usage.cooccurrences(documents, window).toarray()
    expected = np.zeros((270, 270))
    end, tokens = documents.end_of_text, documents.train.tolist()
    for _, group in itertools.groupby(tokens, key=lambda token: token == end):
        document = [token for token in group if token != end]
        for i, a in enumerate(document):
            for b in document[i + 1 : i + 1 + window]:
                expected[a, b] += 1
                expected[b, a] += 1
    np.testing.assert_array_equal(found, expected)


def test_of_a_long_text_a_part_is_counted(documents, monkeypatch):
    monkeypatch.setattr(usage, "_PIECE", 10**9)
    everything = usage.cooccurrences(documents).sum()
    monkeypatch.setattr(usage, "_PIECE", 99)
    assert 0.9 * everything < usage.cooccurrences(documents).sum() < everything
    monkeypatch.setattr(usage, "_COUNTED", len(documents.train) // 4)
    assert 0.2 * everything < usage.cooccurrences(documents).sum() < 0.26 * everything


def test_ppmi_by_hand():
    counts = np.array([[0.0, 6, 2], [6, 0, 0], [2, 0, 4]])
    expected = np.zeros((3, 3))
    for i, j in np.argwhere(counts):
        pmi = math.log(counts[i, j] / 20 / (counts[i].sum() / 20 * counts[j].sum() / 20))
        expected[i, j] = max(0, pmi)
    np.testing.assert_allclose(usage.ppmi(sparse.csr_matrix(counts)).toarray(), expected)


def test_vectors_made_of_the_ppmi_agree_fully_and_random_ones_not(corpus):
    rows = torch.from_numpy(usage.ppmi(usage.cooccurrences(corpus)).toarray())
    random = torch.randn(400, 30, generator=torch.Generator().manual_seed(0)).double()
    found = usage.ppmi_agreement({"trained": rows, "untrained": random}, corpus)
    right, wrong = of(found), of(found, "untrained")
    key = ("ppmi_agreement", "all")
    assert right[key].value == pytest.approx(1)
    assert wrong[key].low < 0 < wrong[key].high and abs(wrong[key].value) < 0.1
    assert right[key].n == wrong[key].n >= 100 and right[key].chance == 0
    assert right["ppmi_agreement", "0 to 1e-06"].note == "too few: 0 of at least 30 tokens"


def test_what_frequency_says_is_no_agreement_beyond_it(corpus):
    """Vectors that know how often each token occurs, alone and beside who stands by whom."""
    often = torch.from_numpy(np.log(np.maximum(corpus.frequencies, 1e-9)))
    often = ((often - often.mean()) / often.std())[:, None]
    random = torch.randn(400, 30, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.from_numpy(usage.ppmi(usage.cooccurrences(corpus)).toarray())
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-9)
    vectors = {
        "trained": torch.cat([often, 0.1 * random], dim=1),
        "centred": torch.cat([often, rows], dim=1),
    }
    found = usage.ppmi_agreement(vectors, corpus)
    counts, text_too = of(found), of(found, "centred")
    one, other = ("ppmi_agreement", "all"), ("ppmi_beyond_frequency", "all")
    assert counts[other].low < 0 < counts[other].high
    assert text_too[other].low > max(text_too[one].high, 0.2)  # frequency hides what they know
    left_out = counts["ppmi_beyond_frequency", "0 to 1e-06"]
    assert left_out.note == "too few: 0 of at least 30 tokens"


def test_a_quadratic_function_of_the_frequencies_is_taken_off_whole():
    random = np.random.default_rng(0)
    f = random.normal(size=12)
    known = 3 + f[:, None] + f + 2 * f[:, None] * f - (f[:, None] - f) ** 2
    assert not usage.beyond_frequency(known, f).any()
    noise = random.normal(size=(12, 12))
    noise = noise + noise.T
    once = usage.beyond_frequency(noise, f)
    np.testing.assert_allclose(usage.beyond_frequency(noise + known, f), once, atol=1e-9)
    np.testing.assert_allclose(once, once.T)
    pairs = np.triu_indices(12, 1)
    assert abs(np.corrcoef(once[pairs], (f[:, None] * f)[pairs])[0, 1]) < 1e-9
    assert not usage.beyond_frequency(np.full((5, 5), 7.0), f[:5]).any()


@pytest.fixture(scope="module")
def spelt(tmp_path_factory):
    """A text in which 60 words stand with and without capitals."""
    folder = tmp_path_factory.mktemp("spelt")
    made = [f"{a}{b}{c}" for a in "bdfg" for b in "aeiou" for c in "lmn"]
    random = np.random.default_rng(0)
    chosen = random.choice([form for word in made for form in (word, word.title())], 40_000)
    (folder / "t.txt").write_text(" ".join(chosen))
    return text.load(folder / "t.txt", 400, cache=folder / "cache")


def families(corpus):
    spelling = [corpus.token_text(token).removeprefix("␣").lower() for token in range(400)]
    return np.unique(spelling, return_inverse=True)[1]


def test_vectors_that_know_the_spelling_find_it(spelt):
    family = torch.from_numpy(families(spelt))
    generator = torch.Generator().manual_seed(0)
    of_families = torch.randn(400, 40, generator=generator).double()
    random = torch.randn(400, 40, generator=generator).double()
    found = usage.spelling_variants(
        {"trained": of_families[family] + 0.01 * random, "untrained": random}, spelt
    )
    right, wrong = (
        of(found)["spelling_variants", ""],
        of(found, "untrained")["spelling_variants", ""],
    )
    assert right.value == 1 and math.isnan(right.low)  # every query: nothing varies
    assert right.n == wrong.n >= 100
    assert wrong.low < wrong.chance < wrong.high


def test_vectors_that_are_all_alike_know_nothing(spelt):
    found = usage.spelling_variants({"trained": torch.ones(400, 4).double()}, spelt)
    assert found[0].value < found[0].chance


def test_without_spelling_variants_the_row_says_so(corpus):
    (row,) = usage.spelling_variants({"trained": torch.ones(400, 4)}, corpus)
    assert math.isnan(row.value) and row.note.startswith("too few: ") and row.n < 100


@pytest.mark.parametrize(("candidates", "right"), [(1, 1), (9, 1), (9, 4), (6, 6)])
def test_the_reciprocal_rank_of_chance(candidates, right):
    orders = itertools.combinations(range(candidates), right)
    expected = np.mean([1 / (1 + places[0]) for places in orders])
    assert usage.chance_reciprocal_rank(candidates, right) == pytest.approx(expected)


def test_ranks_by_hand():
    scores = np.array([[9.0, 1, 3, 2], [0, 5, 5, 7]])
    right = np.array([[0, 1, 1, 0], [0, 0, 1, 0]], bool)
    # The first query is candidate 0 itself; of two equals the wrong one comes first.
    assert usage.reciprocal_ranks(scores, right, np.array([0, -1])).tolist() == [1, 1 / 3]


# --- analogies and similarity of words -------------------------------------------------------


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """ "bal is to Bal as del is to Del": eleven pairs, each with every other one."""
    made = [f"{a}{b}l" for a in "bdfg" for b in "aei"][:11]
    lines = [f"{a} {a.title()} {b} {b.title()}" for a, b in itertools.permutations(made, 2)]
    path = tmp_path_factory.mktemp("q") / "capitals.txt"
    path.write_text(": capitals\n" + "\n".join([*lines, "", "bal Bal nothing Nothing"]))
    return path


def test_a_shift_that_all_share_solves_every_analogy(spelt, questions):
    generator = torch.Generator().manual_seed(0)
    of_families = torch.randn(400, 60, generator=generator).double()
    capital = [spelt.token_text(t).removeprefix("␣")[:1].isupper() for t in range(400)]
    shift = torch.tensor(capital).double()[:, None] * torch.randn(1, 60, generator=generator) * 2
    random = torch.randn(400, 60, generator=generator).double()
    rows = words.analogy_rows(
        {"trained": of_families[torch.from_numpy(families(spelt))] + shift, "untrained": random},
        spelt,
        questions,
    )
    solved = of(rows)
    assert solved["analogy_accuracy", "capitals"].value > 0.95
    assert solved["analogy_accuracy", "capitals"].n == 110  # without the one of unknown words
    guessed = of(rows, "untrained")["analogy_reciprocal_rank", "capitals"]
    assert guessed.value < 0.1 and 0 < guessed.chance < 0.05


def test_analogies_one_by_one(spelt, questions):
    vectors = torch.randn(400, 5, generator=torch.Generator().manual_seed(1)).double()
    rows = of(words.analogy_rows({"trained": vectors}, spelt, questions))
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    occurring = np.flatnonzero(spelt.counts)
    ranks = []
    for question in words.read_analogies(questions)[["a", "b", "c", "d"]].to_numpy().tolist():
        ids = [spelt.encode(" " + word).tolist() for word in question]
        if any(len(one) > 1 for one in ids):
            continue
        a, b, c, d = (one[0] for one in ids)
        near = {i: unit[i] @ (unit[b] - unit[a] + unit[c]) for i in occurring if i not in (a, b, c)}
        ranks.append(sorted(near, key=near.get, reverse=True).index(d) + 1)
    assert rows["analogy_accuracy", "capitals"].value == np.mean(np.array(ranks) == 1)
    expected = np.mean(1 / np.array(ranks))
    assert rows["analogy_reciprocal_rank", "capitals"].value == pytest.approx(expected)


def test_few_analogies_are_not_taken(spelt, tmp_path):
    (tmp_path / "few.txt").write_text("bal Bal del Del\n")
    rows = words.analogy_rows({"trained": torch.ones(400, 2)}, spelt, tmp_path / "few.txt")
    assert [row.note for row in rows] == [
        "too few: 1 of at least 100 questions of single tokens"
    ] * 2


def test_gensim_s_analogies_are_read():
    pytest.importorskip("gensim")
    found = words.read_analogies(words.gensim_file("the analogies", words.ANALOGIES))
    assert found["section"].nunique() == 14 and len(found) == 19_544
    assert found.iloc[0].tolist() == [
        "capital-common-countries", "Athens", "Greece", "Baghdad", "Iraq",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"), [("a b c\n", "line 1: 'a b c' is not an analogy"), (": s\n", "no analogy")]
)
def test_what_is_no_analogy_is_refused(tmp_path, content, says):
    (tmp_path / "q.txt").write_text(content)
    with pytest.raises(ValueError, match=says):
        words.read_analogies(tmp_path / "q.txt")


@pytest.mark.parametrize(
    "content",
    [
        "sun sunlight 50.000000\ntiger cat 7.35\n",  # MEN
        "word1\tword2\tPOS\tSimLex999\tconc(w1)\nsun\tsunlight\tN\t50\t2\ntiger\tcat\tN\t7.35\t4\n",
        "sun\tsunlight\t50\t5\t6\t4\ntiger\tcat\t7.35\t5\t6\t4\n",  # RW
        "Word 1,Word 2,Human (mean)\nsun,sunlight,50\ntiger,cat,7.35\n",  # WordSim-353
        "Word 1\tWord 2\tHuman (mean)\t1\t2\nsun\tsunlight\t50\t1\t2\ntiger\tcat\t7.35\t1\t2\n",
        "# comment\nsun\tsunlight\t50\ntiger\tcat\t7.35\n",  # gensim's
    ],
)
def test_files_are_read_as_they_are_published(tmp_path, content):
    if "(mean)\t1" in content:  # headings may be numbers: then they are no heading
        content = content.replace("(mean)\t1\t2", "(mean)\tA\tB")
    (tmp_path / "pairs").write_text(content)
    found = words.read_word_pairs(tmp_path / "pairs").to_numpy().tolist()
    assert found == [["sun", "sunlight", 50.0], ["tiger", "cat", 7.35]]


def test_similarity_is_taken_from_a_hundred_pairs_on(corpus, tmp_path):
    made = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    whole = [word for word in made if len(corpus.encode(" " + word)) == 1][:30]
    pairs = list(itertools.combinations(whole, 2))[:120]
    vectors = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)).double()
    unit = vectors / vectors.norm(dim=1, keepdim=True)

    def cosine(a, b):
        return float(unit[corpus.encode(" " + a)[0]] @ unit[corpus.encode(" " + b)[0]])

    lines = [f"{a}\t{b}\t{cosine(a, b):.9f}\n" for a, b in pairs]
    (tmp_path / "many.tsv").write_text("".join(lines))
    (tmp_path / "few.tsv").write_text("".join(lines[:99]))
    files = {name: tmp_path / f"{name}.tsv" for name in ("many", "few")}
    rows = words.similarity_rows({"trained": vectors}, corpus, files)
    assert [row.n for row in rows] == [120, 99]
    assert rows[0].value == pytest.approx(1) and rows[0].chance == 0
    assert rows[1].note == "too few: 99 of at least 100 pairs of single tokens"
