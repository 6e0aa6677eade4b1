"""What an evaluation promises: the numbers of a run, each against something known exactly."""

import importlib.util
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from coupled_adam import evaluation, experiments, geometry, text
from coupled_adam.evaluation import TokenLosses, evaluate, words
from coupled_adam.evaluation import losses as losses_module
from coupled_adam.evaluation import run as run_module
from coupled_adam.gpt import GPT
from coupled_adam.text import TextError
from coupled_adam.training import initial_embedding, train

VOCABULARY, LENGTH = 400, 16
COMMON = ["cat", "dog", "house", "tree", "stone", "water", "bird", "fish"]
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def pair_file(path, pairs):
    path.write_text("".join(f"{a}\t{b}\t{score}\n" for a, b, score in pairs))
    return path


# --- a run -----------------------------------------------------------------------------------


def test_the_row_is_what_training_measured_last(run, corpus, measured):
    final = run.final
    assert measured.row["validation_loss"] == pytest.approx(final.validation_loss, rel=1e-6)
    assert (measured.row["step"], measured.row["tokens"]) == (12, 12 * 4 * LENGTH)
    assert measured.row["validation_tokens"] == 700 // LENGTH * LENGTH
    for name, value in geometry.summary(
        run.model.output_embedding.detach()[:VOCABULARY], corpus.counts
    ).items():
        assert measured.row[name] == pytest.approx(value)
        assert measured.row[name] == pytest.approx(final[name])


def test_classes_of_the_loss_add_up_to_the_loss(measured):
    classes = measured.by_frequency
    assert classes["share"].sum() == pytest.approx(1)
    assert classes["tokens"].sum() == measured.row["validation_tokens"]
    assert classes["vocabulary"].sum() == VOCABULARY
    weighted = (classes["share"] * classes["loss"]).sum()  # NaN of an empty class counts nothing
    assert weighted == pytest.approx(measured.row["validation_loss"], rel=1e-12)


def test_more_tokens_are_more_windows(run, corpus):
    some = evaluate(run.folder, corpus, tokens=2 * LENGTH)
    assert some.row["validation_tokens"] == 2 * LENGTH
    least = evaluate(run.folder, corpus, tokens=1)
    assert least.row["validation_tokens"] == LENGTH


def test_another_text_is_refused(run, corpus, tmp_path):
    (tmp_path / "other.txt").write_text(" ".join(reversed(COMMON * 4000)) + " x".join(WORDS * 50))
    other = text.load(tmp_path / "other.txt", VOCABULARY, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"was trained on 'words' with fingerprint .* 'other'"):
        evaluate(run.folder, other)


def test_what_is_no_run_is_refused(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="it is not a run folder"):
        evaluate(tmp_path, corpus)


# --- loss by token ---------------------------------------------------------------------------


def test_losses_are_those_of_each_target(corpus, config):
    torch.manual_seed(3)
    model = GPT(config.model)
    losses = evaluation.token_losses(model, corpus, tokens=3 * LENGTH)
    starts = np.linspace(0, len(corpus.validation) - LENGTH - 1, 3).astype(int)
    expected, counts = np.zeros(VOCABULARY), np.zeros(VOCABULARY, int)
    hidden = []
    for start in starts:
        ids = torch.from_numpy(corpus.validation[start : start + LENGTH + 1].astype(np.int64))
        logits = model(ids[None, :-1])[0].double()
        hidden.append(model.hidden_states(ids[None, :-1])[0])
        for position, target in enumerate(ids[1:].tolist()):
            expected[target] -= logits[position].log_softmax(0)[target].item()
            counts[target] += 1
    np.testing.assert_allclose(losses.sums, expected, rtol=1e-5)
    np.testing.assert_array_equal(losses.counts, counts)
    assert losses.mean == pytest.approx(expected.sum() / 48)
    mean = torch.cat(hidden).detach().mean(dim=0).numpy()
    np.testing.assert_allclose(losses.mean_hidden, mean, atol=1e-6)


def test_the_size_of_the_pieces_does_not_matter(corpus, config, monkeypatch):
    model = GPT(config.model)
    whole = evaluation.token_losses(model, corpus, tokens=700)
    monkeypatch.setattr(losses_module, "_LOGITS_AT_ONCE", 1)
    pieces = evaluation.token_losses(model, corpus, tokens=700)
    np.testing.assert_allclose(pieces.sums, whole.sums, rtol=1e-5)
    np.testing.assert_array_equal(pieces.counts, whole.counts)


