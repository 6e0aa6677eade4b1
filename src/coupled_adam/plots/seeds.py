"""What seaborn draws: means over seeds, with the intervals of ``statistics``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from coupled_adam.plots.style import look
from coupled_adam.statistics import interval


def bounds(values: pd.Series) -> tuple[float, float]:
    """The 95 % interval of the mean of a few seeds, as seaborn's ``errorbar`` wants it."""
    _, low, high = interval(values)
    return low, high


def mean_over_seeds(
    ax: Axes, table: pd.DataFrame, name: str, x: str, y: str, **changes: Any
) -> None:
    """An arm's line: the mean over its seeds; its interval as a band wherever there are two seeds.

    Args:
        ax: the panel.
        table: one row per arm (column optimizer), seed and x.
        name: of the arm.
        x: column of the horizontal axis.
        y: column of the measure; rows without it (NaN) are left out.
        changes: of the line's look, as Matplotlib's keywords.

    Raises:
        RefusedError: if there is no such arm.
    """
    line = look(name) | {"markeredgecolor": look(name)["color"], "linewidth": 2} | changes
    sns.lineplot(
        table[table["optimizer"] == name], x=x, y=y, ax=ax, errorbar=bounds, legend=False,
        err_kws={"alpha": 0.2, "linewidth": 0}, **line,
    )  # fmt: skip


def every_seed(ax: Axes, table: pd.DataFrame, name: str, x: str, y: str) -> None:
    """An arm's seeds as thin lines, arguments as for ``mean_over_seeds``."""
    sns.lineplot(
        table[table["optimizer"] == name], x=x, y=y, ax=ax, units="seed", estimator=None,
        color=look(name)["color"], linewidth=0.7, alpha=0.7, legend=False,
    )  # fmt: skip


def mean_and_seeds(
    ax: Axes, table: pd.DataFrame, name: str, x: str, y: str, *, order: Sequence[str]
) -> None:
    """An arm's dots: each seed, and the mean over them with its interval, for each category.

    Args:
        ax: the panel.
        table: one row per arm (column optimizer), seed and category.
        name: of the arm.
        x: column of the horizontal axis.
        y: column of the vertical axis. One of the two holds the categories, which are joined by a
            line if they are on the horizontal one.
        order: of the categories.

    Raises:
        RefusedError: if there is no such arm.
    """
    arm = look(name)
    part = table[table["optimizer"] == name]
    across = pd.api.types.is_numeric_dtype(part[x])
    common = {"x": x, "y": y, "order": order, "orient": "y" if across else "x", "ax": ax}
    seeds = {"marker": "|", "size": 16, "linewidth": 1.2} if across else {"size": 4, "alpha": 0.5}
    sns.stripplot(part, **common, **seeds, color=arm["color"], jitter=False, legend=False)
    sns.pointplot(
        part, **common, errorbar=bounds, color=arm["color"], markers=arm["marker"],
        markersize=7, markeredgewidth=1, linestyle="none" if across else "-", linewidth=2,
        err_kws={"linewidth": 5 if across else 2, "alpha": 0.35 if across else 0.7},
        label=arm["label"], legend=False,
    )  # fmt: skip


def check_seeds(table: pd.DataFrame, by: list[str], measure: str) -> None:
    """See to it that each mean has an interval; seaborn would draw it without one, or not at all.

    Args:
        table: one row per seed and mean.
        by: the columns that tell the means apart.
        measure: the column whose means are drawn.

    Raises:
        ValueError: if a mean has one seed only, or a value that is not finite.
    """
    for where, values in table.groupby(by)[measure]:
        try:
            interval(values)
        except ValueError as error:
            place = ", ".join(f"{name} {value}" for name, value in zip(by, where, strict=True))
            raise ValueError(f"{measure} at {place}: {error}") from None
