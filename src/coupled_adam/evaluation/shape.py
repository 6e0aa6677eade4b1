"""The shape of the cloud and of Adam's second moment, as rows of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coupled_adam import geometry
from coupled_adam.evaluation.table import TRAINED, Measure, not_taken
from coupled_adam.training.folder import read_checkpoint


def shape_rows(vectors: Mapping[str, Tensor], counts: np.ndarray) -> list[Measure]:
    """Every measure of ``geometry.summary``, and Iso with the other convention of signs.

    Args:
        vectors: by variant, each [V, H].
        counts: occurrences of each token in the training text, [V].

    Returns:
        Rows named after the functions of ``geometry``; ``n`` is the number of tokens. Nothing is
        sampled, so that there is no interval. ``isotropy`` has two sets: ``larger Z`` is
        ``geometry.isotropy``, and ``as they come`` what the eigenvectors' own signs give.
    """
    rows = []
    for variant, vector in vectors.items():
        n = len(vector)
        for measure, value in geometry.summary(vector, counts).items():
            direction = "larger Z" if measure == "isotropy" else ""
            rows.append(Measure(measure, direction, variant, value, n=n))
        value, low, high = isotropy_by_sign(vector)
        note = "low and high: over all choices of signs"
        rows.append(Measure("isotropy", "as they come", variant, value, low, high, n, note=note))
    return rows


def isotropy_by_sign(embedding: Tensor) -> tuple[float, float, float]:
    """Iso as the paper's code takes it, and between which values the signs alone move it.

    An eigenvector c has no sign of its own, but Z(c) and Z(-c) differ, and that code takes the one
    that its solver returns. ``geometry.isotropy`` takes the larger Z instead.

    Args:
        embedding: [V, H].

    Returns:
        Iso with the signs of this machine's solver, and the least and the greatest value that any
        choice of signs gives, each in (0, 1].
    """
    rows = embedding.detach().double()
    _, directions = torch.linalg.eigh(rows.T @ rows)
    along = rows @ directions
    log_z = torch.stack([torch.logsumexp(along, dim=0), torch.logsumexp(-along, dim=0)]).numpy()
    came = float(np.exp(log_z[0].min() - log_z[0].max()))
    return came, math.exp(-_widest(log_z)), math.exp(-_narrowest(log_z))


def _widest(pairs: np.ndarray) -> float:
    """The greatest range that one value from each column can have."""
    low, high = pairs.min(axis=0), pairs.max(axis=0)
    # The least and the greatest value cannot both come from one column: then one gives way.
    ends = np.argmin(low), np.argmax(high)
    if ends[0] != ends[1]:
        return float(high[ends[1]] - low[ends[0]])
    if len(low) == 1:
        return 0.0
    others = np.arange(len(low)) != ends[0]
    column = ends[0]
    return float(max(high[others].max() - low[column], high[column] - low[others].min()))


def _narrowest(pairs: np.ndarray) -> float:
    """The least range that one value from each column can have."""
    values, columns = pairs.T.ravel(), np.repeat(np.arange(pairs.shape[1]), len(pairs))
    order = np.argsort(values, kind="stable")
    inside, seen, start, best = np.zeros(pairs.shape[1], int), 0, 0, math.inf
    for place in order:  # the end of a stretch of sorted values; its start follows
        seen += inside[columns[place]] == 0
        inside[columns[place]] += 1
        while seen == pairs.shape[1]:
            best = min(best, float(values[place] - values[order[start]]))
            inside[columns[order[start]]] -= 1
            seen -= inside[columns[order[start]]] == 0
            start += 1
    return best


def second_moment(folder: str | Path) -> np.ndarray | None:
    """Adam's second moment of the output embeddings in a run's checkpoint, not bias-corrected.

    Args:
        folder: a run folder with a checkpoint.

    Returns:
        [V, H], or [H] if coupled, float64; None if the embeddings were trained without one.
    """
    # The embeddings' optimizer comes first, and so does their group; the output embeddings, if
    # they are a matrix of their own, come last in it.
    first = read_checkpoint(Path(folder))["optimizers"][0]
    state = first["state"].get(first["param_groups"][0]["params"][-1], {})
    return state["exp_avg_sq"].double().numpy() if "exp_avg_sq" in state else None


def signal_to_noise(moment: np.ndarray, axis: int) -> float:
    """Squared mean over variance of v along an axis, the mean over the other one.

    SlimAdam (arXiv 2503.01843) keeps one number for an axis where this exceeds 1. A constant
    factor, such as the correction of Adam's bias, changes nothing.

    Args:
        moment: [V, H].
        axis: 0, over the vocabulary, or 1, over the width.

    Returns:
        From 0; infinite where v is constant along the axis.
    """
    mean, variance = moment.mean(axis=axis), moment.var(axis=axis)
    if (variance == 0).any():
        return math.inf
    return float(np.mean(mean**2 / variance))


def second_moment_rows(moment: np.ndarray | None) -> list[Measure]:
    """The signal-to-noise ratio of Adam's second moment over either axis.

    Args:
        moment: as from ``second_moment``, without rows that belong to no token.

    Returns:
        Rows of ``v_signal_to_noise``; ``n`` is how many numbers a mean is over.
    """
    name, axes = "v_signal_to_noise", ("over the vocabulary", "over the width")
    if moment is None:
        return [not_taken(name, axis, "these embeddings have no second moment") for axis in axes]
    rows = []
    for number, axis in enumerate(axes):
        if moment.ndim == 1 and number == 0:
            rows.append(not_taken(name, axis, "shared by the whole vocabulary: no noise", 1))
            continue
        matrix = np.atleast_2d(moment)
        value, n = signal_to_noise(matrix, number), matrix.shape[number]
        rows.append(
            Measure(name, axis, TRAINED, value, n=n)
            if math.isfinite(value)
            else not_taken(name, axis, "not defined: some of v are all equal", n)
        )
    return rows
