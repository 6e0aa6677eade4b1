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