def test_a_text_that_does_not_fit_the_model_is_refused(corpus, config):
    long = GPT(replace(config.model, context=len(corpus.validation)))
    with pytest.raises(ValueError, match=r"one window needs [\d,]+: use more text"):
        evaluation.token_losses(long, corpus, 100)
    with pytest.raises(ValueError, match="the model only 64: this model was made for another"):
        evaluation.token_losses(GPT(replace(config.model, vocabulary_size=64)), corpus, 100)


def test_frequency_classes_in_numbers():
    losses = TokenLosses(np.array([6.0, 2.0, 0, 9.0]), np.array([2, 1, 0, 1]), np.zeros(1))
    table = evaluation.loss_by_frequency(losses, np.array([0.7, 0.1, 0.0, 0.05]), (0.01, 0.1))
    assert table["from"].tolist() == [0, 0.01, 0.1] and table["to"].tolist() == [0.01, 0.1, 1]
    assert table["vocabulary"].tolist() == [1, 1, 2]  # 0.1 belongs to the class above it
    assert table["tokens"].tolist() == [0, 1, 3]
    assert table["share"].tolist() == [0, 0.25, 0.75]
    assert math.isnan(table["loss"][0]) and table["loss"].tolist()[1:] == [9, pytest.approx(8 / 3)]


@pytest.mark.parametrize("borders", [(0.1, 0.1), (0.2, 0.1), (0.0, 0.1), (0.1, 1.0)])
def test_borders_that_do_not_rise_are_refused(borders):
    losses = TokenLosses(np.ones(3), np.ones(3, int), np.zeros(1))
    with pytest.raises(ValueError, match="give rising numbers between 0 and 1"):
        evaluation.loss_by_frequency(losses, np.ones(3) / 3, borders)


def test_frequencies_of_another_vocabulary_are_refused():
    losses = TokenLosses(np.ones(3), np.ones(3, int), np.zeros(1))
    with pytest.raises(ValueError, match="there are 2 frequencies for 3 tokens"):
        evaluation.loss_by_frequency(losses, np.ones(2) / 2)


# --- word pairs ------------------------------------------------------------------------------


def test_an_embedding_made_for_it_has_a_known_correlation(corpus, tmp_path):
    """Words lie in a plane at angles whose cosines are the scores of their pairs with "cat"."""
    scores = np.array([0.9, 0.5, 0.1, -0.3, -0.7])
    noise = np.array([0.2, -0.1, 0.05, 0.3, -0.2])
    embedding = torch.randn(VOCABULARY, 2, generator=torch.Generator().manual_seed(0))
    tokens = {word: corpus.encode(" " + word)[0] for word in COMMON}
    embedding[tokens["cat"]] = torch.tensor([2.0, 0])
    for word, score in zip(COMMON[1:6], scores, strict=True):
        embedding[tokens[word]] = 3 * torch.tensor([score, math.sqrt(1 - score**2)])
    for human, r in ((scores, 1.0), (-5 * scores + 3, -1.0), (scores + noise, None)):
        path = pair_file(tmp_path / "p.tsv", [("cat", w, s) for w, s in zip(COMMON[1:6], human)])  # noqa: B905
        (row,) = evaluation.word_similarity(embedding, corpus, {"p": path}).to_dict("records")
        assert (row["name"], row["pairs"], row["covered"]) == ("p", 5, 5)
        expected = r if r is not None else np.corrcoef(scores, human)[0, 1]
        assert row["pearson"] == pytest.approx(expected, abs=1e-6)
        assert row["spearman"] == pytest.approx(stats.spearmanr(scores, human).statistic)


