"""Pictures of chapter 09: what embeddings are good for, beside what needs none."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coupled_adam import palette
from coupled_adam.palette import NEUTRAL
from coupled_adam.plots.seeds import check_seeds
from coupled_adam.plots.style import look, panels, told_apart
from coupled_adam.statistics import interval

_HALF_A_ROW = 0.4
_LINES: list[tuple[Literal["dotted", "dashed", "solid"], str]] = [
    ("dotted", NEUTRAL),
    ("dashed", "black"),
    ("solid", "black"),
]


def beside_baselines(table: pd.DataFrame, baselines: pd.DataFrame, label: str) -> Figure:
    """Arms beneath each other within each row: every seed, mean and interval, and baselines.

    Args:
        table: columns panel, row, optimizer, seed, value; panels and rows stand in the order in
            which they first occur. At least two seeds of each arm in a row.
        baselines: columns panel, row, name, value; at most three names, each with a line of its own
            across the row. Several values of one name in a row are averaged.
        label: of the horizontal axis.

    Returns:
        The figure, with the legend below.

    Raises:
        RefusedError: for an arm that does not exist.
        ValueError: if a mean would be that of one seed, a value is infinite, or there are more
            baselines than can be told apart.
    """
    check_seeds(table, ["panel", "row", "optimizer"], "value")
    titles, rows = (list(dict.fromkeys(table[name])) for name in ("panel", "row"))
    arms = palette.in_order(table["optimizer"])
    lines = told_apart({name: name for name in baselines["name"]}, _LINES)
    height = 1.6 + len(rows) * (0.3 + 0.13 * len(arms))
    with panels(len(titles), width=2.4 + 3.2 * len(titles), height=height, sharey=True) as (
        figure,
        axes,
    ):
        for ax, title in zip(axes, titles, strict=True):
            ours = table[table["panel"] == title]
            beside = baselines[baselines["panel"] == title]
            for name, _, (dash, colour) in lines:
                means = beside[beside["name"] == name].groupby("row")["value"].mean()
                places = np.array([rows.index(row) for row in means.index])
                ax.vlines(
                    means, places - _HALF_A_ROW, places + _HALF_A_ROW,
                    linestyles=dash, colors=colour, linewidth=1.6, label=name,
                )  # fmt: skip
            for number, name in enumerate(arms):
                offset = 0.6 * ((number + 0.5) / len(arms) - 0.5)
                _one_arm(ax, ours[ours["optimizer"] == name], name, rows, offset)
            ax.set(title=title, xlabel=label, ylim=(len(rows) - 0.5, -0.5))
            ax.set_yticks(range(len(rows)), rows)
            ax.tick_params(axis="y", length=0)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _one_arm(ax: Axes, part: pd.DataFrame, name: str, rows: list[str], offset: float) -> None:
    """The seeds of an arm as strokes, their means and intervals."""
    style = look(name)
    places = part["row"].map(rows.index) + offset
    ax.plot(part["value"], places, "|", color=style["color"], markersize=7, alpha=0.6)
    found = part.groupby("row")["value"].apply(interval)
    where = np.array([rows.index(row) + offset for row in found.index])
    means, low, high = (np.array(column) for column in zip(*found, strict=True))
    ax.errorbar(
        means, where, xerr=[means - low, high - means], **style,
        linestyle="none", markersize=6, elinewidth=2,
    )  # fmt: skip
