"""Drift: how far the mean embedding has moved, where to, and who has carried it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Drift(NamedTuple):
    """How the mean output embedding has moved since the run began.

    Attributes:
        distance: length of its displacement, in the units of the embeddings.
        against_hidden: cosine of the displacement with minus the sign of the mean hidden state
            that the trained model has on the validation text; near 1 if the mean went where
            Adam's absent tokens pull it.
        shares: part of the displacement that each quarter of the vocabulary contributes, rarest
            first; they add up to 1.
    """

    distance: float
    against_hidden: float
    shares: tuple[float, ...]


def measure_drift(
    start: np.ndarray, end: np.ndarray, counts: np.ndarray, mean_hidden: np.ndarray
) -> Drift | None:
    """How the mean embedding has moved between two matrices.

    Args:
        start: output embeddings before, [V, H].
        end: output embeddings after, [V, H].
        counts: occurrences of each token in the training text, [V].
        mean_hidden: mean hidden state of the trained model, [H].

    Returns:
        The drift, or None if the mean has not moved at all.
    """
    before, after = np.asarray(start, float), np.asarray(end, float)
    displacement = after.mean(axis=0) - before.mean(axis=0)
    distance = float(np.linalg.norm(displacement))
    if distance == 0:
        return None
    shares = displacement_shares(before, after, counts)
    against_hidden = cosine(displacement, -np.sign(mean_hidden))
    return Drift(distance, against_hidden, tuple(shares.tolist()))


def displacement_shares(
    start: np.ndarray, end: np.ndarray, counts: np.ndarray, bins: int = 4
) -> np.ndarray:
    """Who carries the mean embedding: each frequency class's part of the mean's displacement.

    Args:
        start: embeddings before, [V, H].
        end: embeddings after, [V, H].
        counts: occurrences of each token in the training text, [V].
        bins: number of equally large classes, rarest first.

    Returns:
        Shares, [bins]; they add up to one.
    """
    moved = np.asarray(end, float) - np.asarray(start, float)
    total = moved.sum(axis=0)
    classes = np.array_split(np.argsort(counts, kind="stable"), bins)
    return np.array([moved[members].sum(axis=0) @ total for members in classes]) / (total @ total)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors, in [-1, 1].

    Args:
        a: shape [H].
        b: shape [H].

    Returns:
        Their cosine.

    Raises:
        ValueError: if one of them is zero.
    """
    product = np.linalg.norm(a) * np.linalg.norm(b)
    if product == 0:
        raise ValueError("the cosine of a zero vector is not defined")
    return float(a @ b / product)
