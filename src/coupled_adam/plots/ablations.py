"""Pictures of chapter 11: what goes with each piece of Coupled Adam that is taken away."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from coupled_adam import palette
from coupled_adam.palette import ACCENT, NEUTRAL
from coupled_adam.plots.seeds import bounds, check_seeds
from coupled_adam.plots.style import look, panels


def by_number(table: pd.DataFrame, number: str, label: str, measures: Mapping[str, str]) -> Figure:
    """Arms that differ in one number: every seed, mean and interval against that number.

    Args:
        table: columns optimizer, seed, ``number`` (one value for each arm) and the measures. At
            least two seeds of each arm.
        number: column of the horizontal axis.
        label: of that axis.
        measures: columns to draw, one panel each, with the label of its axis.

    Returns:
        The figure: the means are joined by a line, and the legend names the arms that have a
        colour of their own; the others are told by their number.

    Raises:
        RefusedError: for an arm that does not exist.
        ValueError: if a mean would be that of one seed, a value is infinite, or an arm has two
            numbers.
    """
    arms = palette.in_order(table["optimizer"])
    if (table.groupby("optimizer")[number].nunique() > 1).any():
        raise ValueError(f"each arm has one value of {number}")
    coloured = {one.name for one in palette.coloured()}
    places = table.groupby("optimizer")[number].first()
    with panels(len(measures), width=4.6 * len(measures), height=4.2) as (figure, axes):
        for ax, (measure, title) in zip(axes, measures.items(), strict=True):
            check_seeds(table, ["optimizer", number], measure)
            means = table.groupby(number)[measure].mean()
            ax.plot(means.index, means, color=NEUTRAL, linewidth=1.2, zorder=1)
            for name in arms:
                style, values = look(name), table.loc[table["optimizer"] == name, measure]
                if name not in coloured:
                    style["label"] = "_nolegend_"
                at, mean = places[name], values.mean()
                low, high = bounds(values)
                seeds = {"color": style["color"], "alpha": 0.5, "markersize": 6}
                ax.plot([at] * len(values), values, ".", **seeds)
                ax.errorbar(
                    [at], [mean], [[mean - low], [high - mean]], **style, linestyle="none",
                    markersize=8, capsize=5, elinewidth=2,
                )  # fmt: skip
            if table[measure].min() <= 0:
                ax.axhline(0, color=NEUTRAL, linewidth=1.2, zorder=0.5)
            ax.set(xlabel=label, ylabel=title, xticks=sorted(places))
            ax.set_xticklabels([f"{place:g}" for place in sorted(places)])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def ways_of_groups(ways: pd.Series, limits: tuple[float, float]) -> Figure:
    """Bars: how far each group of tokens has gone along one direction, and the mean of them all.

    Args:
        ways: by the name of the group, in learning rates; groups of equal size.
        limits: of the axis, the same in pictures that are to be compared.

    Returns:
        The figure: the groups in grey, their mean beside them.
    """
    with panels(width=6.0, height=3.4) as (figure, (ax,)):
        bars = ax.bar([*ways.index, "mean of all"], [*ways, ways.mean()], color=NEUTRAL)
        bars[-1].set_color(ACCENT)
        ax.bar_label(bars, fmt="%.1f", padding=2)
        ax.axhline(0, color=NEUTRAL, linewidth=1.2)
        ax.set(ylim=limits, ylabel="way (learning rates)")
        ax.grid(axis="x", visible=False)
    return figure