def test_words_of_several_tokens_are_left_out_and_counted(corpus, tmp_path):
    embedding = torch.randn(VOCABULARY, 8)
    good = [("cat", "dog", 3), ("bird", "fish", 2), ("house", "stone", 1)]
    with_gaps = [*good, ("cat", "unbelievable", 9), ("qqq", "zzz", 5), ("Cat", "dog", 1)]
    rows = evaluation.word_similarity(
        embedding,
        corpus,
        {
            "good": pair_file(tmp_path / "good.tsv", good),
            "gaps": pair_file(tmp_path / "gaps.tsv", with_gaps),
        },
    ).set_index("name")
    assert rows["pairs"].tolist() == [3, 6] and rows["covered"].tolist() == [3, 3]
    assert rows.loc["good", "pearson"] == rows.loc["gaps", "pearson"]


def test_gensim_finds_the_same_correlation():
    """Its own evaluation, on the pairs that it carries and a vocabulary of half their words."""
    models = pytest.importorskip("gensim.models")
    files = evaluation.word_pair_files()
    texts = [path.read_text() for path in files.values()]
    words = sorted({w for text in texts for w in text.split() if w.isalpha()})[::2]
    vectors = models.KeyedVectors(16)
    rows = np.random.default_rng(0).standard_normal((len(words), 16)).astype(np.float32)
    vectors.add_vectors(words, rows)

    class Vocabulary:
        def encode(self, spaced):
            assert spaced.startswith(" ")
            return [words.index(spaced[1:])] if spaced[1:] in words else [0, 0]

    ours = evaluation.word_similarity(torch.from_numpy(rows), Vocabulary(), files)
    assert ours["pairs"].tolist() == [353, 999]
    for row in ours.itertuples():
        pearson, spearman, unknown = vectors.evaluate_word_pairs(
            files[row.name], case_insensitive=False
        )
        assert row.pearson == pytest.approx(pearson.statistic, abs=1e-6)
        assert row.spearman == pytest.approx(spearman.statistic, abs=1e-6)
        assert row.covered == round(row.pairs * (1 - unknown / 100))


@pytest.mark.parametrize(
    "pairs",
    [
        [("cat", "dog", 1), ("bird", "fish", 2)],
        [("cat", "dog", 1), ("bird", "fish", 1), ("tree", "dog", 1)],
        [("cat", "qqq", 1)],
    ],
)
def test_what_cannot_correlate_is_nan(corpus, tmp_path, pairs):
    table = evaluation.word_similarity(
        torch.randn(VOCABULARY, 4), corpus, {"few": pair_file(tmp_path / "few.tsv", pairs)}
    )
    assert table[["pearson", "spearman"]].isna().all(axis=None)


def test_r_is_the_mean_over_the_sets_that_could_be_measured(run, corpus, tmp_path):
    pairs = [(a, b, len(a) + len(b)) for a in COMMON for b in COMMON if a < b]
    files = {
        "one": pair_file(tmp_path / "one.tsv", pairs[:9]),
        "two": pair_file(tmp_path / "two.tsv", pairs[9:]),
        "none": pair_file(tmp_path / "none.tsv", [("qqq", "zzz", 1)]),
    }
    found = evaluate(run.folder, corpus, word_pairs=files)
    one, two, none = found.word_pairs["pearson"]
    assert found.row["r"] == pytest.approx(50 * (one + two)) and math.isnan(none)
    nothing = evaluate(run.folder, corpus, word_pairs={"none": files["none"]})
    assert math.isnan(nothing.row["r"])


def test_a_synthetic_language_has_no_words_to_compare(tmp_path):
    corpus = text.synthetic(200, tokens=20_000, cache=tmp_path)
    files = {"p": pair_file(tmp_path / "p.tsv", [("cat", "dog", 1)])}
    (row,) = evaluation.word_similarity(torch.randn(200, 4), corpus, files).to_dict("records")
    assert row["covered"] == 0


def test_reading_pairs(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("# comment\n\nsun  sunlight 50.0\nnull nan\t3e1 extra 7\n")
    found = evaluation.read_word_pairs(path)
    assert found.to_numpy().tolist() == [["sun", "sunlight", 50.0], ["null", "nan", 30.0]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"word1\tword2\tscore\n", "holds no pair"),
        (b"word1\tword2\tscore\na\tb\tc\n", "line 2: .* is not a pair"),
        # The annotated WordSim-353: its first column is the kind of relation.
        (b"i\ttiger\tcat\t7.35\n", "line 1: .* is not a pair"),
        (b"cat dog 1\ncat dog\n", "line 2: 'cat dog' is not a pair"),
        (b"love,,6.77\n", "line 1"),
        (b"# nothing\n\n", "holds no pair"),
        (b"caf\xe9 dog 1\n", "is not UTF-8"),
    ],
)
def test_what_is_no_list_of_pairs_is_refused(tmp_path, content, says):
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        evaluation.read_word_pairs(path)


