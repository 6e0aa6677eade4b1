"""Intervals of few independent values: what a handful of seeds can say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from coupled_adam.extras import needs

with needs("cli"):
    import pandas as pd
    from scipy import stats


class Interval(NamedTuple):
    """A mean over seeds with its two-sided Student t interval."""

    mean: float
    low: float
    high: float


def interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean of a few independent values, with the interval of Student's t.

    Args:
        values: at least two finite numbers, one a seed.
        confidence: in (0, 1).

    Returns:
        Mean and bounds.

    Raises:
        ValueError: for fewer than two values, as one run has no spread, and for infinite values
            or NaN.
    """
    sample = np.asarray(list(values), float)
    if len(sample) < 2:
        raise ValueError(f"an interval needs at least two values (seeds), got {len(sample)}")
    if not np.isfinite(sample).all():
        raise ValueError(f"an interval needs finite values, got {sample.tolist()}")
    half = stats.sem(sample) * stats.t.ppf((1 + confidence) / 2, len(sample) - 1)
    return Interval(float(sample.mean()), float(sample.mean() - half), float(sample.mean() + half))


def summarise(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % interval of each measure over the seeds.

    Args:
        table: rows of several seeds, such as ``experiments.Comparison.final``.
        measures: columns to summarise.

    Returns:
        One row per optimizer and measure, with columns mean, low, high.
    """
    rows = [
        {"optimizer": optimizer, "measure": measure, **interval(part[measure])._asdict()}
        for optimizer, part in table.groupby("optimizer", sort=False)
        for measure in measures
    ]
    return pd.DataFrame(rows).set_index(["optimizer", "measure"])


def paired_difference(table: pd.DataFrame, measure: str, ours: str, theirs: str) -> Interval:
    """Difference of two arms, seed by seed, with its interval.

    The seeds share initial weights and batches, so that the spread between seeds cancels.

    Args:
        table: rows of several seeds, such as ``experiments.Comparison.final``.
        measure: the column to compare.
        ours: optimizer whose value counts positive.
        theirs: optimizer whose value is subtracted.

    Returns:
        Mean of ours minus theirs, with the 95 % interval.
    """
    wide = table.pivot(index="seed", columns="optimizer", values=measure)
    return interval(wide[ours] - wide[theirs])
