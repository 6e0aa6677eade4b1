"""Does the model give tokens the probability that they have? In the mean, by frequency."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from coupled_adam.evaluation.losses import FREQUENCY_BORDERS
from coupled_adam.evaluation.resampling import mean_of
from coupled_adam.evaluation.table import TRAINED, Measure, not_taken, too_few
from coupled_adam.evaluation.usage import class_name
from coupled_adam.gpt import GPT
from coupled_adam.text import Corpus
from coupled_adam.text.windows import spaced_windows

_LOGITS_AT_ONCE = 1 << 26  # numbers
_LEAST_TOKENS = 10


class Predicted(NamedTuple):
    """What a model predicts on the whole, over the positions of a text.

    Attributes:
        probability: mean probability of each token, float64, [V]; padding rows are left out.
        positions: how many positions that is over.
        log_normaliser: root mean square of log Z, the log of the sum of all exp(logit), in nats.
        largest_logit: the largest absolute logit.
    """

    probability: np.ndarray
    positions: int
    log_normaliser: float
    largest_logit: float


@torch.no_grad()
def predicted_shares(model: GPT, corpus: Corpus, tokens: int) -> Predicted:
    """The mean probability of each token over evenly spaced windows of the validation text.

    Args:
        model: on any device.
        corpus: text with at most as many tokens V as the model has rows.
        tokens: about how many positions, as for ``token_losses``.
    """
    windows = spaced_windows(corpus.validation, model.config.context, tokens)
    at_once = max(1, _LOGITS_AT_ONCE // (model.config.context * model.config.vocabulary_size))
    total = torch.zeros(model.config.vocabulary_size, dtype=torch.float64)
    squares, largest = 0.0, 0.0
    for some in np.array_split(windows, math.ceil(len(windows) / at_once)):
        logits = model(torch.from_numpy(some[:, :-1]).to(model.embedding.device)).flatten(0, 1)
        log_z = logits.logsumexp(dim=1, keepdim=True)
        squares += log_z.double().square().sum().item()
        largest = max(largest, logits.abs().max().item())
        # Over a hundred thousand positions float32 would lose the rarest tokens.
        total += (logits - log_z).exp_().sum(dim=0, dtype=torch.float64).cpu()
    positions = windows.shape[0] * model.config.context
    shares = total.numpy()[: corpus.vocabulary_size] / positions
    return Predicted(shares, positions, math.sqrt(squares / positions), largest)


def calibration_rows(predicted: Predicted, frequencies: np.ndarray) -> list[Measure]:
    """How much too probable tokens are for the model, by their frequency in the training text.

    Args:
        predicted: of the validation text.
        frequencies: share of each token in the training text, [V].

    Returns:
        Rows of ``calibration``: the mean over the tokens of a class of log (predicted over true
        frequency), in nats; 0 is right, above it too probable. ``n`` is the number of tokens, and
        the interval is over them. Tokens that the training text lacks are left out. And rows of
        ``log_normaliser`` and ``largest_logit``, as in ``Predicted``.
    """
    number, rows = np.digitize(frequencies, FREQUENCY_BORDERS), []
    for k, (low, high) in enumerate(pairwise([0.0, *FREQUENCY_BORDERS, 1.0])):
        members, name = (number == k) & (frequencies > 0), class_name(low, high)
        n = int(members.sum())
        if n < _LEAST_TOKENS:
            note = too_few(n, _LEAST_TOKENS, "tokens")
            rows.append(not_taken("calibration", name, note, n))
            continue
        # Far below the least that float32 can say, a probability comes out as 0.
        log_ratio = np.log(np.maximum(predicted.probability[members], 1e-45) / frequencies[members])
        rows.append(Measure("calibration", name, TRAINED, *mean_of(log_ratio), n=n))
    for name in ("log_normaliser", "largest_logit"):
        value = getattr(predicted, name)
        rows.append(Measure(name, "", TRAINED, value, n=predicted.positions))
    return rows
