from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_adam.text import TextError, languages, synthetic
from coupled_adam.text.languages import PERSISTENCE, Language


def spoken(size, exponent, classes, tokens=200_000, seed=0):
    rng = np.random.default_rng(seed)
    language = Language.draw(size, exponent, classes, rng)
    return language, np.concatenate(list(language.speak(tokens, rng)))


def bigrams(classes_of_tokens):
    k = classes_of_tokens.max() + 1
    table = np.zeros((k, k))
    np.add.at(table, (classes_of_tokens[:-1], classes_of_tokens[1:]), 1)
    return table / table.sum(axis=1, keepdims=True)


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 1.5), st.integers(2, 300), st.integers(1, 12), st.integers(0, 2**32))
def test_words_are_as_frequent_as_zipf_says(exponent, size, classes, seed):
    _, ids = spoken(size, exponent, min(classes, size), seed=seed)
    weights = np.arange(1, size + 1) ** -exponent
    expected = weights / weights.sum()
    measured = np.bincount(ids, minlength=size) / len(ids)
    # Persistence makes the text worth (1 - a) / (1 + a) of as many independent words.
    independent = len(ids) * (1 - PERSISTENCE) / (1 + PERSISTENCE)
    assert np.all(np.abs(measured - expected) < 6 * np.sqrt(expected / independent) + 1e-4)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5])
def test_the_exponent_can_be_measured(exponent):
    _, ids = spoken(200, exponent, 8, tokens=1_000_000)
    counts = np.bincount(ids, minlength=200)[:50]
    slope, _ = np.polyfit(np.log(np.arange(1, 51)), np.log(counts), 1)
    assert -slope == pytest.approx(exponent, abs=0.06)


def test_classes_follow_the_transition_matrix_of_the_docstring():
    language, ids = spoken(1000, 1.0, 8, tokens=1_000_000)
    mass = np.bincount(language.classes, weights=language.probabilities)
    expected = (1 - PERSISTENCE) * mass[None, :] + PERSISTENCE * np.eye(8)
    assert bigrams(language.classes[ids]) == pytest.approx(expected, abs=0.01)
    assert mass @ expected == pytest.approx(mass)


def test_classes_can_be_recovered_from_neighbours():
    language, ids = spoken(60, 1.0, 4, tokens=400_000)
    pairs = np.zeros((60, 60))
    np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    unigrams = pairs.sum(axis=1)
    surprise = pairs / np.outer(unigrams, unigrams) * len(ids)  # 1 if words were independent
    together = language.classes[:, None] == language.classes[None, :]
    assert np.mean((surprise > 1) == together) > 0.97


def test_blocks_join_without_a_seam(monkeypatch):
    monkeypatch.setattr(languages, "BLOCK", 2)
    language, ids = spoken(20, 1.0, 4, tokens=40_000)
    k = language.classes[ids]
    same_at_seam = np.mean(k[1:-1:2] == k[2::2])
    assert same_at_seam == pytest.approx(np.mean(k[:-1:2] == k[1::2]), abs=0.02)
    assert len(ids) == 40_000


def test_rounding_does_not_carry_a_word_over_the_border_of_its_class():
    class Edge:
        def random(self, size=None):
            return np.full(size, np.nextafter(1, 0)) if size else np.nextafter(1, 0)

    language, _ = spoken(200, 1.0, 8)
    (ids,) = language.speak(10, Edge())
    assert language.classes[ids].tolist() == [7] * 10


def test_the_corpus(tmp_path):
    corpus = synthetic(500, 50_000, 1.0, classes=7, cache=tmp_path)
    assert corpus.vocabulary_size == 500
    assert (len(corpus.train), len(corpus.validation)) == (45_000, 5_000)
    assert corpus.counts.sum() == 45_000
    assert corpus.token_classes.shape == (500,)
    sizes = np.bincount(corpus.token_classes)
    assert len(sizes) == 7
    assert sizes.max() - sizes.min() <= 1
    text = corpus.decode(corpus.train[:50])
    assert np.array_equal(corpus.encode(text), corpus.train[:50])
    for token in range(500):
        assert corpus.token_text(token).startswith(f"c{corpus.token_classes[token]}w")
    assert len({corpus.token_text(token) for token in range(500)}) == 500


def test_arguments_decide_the_text_and_nothing_else(tmp_path):
    arguments = {"vocabulary_size": 50, "tokens": 20_000, "zipf_exponent": 1.0, "classes": 3}
    first = synthetic(**arguments, cache=tmp_path / "a")
    assert synthetic(**arguments, cache=tmp_path / "b").fingerprint == first.fingerprint
    for change in ({"seed": 1}, {"zipf_exponent": 0.9}, {"classes": 4}, {"tokens": 20_001}):
        other = synthetic(**{**arguments, **change}, cache=tmp_path / "a")
        assert other.fingerprint != first.fingerprint


def test_an_unknown_word_is_refused(tmp_path):
    corpus = synthetic(50, 20_000, cache=tmp_path)
    with pytest.raises(TextError, match=r"cannot encode 'c0w0 house'"):
        corpus.encode("c0w0 house")


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("vocabulary_size", 1, "from 2 to 1,000,000"),
        ("tokens", 10_000, "at least 10,240"),
        ("zipf_exponent", -0.1, "finite number from 0"),
        ("zipf_exponent", float("nan"), "finite number from 0"),
        ("classes", 0, "classes must be from 1"),
        ("classes", 1001, "classes must be from 1 to vocabulary_size = 1000"),
        ("seed", -1, "seed must not be negative"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, argument, value, message):
    with pytest.raises(TextError, match=message):
        synthetic(**{argument: value}, cache=tmp_path)
