"""Pictures of chapter 13: what changes with the size of the model, and what a run would take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from coupled_adam import palette
from coupled_adam.palette import ACCENT, NEUTRAL
from coupled_adam.plots.style import look, panels, told_apart

# Seconds, and what they are called on an axis.
_DAY = 86_400
_TIMES = {60: "1 minute", 3600: "1 hour", _DAY: "1 day", 30 * _DAY: "30 days", 365 * _DAY: "1 year"}


def by_size(table: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Lines: measures over the number of parameters, one line an optimizer.

    Args:
        table: columns parameters, optimizer and the measures.
        labels: the measures to show, one panel each, with the label of its axis; each is between
            0 and 1.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    sizes = sorted(table["parameters"].unique())
    with panels(len(labels), width=4.2 * len(labels), height=3.6) as (figure, axes):
        for ax, (measure, label) in zip(axes, labels.items(), strict=True):
            for name in palette.in_order(table["optimizer"]):
                rows = table[table["optimizer"] == name].sort_values("parameters")
                ax.plot(rows["parameters"], rows[measure], **look(name), markersize=8)
            ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="parameters (millions)", ylabel=label)
            ax.set_xticks(sizes, [f"{size / 1e6:.0f}" for size in sizes])
            ax.minorticks_off()
            ax.margins(x=0.1)
        axes[0].legend(loc="center right")
    return figure


def path_of_mean(metrics: pd.DataFrame, limit: pd.Series) -> Figure:
    """Two panels: the length of the mean embedding by step, as it is and as a relative norm.

    Args:
        metrics: columns optimizer, step, mean_norm and relative_mean_norm, the evaluated steps of
            one run an optimizer.
        limit: how far the mean could have moved, by step; dashed in the left panel.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    with panels(2, width=8.4, height=3.9) as (figure, (left, right)):
        left.plot(limit.index, limit, "--", color=NEUTRAL, label="one full step each time")
        for name in palette.in_order(metrics["optimizer"]):
            rows = metrics[metrics["optimizer"] == name].sort_values("step")
            # What lies between two measurements is not known: the lines only guide the eye.
            guide = look(name) | {"markersize": 8, "linewidth": 0.8, "linestyle": ":"}
            left.plot(rows["step"], rows["mean_norm"], **guide)
            right.plot(rows["step"], rows["relative_mean_norm"], **guide | {"label": None})
        left.set(xlabel="step", ylabel=r"length of the mean, $\|\mu\|$", ylim=(0, None))
        right.set(xlabel="step", ylabel="relative mean norm", ylim=(0, None))
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def run_times(rates: np.ndarray, operations: Mapping[str, float]) -> Figure:
    """Lines: how long a run takes at a given speed of computation.

    Args:
        rates: operations a second that are really achieved, [K].
        operations: of the whole run, by name; at most three.

    Returns:
        The figure.

    Raises:
        ValueError: for more than can be told apart.
    """
    styles = [("-", "black"), ("--", NEUTRAL), (":", ACCENT)]
    with panels(height=3.8) as (figure, (ax,)):
        for name, total, (dash, colour) in told_apart(operations, styles):
            ax.loglog(rates, total / rates, dash, color=colour, linewidth=2.2, label=name)
        low, high = ax.get_ylim()
        shown = {second: word for second, word in _TIMES.items() if low <= second <= high}
        ax.set_yticks(list(shown), list(shown.values()))
        ax.minorticks_off()
        ax.set(xlabel="operations a second, as achieved", ylabel="time of the run")
        ax.legend()
    return figure


def loss_by_frequency(
    panels_of_tables: Mapping[str, Mapping[str, pd.DataFrame]], guessing: float
) -> Figure:
    """Panels: the loss of rare and of frequent tokens, one line an optimizer.

    Args:
        panels_of_tables: by title, tables as from ``evaluation.loss_by_frequency`` by optimizer,
            all with the same classes; classes without a loss are left out.
        guessing: loss of a model that gives all tokens the same probability; dashed.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    columns = len(panels_of_tables)
    with panels(columns, width=4.2 * columns, height=3.8, sharey=True) as (figure, axes):
        for ax, (title, tables) in zip(axes, panels_of_tables.items(), strict=True):
            ax.axhline(guessing, color=NEUTRAL, linestyle="--", linewidth=1.2, label="guessing")
            for name in palette.in_order(tables):
                table = tables[name].dropna(subset="loss")
                ax.plot(table.index, table["loss"], **look(name), markersize=8)
            # A tick at each border, so that a marker stands between the frequencies of its class.
            borders = tables[next(iter(tables))]["to"].iloc[:-1]
            ticks = [f"$10^{{{np.log10(border):.0f}}}$" for border in borders]
            ax.set_xticks(borders.index + 0.5, ticks)
            ax.set(xlabel="frequency of the token", ylim=(0, None), title=title)
        axes[0].set_ylabel("loss (nats)")
        axes[0].legend(loc="lower left")
    return figure