def test_no_file_of_pairs_is_refused(corpus):
    with pytest.raises(ValueError, match="no word pairs"):
        evaluation.word_similarity(torch.randn(VOCABULARY, 4), corpus, {})


def test_without_gensim_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TextError, match="pip install gensim, or give files of your own"):
        evaluation.word_pair_files()


def test_a_gensim_without_its_test_data_is_named(monkeypatch):
    monkeypatch.setattr(words, "WORD_PAIRS", {"gone": "test/test_data/gone.tsv"})
    with pytest.raises(TextError, match=r"there is no .*gone\.tsv"):
        evaluation.word_pair_files()


# --- drift -----------------------------------------------------------------------------------


def test_the_initial_embedding_is_that_of_the_run(corpus, config):
    start = initial_embedding(config)
    seen = []

    def observe(step):
        seen.append(step.model.output_embedding.detach().clone())

    still = replace(config, steps=1, warmup_steps=10**9, evaluate_every=1)  # a step of length 0
    train(still, corpus, observe=observe, progress=False)
    torch.testing.assert_close(seen[0], start, rtol=0, atol=1e-8)
    before = torch.manual_seed(123).get_state()
    initial_embedding(config)
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers change"


def test_drift_is_the_displacement_of_the_mean(run, corpus, config, measured):
    start = initial_embedding(config)[:VOCABULARY].double()
    end = run.model.output_embedding.detach()[:VOCABULARY].double()
    moved = (end - start).mean(dim=0)
    assert measured.drift.distance == pytest.approx(moved.norm().item())
    hidden = evaluation.token_losses(run.model, corpus, 700).mean_hidden
    expected = torch.cosine_similarity(moved, -torch.from_numpy(hidden).sign(), dim=0)
    assert measured.drift.against_hidden == pytest.approx(expected.item())
    assert sum(measured.drift.shares) == pytest.approx(1) and len(measured.drift.shares) == 4


def test_without_the_same_start_there_is_no_drift(run, corpus, monkeypatch):
    other = initial_embedding(replace(run.config, seed=9))
    monkeypatch.setattr(run_module, "initial_embedding", lambda _: other)
    assert evaluate(run.folder, corpus).drift is None


def test_shares_by_hand():
    start = np.zeros((4, 2))
    moved = np.array([[0.0, 0], [3, 0], [1, 5], [0, -5]])
    shares = evaluation.displacement_shares(start + 7, moved + 7, np.array([9, 1, 7, 3]), bins=2)
    assert shares.tolist() == [0.75, 0.25]


def test_a_run_in_bfloat16_is_measured_in_float32(corpus, config, tmp_path):
    rough = train(replace(config, precision="bfloat16"), corpus, tmp_path / "run", progress=False)
    exact = evaluation.token_losses(rough.model, corpus, config.evaluation_tokens).mean
    found = evaluate(tmp_path / "run", corpus).row["validation_loss"]
    assert found == pytest.approx(exact, rel=1e-6)
    assert found != pytest.approx(rough.final.validation_loss, rel=1e-6)


def test_the_readme_of_the_data_names_every_column(measured):
    described = (experiments.data_folder() / "README.md").read_text()
    columns = {*measured.row, *measured.by_frequency, *measured.word_pairs, *measured.drift._fields}
    columns |= {*measured.run.metrics, *measured.table}
    missing = [name for name in sorted(columns) if f"`{name}`" not in described]
    assert not missing


def test_numbers_are_plain(measured):
    json.dumps(measured.row)
    assert isinstance(measured.by_frequency, pd.DataFrame)


def test_cosine():
    assert evaluation.cosine(np.array([1.0, 1]), np.array([2.0, 0])) == pytest.approx(0.5**0.5)
    assert evaluation.cosine(np.ones(3), -5 * np.ones(3)) == pytest.approx(-1)
    with pytest.raises(ValueError, match="zero vector"):
        evaluation.cosine(np.zeros(3), np.ones(3))
