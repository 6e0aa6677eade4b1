"""How far a measure would move with other documents, queries or pairs: the percentile bootstrap.

For the many documents, queries or pairs that one run is measured on; never for a handful of seeds,
where it promises too much (there: ``statistics.interval``). Every call draws the same resamples, so
that the intervals of two runs on the same sample come from the same draws.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_DRAWS = 1000
_COVERED = (2.5, 97.5)  # percent


class Estimate(NamedTuple):
    """A value with its 95 % interval over what was sampled.

    Where everything that was sampled is equal, say where no question was answered, the bootstrap
    knows no spread and would be certain: there the bounds are NaN.
    """

    value: float
    low: float
    high: float


def mean_of(scores: np.ndarray) -> Estimate:
    """The mean of independent scores.

    Args:
        scores: one a document, query or pair, [n], n >= 1.
    """
    return ratio_of(scores, np.ones(len(scores)))


def ratio_of(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """The mean of what was sampled in clusters, such as losses of tokens in documents.

    Args:
        sums: added up in each cluster, [n], n >= 1.
        counts: how many there were, each above 0, [n].
    """
    weights = _weights(len(counts))
    drawn = (weights @ sums) / (weights @ counts)
    return _estimate(float(np.sum(sums) / np.sum(counts)), drawn)


def correlation_of(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Pearson's correlation over independent pairs of numbers; of ranks, Spearman's.

    Args:
        x: [n], not all equal.
        y: [n], not all equal.
    """
    every = np.vstack([np.ones(len(x)), _weights(len(x))])
    x, y = x - x.mean(), y - y.mean()  # or the sums of squares would cancel to rounding errors
    sums = [every @ product for product in (np.ones_like(x), x, y, x * x, y * y, x * y)]
    return _first(_pearson(*sums))


def correlation_of_pairs(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Pearson's correlation over all pairs of two different items; the items are sampled.

    The pairs of one item are not independent, so items are drawn again and not pairs.

    Args:
        x: symmetric, [n, n]; the diagonal is not looked at. Off it, not all equal.
        y: the same.
    """
    off = ~np.eye(len(x), dtype=bool)
    x, y = np.where(off, x - x[off].mean(), 0), np.where(off, y - y[off].mean(), 0)
    every = np.vstack([np.ones(len(x)), _weights(len(x))])
    products = (off.astype(float), x, y, x * x, y * y, x * y)
    return _first(_pearson(*(((every @ product) * every).sum(axis=1) for product in products)))


def mean_of_pairs(scores: np.ndarray, first: np.ndarray, second: np.ndarray) -> Estimate:
    """The mean of scores that each belong to two of the sampled items.

    Args:
        scores: [n].
        first: number of an item, from 0, [n].
        second: number of another item, [n].
    """
    weights = _weights(int(max(first.max(), second.max())) + 1)
    both = weights[:, first] * weights[:, second]
    total = both.sum(axis=1)
    drawn = (both @ scores)[total > 0] / total[total > 0]
    return _estimate(float(np.mean(scores)), drawn)


def _weights(n: int) -> np.ndarray:
    """How often each of n is drawn, for each of the resamples, [draws, n]."""
    drawn = np.random.default_rng(0).integers(n, size=(_DRAWS, n))
    # Numbers of their own for every resample, so that one count does for all.
    places = drawn + n * np.arange(_DRAWS)[:, None]
    return np.bincount(places.ravel(), minlength=_DRAWS * n).reshape(_DRAWS, n).astype(float)


def _pearson(
    w: np.ndarray, x: np.ndarray, y: np.ndarray, xx: np.ndarray, yy: np.ndarray, xy: np.ndarray
) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold one item only
        return (w * xy - x * y) / np.sqrt((w * xx - x * x) * (w * yy - y * y))


def _first(values: np.ndarray) -> Estimate:
    return _estimate(float(values[0]), values[1:])


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or np.ptp(drawn) == 0:
        return Estimate(value, math.nan, math.nan)
    low, high = np.percentile(drawn, _COVERED)
    return Estimate(value, float(low), float(high))
