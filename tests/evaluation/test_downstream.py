"""Texts: similarity, retrieval and classification, each with vectors made to know the answer."""

import importlib.util
import math
import pickle
import zlib

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer

from coupled_adam import text
from coupled_adam.evaluation import downstream
from coupled_adam.evaluation.downstream import LabelledTexts


def of(rows):
    return {row.variant: row for row in rows}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A text of 60 documents, each with a few words of its own."""
    folder, random = tmp_path_factory.mktemp("documents"), np.random.default_rng(0)
    made = np.array([f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"])
    for number in range(60):
        own = random.choice(made, 6)
        (folder / f"{number:02}.txt").write_text(" ".join(random.choice(own, 200)))
    return text.load(folder, 400, cache=folder / "cache")


@pytest.fixture(scope="module")
def vectors():
    one_each = torch.eye(400).double()  # means of these are the shares of the tokens
    return {"trained": one_each, "untrained": torch.ones(400, 3).double()}


def test_counts_and_vectors_of_texts(documents, vectors):
    texts = [np.array([3, 5, 3]), np.array([], int), np.array([7])]
    counts = downstream.token_counts(texts, 400)
    assert counts.shape == (3, 400) and counts[0, 3] == 2 and counts[0, 5] == counts[2, 7] == 1
    assert counts.sum() == 4
    found = downstream.text_vectors(counts, vectors)
    assert found["trained"][0, [3, 5]].tolist() == [2 / 3, 1 / 3] and not found["trained"][1].any()
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    assert (found["tf-idf"] != expected).nnz == 0


def test_the_other_half_is_found_by_its_words(documents, vectors):
    found = of(downstream.retrieval(vectors, documents))
    assert found["trained"].value > 0.95 and found["tf-idf"].value > 0.95
    assert found["untrained"].value < found["untrained"].chance  # all alike: knows nothing
    assert {row.n for row in found.values()} == {60}
    assert found["trained"].chance == pytest.approx((1 / np.arange(1, 61)).mean())


def test_the_halves_are_of_one_document_and_do_not_overlap(documents, vectors, monkeypatch):
    seen = []
    counted = downstream.token_counts
    monkeypatch.setattr(
        downstream, "token_counts", lambda texts, size: seen.extend(texts) or counted(texts, size)
    )
    downstream.retrieval(vectors, documents)
    whole = [
        document
        for part in (documents.train, documents.validation)
        for document in downstream._documents(part, documents.end_of_text)
    ]
    for document, first, second in zip(whole, seen[:60], seen[60:], strict=True):
        assert np.array_equal(np.concatenate([first, second]), document)
        assert abs(len(first) - len(second)) <= 1


def test_of_many_documents_a_part_is_taken_and_said(documents, vectors, monkeypatch):
    monkeypatch.setattr(downstream, "_MOST_TEXTS", 25)
    (row, *_) = downstream.retrieval(vectors, documents)
    assert row.n == 25 and row.note == "25 of 60 documents"


def test_a_text_without_documents_has_no_halves(corpus, vectors):
    (row,) = downstream.retrieval(vectors, corpus)
    assert math.isnan(row.value) and row.note == "too few: 2 of at least 20 documents of 64 tokens"


def test_text_similarity_is_pearson_s_over_all_pairs(documents, vectors):
    pytest.importorskip("gensim")
    found = of(downstream.text_similarity(vectors, documents))
    news = downstream.gensim_file("x", downstream.LEE_TEXTS).read_text("latin-1").split("\n")[:50]
    human = np.loadtxt(downstream.gensim_file("x", downstream.LEE_SCORES))
    above = np.triu_indices(50, 1)
    shares = np.array([np.bincount(documents.encode(item), minlength=400) for item in news])
    unit = shares / np.linalg.norm(shares, axis=1, keepdims=True)
    expected = np.corrcoef((unit @ unit.T)[above], human[above])[0, 1]
    assert found["trained"].value == pytest.approx(expected)
    assert found["trained"].n == 50 and found["trained"].chance == 0


@pytest.fixture(scope="module")
def labelled():
    """Two classes, told apart by one word, in the order of the classes."""
    random, filler = np.random.default_rng(0), np.array(["bal", "bel", "bil", "bol", "bul"])
    texts = [
        " ".join(random.permutation([*random.choice(filler, 12), word]))
        for word in ("kat", "fus")
        for _ in range(60)
    ]
    return LabelledTexts(texts, ["a"] * 60 + ["b"] * 60)


def test_a_probe_finds_what_is_there(documents, vectors, labelled):
    found = of(downstream.classification(vectors, documents, "made", labelled))
    assert found["trained"].value > 0.95 and found["tf-idf"].value > 0.95
    assert found["untrained"].value <= 0.6
    assert {(row.set, row.n, row.chance) for row in found.values()} == {("made", 120, 0.5)}


def test_a_shift_of_all_vectors_changes_nothing(documents, labelled):
    rows = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)).double()
    found = of(
        downstream.classification({"trained": rows + 5, "centred": rows}, documents, "x", labelled)
    )
    assert found["trained"].value == found["centred"].value > 0.6


def test_the_scale_of_the_vectors_changes_nothing(documents, labelled):
    rows = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)).double()
    scales = {"trained": 1.0, "centred": 1e-6, "untrained": 1e6}
    found = downstream.classification(
        {name: scale * rows for name, scale in scales.items()}, documents, "x", labelled
    )
    assert len({row.value for row in found if row.variant != "tf-idf"}) == 1


def test_labels_that_say_nothing_are_not_found(documents, vectors, labelled):
    shuffled = np.random.default_rng(1).permutation(labelled.labels).tolist()
    mixed = labelled._replace(labels=shuffled)
    found = of(downstream.classification(vectors, documents, "x", mixed))
    assert found["trained"].value < 0.65  # what it was fitted on is not what it is judged by


def test_of_many_texts_a_part_is_drawn_from_all_classes(documents, vectors, labelled, monkeypatch):
    monkeypatch.setattr(downstream, "_MOST_TEXTS", 80)
    (row, *_) = downstream.classification(vectors, documents, "x", labelled)
    assert row.n == 80 and row.note == "80 of 120 texts" and 0.5 <= row.chance < 0.65


@pytest.mark.parametrize("labels", [["a"] * 120, ["a"] * 111 + ["b"] * 9])
def test_classes_that_are_too_small_are_not_taken(documents, vectors, labelled, labels):
    (row,) = downstream.classification(vectors, documents, "x", labelled._replace(labels=labels))
    assert math.isnan(row.value) and row.n == 120 and "too few" in row.note


def test_a_synthetic_language_reads_no_english(vectors, labelled, tmp_path):
    language = text.synthetic(400, tokens=20_000, cache=tmp_path)
    for rows in (
        downstream.classification(vectors, language, "x", labelled),
        downstream.text_similarity(vectors, language),
        downstream.retrieval(vectors, language),
    ):
        assert math.isnan(rows[0].value) and rows[0].note


def test_the_labelled_texts_of_gensim():
    pytest.importorskip("gensim")
    found = {name: read() for name, read in downstream.labelled_text_files().items()}
    counted = {name: dict(zip(*np.unique(t.labels, return_counts=True), strict=True))
               for name, t in found.items()}  # fmt: skip
    assert counted["newsgroups"] == {"alt.atheism": 100, "sci.space": 100}
    assert counted["reviews"] == {"neg": 100, "pos": 100}
    # What names the class must not be in the text.
    assert not any("Newsgroups:" in posting for posting in found["newsgroups"].texts)
    assert not any("__label__" in sentence for sentence in found["reviews"].texts)
    assert all(posting.strip() for posting in found["newsgroups"].texts)


def test_a_pickle_that_asks_for_more_is_not_opened(monkeypatch, tmp_path):
    file = tmp_path / "evil"
    file.write_bytes(zlib.compress(pickle.dumps(print, protocol=0)))
    monkeypatch.setattr(downstream, "gensim_file", lambda *_: file)
    with pytest.raises(ValueError, match=r"ask for __builtin__\.print: another file"):
        downstream.labelled_text_files()["newsgroups"]()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", "good\ta fine film\n\nbad\ta tab\tand\x0ba mark\n"),
        ("t.csv", 'id,Text,Label\n1,a fine film,good\n2,"a tab\tand\x0ba mark",bad\n3, ,bad\n'),
        ("t.CSV", 'category,text\ngood,a fine film\nbad,"a tab\tand\x0ba mark"\n'),
    ],
)
def test_reading_labelled_texts(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    found = downstream.read_labelled(tmp_path / name)
    assert found == LabelledTexts(["a fine film", "a tab\tand\x0ba mark"], ["good", "bad"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.txt", "a text without a label\n", "line 1: .* is not a label, a tabulator and a text"),
        ("t.txt", "\n", "holds no labelled text"),
        ("t.csv", "text,mood\na,b\n", r"its columns are \['text', 'mood'\]"),
        ("t.csv", "", "its columns are"),
        ("t.csv", "text,label\nalone\n", "line 2: a column is missing"),
    ],
)
def test_what_is_no_labelled_text_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        downstream.read_labelled(tmp_path / name)


def test_without_gensim_the_rows_say_so(corpus, vectors, monkeypatch):

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (row,) = downstream.text_similarity(vectors, corpus)
    assert math.isnan(row.value) and "pip install gensim" in row.note


def test_documents_end_where_they_end(documents):
    found = downstream._documents(documents.train, documents.end_of_text)
    # None of these is too short, so together they are everything but the ends.
    assert np.array_equal(
        np.concatenate(found), documents.train[documents.train != documents.end_of_text]
    )
    assert len(found) == (documents.train == documents.end_of_text).sum()
