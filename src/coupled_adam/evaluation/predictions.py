"""How well the model predicts, as rows of the table: loss and calibration, by frequency."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd

from coupled_adam.evaluation.losses import (
    FREQUENCY_BORDERS,
    WindowLosses,
    documents_of,
    reference_losses,
    window_losses,
)
from coupled_adam.evaluation.resampling import mean_of, ratio_of
from coupled_adam.evaluation.table import (
    BIGRAM,
    TRAINED,
    UNIGRAM,
    UNTRAINED,
    Measure,
    class_name,
    not_taken,
    too_few,
)
from coupled_adam.gpt import GPT
from coupled_adam.text import Corpus
from coupled_adam.text.windows import spaced_windows

_LEAST_TOKENS = 10


def prediction_rows(
    model: GPT, corpus: Corpus, tokens: int, metrics: pd.DataFrame
) -> list[Measure]:
    """Loss and calibration on the windows of ``token_losses``.

    Args:
        model: on any device.
        corpus: the text that it was trained on.
        tokens: about how many validation tokens are predicted.
        metrics: of the run, as ``training.Run.metrics``.

    Returns:
        Rows of ``loss`` in nats, of all targets and of each class of their frequency in the
        training text, with an interval over the validation documents, of which ``n`` is the number
        (where they are fewer than eight: over 32 equal pieces of the text); chance is guessing
        among all tokens. Beside them the untrained model, and two that only count.

        Rows of ``calibration``, by class of frequency: the mean over its tokens of the log of
        predicted over true frequency, in nats; 0 is right, above it too probable. The true
        frequency is that of the training text, tokens that it lacks are left out, the interval is
        over the ``n`` tokens.
    """
    windows = spaced_windows(corpus.validation, model.config.context, tokens)
    found = window_losses(model, windows, documents_of(corpus, windows))
    rows = _loss_rows(found, corpus, metrics)
    counted = reference_losses(corpus, windows)
    chance, n = math.log(corpus.vocabulary_size), len(np.unique(found.documents))
    for variant in (UNIGRAM, BIGRAM):
        rows.append(Measure("loss", "all", variant, counted[variant], n=n, chance=chance))
    return rows + _calibration_rows(found, corpus)


def _loss_rows(found: WindowLosses, corpus: Corpus, metrics: pd.DataFrame) -> list[Measure]:
    chance = math.log(corpus.vocabulary_size)
    _, document = np.unique(found.documents, return_inverse=True)
    document = np.broadcast_to(document.reshape(-1, 1), found.targets.shape)
    target_class = np.digitize(corpus.frequencies, FREQUENCY_BORDERS)[found.targets]
    everything = np.ones(found.targets.shape, bool)
    rows = []
    for name, members in [("all", everything), *_classes(target_class)]:
        # Only documents that have such a target can be drawn: the others say nothing about it.
        tokens = np.bincount(document[members])
        sums = np.bincount(document[members], found.losses[members])[tokens > 0]
        tokens = tokens[tokens > 0]
        if not len(tokens):
            rows.append(not_taken("loss", name, "no token of this class was to be predicted"))
            continue
        value = ratio_of(sums, tokens)
        note = f"{int(tokens.sum()):,} tokens"
        rows.append(Measure("loss", name, TRAINED, *value, len(tokens), chance, note))
    start = metrics.loc[metrics["step"] == 0, "validation_loss"]
    if len(start):
        note = "on the validation tokens of the training"
        rows.append(Measure("loss", "all", UNTRAINED, float(start.iloc[0]), note=note))
    return rows


def _calibration_rows(found: WindowLosses, corpus: Corpus) -> list[Measure]:
    shares = found.predicted[: corpus.vocabulary_size] / found.targets.size
    frequencies, rows = corpus.frequencies, []
    for name, members in _classes(np.digitize(frequencies, FREQUENCY_BORDERS)):
        members = members & (frequencies > 0)
        n = int(members.sum())
        if n < _LEAST_TOKENS:
            note = too_few(n, _LEAST_TOKENS, "tokens")
            rows.append(not_taken("calibration", name, note, n))
            continue
        # Far below the least that float32 can say, a probability comes out as 0.
        log_ratio = np.log(np.maximum(shares[members], 1e-45) / frequencies[members])
        rows.append(Measure("calibration", name, TRAINED, *mean_of(log_ratio), n=n))
    return rows


def _classes(number: np.ndarray) -> list[tuple[str, np.ndarray]]:
    borders = pairwise([0.0, *FREQUENCY_BORDERS, 1.0])
    return [(class_name(low, high), number == k) for k, (low, high) in enumerate(borders)]
