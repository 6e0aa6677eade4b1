"""Losses of windows: halves by document, one by one, beside models that only count."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.losses import (
    half_of_documents,
    reference_losses,
    token_losses,
    window_losses,
)
from coupled_adam.gpt import GPT, GPTConfig
from coupled_adam.text import load, synthetic

CONTEXT = 8


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A text of 120 documents of three lengths, so that twelve are held out."""
    folder = tmp_path_factory.mktemp("documents")
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefgh "))
    for number in range(120):
        length = (300, 900, 3_000)[number % 3]
        (folder / f"{number:03}.txt").write_text("".join(random.choice(letters, length)))
    return load(folder, 300, cache=folder / "cache")


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return synthetic(200, tokens=20_000, cache=tmp_path_factory.mktemp("language"))


def test_the_halves_are_of_different_documents(documents):
    text = documents.validation
    ends = np.flatnonzero(text == documents.end_of_text)
    assert len(ends) > 8
    seen = []
    for half in (0, 1):
        windows, numbers = half_of_documents(documents, half, CONTEXT, 10**9)
        assert set(numbers % 2) == {half}
        places = np.lib.stride_tricks.sliding_window_view(text, CONTEXT + 1)
        for window, number in zip(windows[::50], numbers[::50], strict=True):
            starts = np.flatnonzero((places == window).all(axis=1))
            assert number in np.searchsorted(ends, starts)
        seen.append(set(numbers))
    assert seen[0] | seen[1] == set(range(len(ends)))
    assert not seen[0] & seen[1]


def test_every_document_has_the_same_weight_where_it_is_long_enough(documents):
    windows, numbers = half_of_documents(documents, 1, CONTEXT, 800)
    counts = np.unique(numbers, return_counts=True)[1]
    assert counts.min() == counts.max() == 800 // CONTEXT // len(counts)
    assert windows.shape == (counts.sum(), CONTEXT + 1)


def test_a_text_without_documents_is_cut_into_pieces(language):
    assert language.end_of_text is None
    _, numbers = half_of_documents(language, 0, CONTEXT, 10**9)
    assert set(numbers) == set(range(0, 32, 2))


def test_a_half_without_a_window_is_refused(language):
    short = dataclasses.replace(language, validation=language.validation[:12])
    with pytest.raises(RefusedError, match=r"half 1 .* has no window of 8 tokens"):
        half_of_documents(short, 1, CONTEXT, 100)


def test_the_losses_one_by_one_are_those_by_token(language):
    torch.manual_seed(0)
    model = GPT(GPTConfig(200, CONTEXT, 1, 2, 16))
    tokens = token_losses(model, language, 400)
    windows = np.stack(
        [
            language.validation[start : start + CONTEXT + 1].astype(np.int64)
            for start in np.linspace(0, len(language.validation) - CONTEXT - 1, 50).astype(int)
        ]
    )
    mine = window_losses(model, windows, np.arange(50))
    assert mine.losses.shape == mine.targets.shape == (50, CONTEXT)
    np.testing.assert_allclose(mine.by_token.sums, tokens.sums, rtol=1e-5)
    np.testing.assert_array_equal(mine.by_token.counts, tokens.counts)
    logits = model(torch.from_numpy(windows[:, :-1])).double()
    everywhere = logits.softmax(-1).sum((0, 1)).detach().numpy()
    np.testing.assert_allclose(mine.predicted, everywhere, rtol=1e-5)


def test_the_counting_models_are_distributions_that_see_what_they_should(language):
    size = language.vocabulary_size
    for first in (0, 7, int(np.argmin(language.counts))):
        windows = np.stack([np.full(size, first), np.arange(size)], axis=1)
        each = [reference_losses(language, window[None]) for window in windows]
        for name in ("unigram", "bigram"):
            assert sum(math.exp(-one[name]) for one in each) == pytest.approx(1)
    windows, _ = half_of_documents(language, 0, CONTEXT, 10**9)
    found = reference_losses(language, windows)
    shuffled = reference_losses(language.shuffled(0), language.shuffled(0).validation[None, :2000])
    assert found["bigram"] < found["unigram"] - 0.1  # words follow words of their class
    assert shuffled["bigram"] > shuffled["unigram"]  # nothing to learn but the counts
