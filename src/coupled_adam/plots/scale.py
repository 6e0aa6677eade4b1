"""Pictures of chapter 13: what changes with the size of the model, and what a run would take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from coupled_adam.plots.style import ACCENT, COLOURS, MARKERS, NAMES, NEUTRAL, panels

# Seconds, and what they are called on an axis.
_DAY = 86_400
_TIMES = {60: "1 minute", 3600: "1 hour", _DAY: "1 day", 30 * _DAY: "30 days", 365 * _DAY: "1 year"}


def by_size(table: pd.DataFrame, labels: Mapping[str, str]) -> None:
    """Lines: measures over the number of parameters, one line an optimizer.

    Args:
        table: columns parameters, optimizer and the measures.
        labels: the measures to show, one panel each, with the label of its axis; each is between
            0 and 1.
    """
    sizes = sorted(table["parameters"].unique())
    with panels(len(labels), width=4.2 * len(labels), height=3.6) as axes:
        for ax, (measure, label) in zip(axes, labels.items(), strict=True):
            for name in _present(table["optimizer"]):
                rows = table[table["optimizer"] == name].sort_values("parameters")
                ax.plot(
                    rows["parameters"], rows[measure], marker=MARKERS[name], markersize=8,
                    color=COLOURS[name], label=NAMES[name],
                )  # fmt: skip
            ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="parameters (millions)", ylabel=label)
            ax.set_xticks(sizes, [f"{size / 1e6:.0f}" for size in sizes])
            ax.minorticks_off()
            ax.margins(x=0.1)
        axes[0].legend(loc="center right")


def path_of_mean(metrics: pd.DataFrame, limit: pd.Series) -> None:
    """Two panels: the length of the mean embedding by step, as it is and as a relative norm.

    Args:
        metrics: columns optimizer, step, mean_norm and relative_mean_norm, the evaluated steps of
            one run an optimizer.
        limit: how far the mean could have moved, by step; dashed in the left panel.
    """
    with panels(2, width=8.4, height=3.9) as (left, right):
        left.plot(limit.index, limit, "--", color=NEUTRAL, label="one full step each time")
        for name in _present(metrics["optimizer"]):
            rows = metrics[metrics["optimizer"] == name].sort_values("step")
            # What lies between two measurements is not known: the lines only guide the eye.
            look = {"color": COLOURS[name], "marker": MARKERS[name], "markersize": 8,
                    "linewidth": 0.8, "linestyle": ":"}  # fmt: skip
            left.plot(rows["step"], rows["mean_norm"], **look, label=NAMES[name])
            right.plot(rows["step"], rows["relative_mean_norm"], **look)
        left.set(xlabel="step", ylabel=r"length of the mean, $\|\mu\|$", ylim=(0, None))
        right.set(xlabel="step", ylabel="relative mean norm", ylim=(0, None))
        left.figure.legend(loc="outside upper center", ncols=3)


def run_times(rates: np.ndarray, operations: Mapping[str, float]) -> None:
    """Lines: how long a run takes at a given speed of computation.

    Args:
        rates: operations a second that are really achieved, [K].
        operations: of the whole run, by name; at most three.
    """
    styles = zip(("-", "--", ":"), ("black", NEUTRAL, ACCENT), strict=True)
    with panels(height=3.8) as (ax,):
        for (name, total), (dash, colour) in zip(operations.items(), styles, strict=False):
            ax.loglog(rates, total / rates, dash, color=colour, linewidth=2.2, label=name)
        low, high = ax.get_ylim()
        shown = {second: word for second, word in _TIMES.items() if low <= second <= high}
        ax.set_yticks(list(shown), list(shown.values()))
        ax.minorticks_off()
        ax.set(xlabel="operations a second, as achieved", ylabel="time of the run")
        ax.legend()


def loss_by_frequency(
    panels_of_tables: Mapping[str, Mapping[str, pd.DataFrame]], guessing: float
) -> None:
    """Panels: the loss of rare and of frequent tokens, one line an optimizer.

    Args:
        panels_of_tables: by title, tables as from ``evaluation.loss_by_frequency`` by optimizer,
            all with the same classes; classes without a loss are left out.
        guessing: loss of a model that gives all tokens the same probability; dashed.
    """
    columns = len(panels_of_tables)
    with panels(columns, width=4.2 * columns, height=3.8, sharey=True) as axes:
        for ax, (title, tables) in zip(axes, panels_of_tables.items(), strict=True):
            ax.axhline(guessing, color=NEUTRAL, linestyle="--", linewidth=1.2, label="guessing")
            for name in _present(tables):
                table = tables[name].dropna(subset="loss")
                ax.plot(
                    table.index, table["loss"], marker=MARKERS[name], markersize=8,
                    color=COLOURS[name], label=NAMES[name],
                )  # fmt: skip
            # A tick at each border, so that a marker stands between the frequencies of its class.
            borders = tables[next(iter(tables))]["to"].iloc[:-1]
            ticks = [f"$10^{{{np.log10(border):.0f}}}$" for border in borders]
            ax.set_xticks(borders.index + 0.5, ticks)
            ax.set(xlabel="frequency of the token", ylim=(0, None), title=title)
        axes[0].set_ylabel("loss (nats)")
        axes[0].legend(loc="lower left")


def _present(names: object) -> list[str]:
    """The optimizers that occur, in the book's order."""
    there = set(names)
    return [name for name in NAMES if name in there]
