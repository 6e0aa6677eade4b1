"""The loss of a model on a text, by the token that was to be predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from coupled_adam.errors import RefusedError
from coupled_adam.gpt import GPT
from coupled_adam.text import Corpus
from coupled_adam.text.windows import spaced_windows

# Borders of the frequency classes: shares of the training text, so that texts of different
# lengths have the same classes. With 46 million tokens the rarest class occurs up to 45 times.
FREQUENCY_BORDERS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)

_LEAST_DOCUMENTS, _PIECES = 8, 32
_DISCOUNT = 0.75  # of a bigram's count

_LOGITS_AT_ONCE = 1 << 27  # numbers; half a gigabyte in float32


class TokenLosses(NamedTuple):
    """What a model's predictions of a text cost, by the token that was to be predicted.

    Attributes:
        sums: losses in nats, added up over the token's occurrences as a target, float64, [V].
        counts: number of these occurrences, int64, [V].
        mean_hidden: mean of the hidden states that met the output embeddings, float64, [H].
    """

    sums: np.ndarray
    counts: np.ndarray
    mean_hidden: np.ndarray

    @property
    def mean(self) -> float:
        """The loss: the mean over all targets, in nats."""
        return float(self.sums.sum() / self.counts.sum())


@torch.no_grad()
def token_losses(model: GPT, corpus: Corpus, tokens: int) -> TokenLosses:
    """Predict windows of the validation text, evenly spaced, and keep the losses by target.

    Args:
        model: on any device.
        corpus: text with at most as many tokens V as the model has rows.
        tokens: about how many are predicted: whole windows of the model's context, at least one.

    Returns:
        The losses, by token of the corpus.

    Raises:
        RefusedError: if the validation text is shorter than one window, or has tokens that the
            model lacks.
    """
    size = corpus.vocabulary_size
    if size > model.config.vocabulary_size:
        raise RefusedError(
            f"the corpus {corpus.name!r} has {size} tokens, the model only "
            f"{model.config.vocabulary_size}: this model was made for another text"
        )
    windows = spaced_windows(corpus.validation, model.config.context, tokens)
    at_once = max(1, _LOGITS_AT_ONCE // (model.config.context * model.config.vocabulary_size))
    sums, counts = np.zeros(size), np.zeros(size, np.int64)
    hidden_sum = torch.zeros(model.config.width, dtype=torch.float64)
    for some in np.array_split(windows, math.ceil(len(windows) / at_once)):
        both = torch.from_numpy(some).to(model.embedding.device)
        hidden, targets = model.hidden_states(both[:, :-1]), both[:, 1:].flatten()
        losses = F.cross_entropy(model.head(hidden).flatten(0, 1), targets, reduction="none")
        found = targets.cpu().numpy()
        sums += np.bincount(found, losses.double().cpu().numpy(), minlength=size)
        counts += np.bincount(found, minlength=size)
        hidden_sum += hidden.double().sum(dim=(0, 1)).cpu()
    return TokenLosses(sums, counts, hidden_sum.numpy() / counts.sum())


class WindowLosses(NamedTuple):
    """What a model's predictions of some windows cost, one by one.

    Attributes:
        losses: in nats, float64, [windows, T].
        targets: the tokens that were to be predicted, int64, [windows, T].
        documents: the number of the document in which each window begins, int64, [windows].
        predicted: predicted probabilities, added up over all positions, float64, [V].
    """

    losses: np.ndarray
    targets: np.ndarray
    documents: np.ndarray
    predicted: np.ndarray

    @property
    def by_token(self) -> TokenLosses:
        """The same, added up by target; without hidden states."""
        size, targets = len(self.predicted), self.targets.ravel()
        return TokenLosses(
            np.bincount(targets, self.losses.ravel(), minlength=size),
            np.bincount(targets, minlength=size),
            np.zeros(0),
        )


def documents_of(corpus: Corpus, windows: np.ndarray) -> np.ndarray:
    """The number of the validation document in which each window begins.

    Where the validation text has fewer than eight documents, it is cut into 32 pieces of equal
    length that stand for them.

    Args:
        corpus: the text.
        windows: all of ``spaced_windows`` of its validation text, [windows, T + 1].

    Returns:
        Numbers from 0, [windows], int64.
    """
    text, end = corpus.validation, corpus.end_of_text
    ends = np.flatnonzero(text == end) if end is not None else np.zeros(0, np.int64)
    if len(ends) < _LEAST_DOCUMENTS:
        ends = np.linspace(0, len(text), _PIECES + 1).astype(np.int64)[1:]
    starts = np.linspace(0, len(text) - windows.shape[1], len(windows)).astype(np.int64)
    return np.searchsorted(ends, starts)


def half_of_documents(
    corpus: Corpus, half: int, length: int, about: int
) -> tuple[np.ndarray, np.ndarray]:
    """Windows of every second document of the validation text, as many from each, evenly spaced.

    So one half can serve to choose a learning rate, and the other to report what it gave. Every
    document has the same weight, or a single long one would decide. A window belongs to the
    document in which it begins, see ``documents_of``; where a document is short, all its windows
    are taken.

    Args:
        corpus: the text.
        half: 0 for the documents 0, 2, 4, ..., 1 for the others.
        length: predictions T in a window.
        about: about how many tokens are to be predicted, or as many as there are.

    Returns:
        Token ids, [windows, T + 1], int64, and the numbers of their documents, [windows], int64.

    Raises:
        RefusedError: if the half has no whole window.
    """
    windows = spaced_windows(corpus.validation, length, len(corpus.validation))
    documents = documents_of(corpus, windows)
    numbers = [number for number in np.unique(documents) if number % 2 == half]
    if not numbers:
        raise RefusedError(
            f"half {half} of the validation text of {corpus.name!r} has no window of {length} "
            "tokens: use more text or a shorter context"
        )
    each = max(1, about // length // len(numbers))
    mine = []
    for number in numbers:
        of_document = np.flatnonzero(documents == number)
        count = min(each, len(of_document))
        mine.append(of_document[np.linspace(0, len(of_document) - 1, count).astype(np.int64)])
    chosen = np.concatenate(mine)
    return windows[chosen], documents[chosen]


@torch.no_grad()
def window_losses(model: GPT, windows: np.ndarray, documents: np.ndarray) -> WindowLosses:
    """Predict windows and keep every loss.

    Args:
        model: on any device.
        windows: token ids, [windows, T + 1], each below the model's vocabulary size.
        documents: the number of each window's document, [windows].

    Returns:
        The losses, in the order of the windows.
    """
    size, width = model.config.vocabulary_size, windows.shape[1] - 1
    at_once = max(1, _LOGITS_AT_ONCE // 8 // (width * size))
    losses, predicted = [], torch.zeros(size, dtype=torch.float64)
    for some in np.array_split(windows, math.ceil(len(windows) / at_once)):
        both = torch.from_numpy(some).to(model.embedding.device)
        logits = model(both[:, :-1]).flatten(0, 1)
        log_p = F.log_softmax(logits, dim=1)
        targets = both[:, 1:].flatten()
        losses.append(-log_p.gather(1, targets[:, None]).double().cpu().view(len(some), width))
        predicted += log_p.exp_().sum(dim=0, dtype=torch.float64).cpu()
    return WindowLosses(
        torch.cat(losses).numpy(), windows[:, 1:], np.asarray(documents), predicted.numpy()
    )


def reference_losses(corpus: Corpus, windows: np.ndarray) -> dict[str, float]:
    """The losses of a unigram and a smoothed bigram model of the training text, in nats.

    The unigram adds one to every count. The bigram takes 0.75 from every pair's count and gives
    what it takes to the unigram (absolute discounting; Ney, Essen and Kneser, 1994):

        p(b | a) = max(c(a, b) - 0.75, 0) / c(a) + 0.75 N(a) / c(a) p(b),

    with N(a) different tokens after a. A small GPT lies between the two if it has seen little text.

    Args:
        corpus: its training text is counted.
        windows: token ids, [windows, T + 1]; all but the first of each are predicted.

    Returns:
        ``{"unigram": ..., "bigram": ...}``.
    """
    size = corpus.vocabulary_size
    unigram = (corpus.counts + 1) / (corpus.counts.sum() + size)
    train = np.asarray(corpus.train).astype(np.int64)
    pairs, counts = np.unique(train[:-1] * size + train[1:], return_counts=True)
    first = np.bincount(pairs // size, counts, minlength=size)
    followers = np.bincount(pairs // size, minlength=size)
    a, b = windows[:, :-1].ravel(), windows[:, 1:].ravel()
    wanted = a * size + b
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    found = np.where(pairs[at] == wanted, counts[at], 0)
    seen = np.maximum(first[a], 1)
    bigram = np.maximum(found - _DISCOUNT, 0) / seen + _DISCOUNT * followers[a] / seen * unigram[b]
    bigram = np.where(first[a] > 0, bigram, unigram[b])
    return {
        "unigram": float(-np.log(unigram[b]).mean()),
        "bigram": float(-np.log(bigram).mean()),
    }


def loss_by_frequency(
    losses: TokenLosses, frequencies: np.ndarray, borders: Sequence[float] = FREQUENCY_BORDERS
) -> pd.DataFrame:
    """The loss of rare and of frequent tokens.

    Args:
        losses: of a text.
        frequencies: share of each token in the training text, [V].
        borders: of the classes, rising, each in (0, 1); a token on a border belongs to the class
            above it.

    Returns:
        One row a class, rarest first: ``from`` and ``to`` (frequencies), ``vocabulary`` (tokens
        of the vocabulary in it), ``tokens`` (targets in it), ``share`` of the targets in [0, 1],
        and their mean ``loss`` in nats, NaN if there are none. The losses, weighted with the
        shares, add up to the loss of the text.

    Raises:
        ValueError: if frequencies and losses differ in length, or the borders do not rise.
    """
    if len(frequencies) != len(losses.counts):
        raise ValueError(
            f"there are {len(frequencies)} frequencies for {len(losses.counts)} tokens: give one "
            "for each token of the corpus"
        )
    ends = [0.0, *borders, 1.0]
    if not all(low < high for low, high in pairwise(ends)):
        raise ValueError(f"borders is {tuple(borders)}; give rising numbers between 0 and 1")
    number = np.digitize(frequencies, borders)
    rows = []
    for k, (low, high) in enumerate(pairwise(ends)):
        found = int(losses.counts[number == k].sum())
        rows.append(
            {
                "from": low,
                "to": high,
                "vocabulary": int((number == k).sum()),
                "tokens": found,
                "share": found / losses.counts.sum(),
                "loss": losses.sums[number == k].sum() / found if found else math.nan,
            }
        )
    return pd.DataFrame(rows)
