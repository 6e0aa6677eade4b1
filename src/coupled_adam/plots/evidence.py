"""Pictures of chapter 10: each arm at its own best learning rate, over settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coupled_adam import palette
from coupled_adam.palette import NEUTRAL
from coupled_adam.plots.seeds import check_seeds, mean_and_seeds
from coupled_adam.plots.style import look, panels, told_apart

_SETTINGS = "#333333"  # no arm's colour


def tuning_curves(tables: Mapping[str, pd.DataFrame], column: str = "loss/tuning") -> Figure:
    """The loss against the embeddings' learning rate, one line an arm, one panel a setting.

    Args:
        tables: by the title of the panel; columns stage, optimizer, multiplier, seed and
            ``column``, as from ``experiments.evidence``. Rows of the stage "tuning" are drawn:
            seeds as dots, their mean as a line with a ring around its least value.
        column: the measure, in nats.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    with panels(len(tables), width=4.4 * len(tables), height=4.2) as (figure, axes):
        for ax, (title, table) in zip(axes, tables.items(), strict=True):
            tuning = table[table["stage"] == "tuning"]
            for name in palette.in_order(tuning["optimizer"]):
                style = look(name)
                part = tuning[tuning["optimizer"] == name]
                mean = part.groupby("multiplier")[column].mean()
                ax.plot(part["multiplier"], part[column], ".", color=style["color"], alpha=0.5)
                ax.plot(mean.index, mean, **style, markersize=5)
                ring: dict[str, Any] = {
                    "markersize": 13,
                    "fillstyle": "none",
                    "markeredgewidth": 1.5,
                }
                ax.plot(mean.idxmin(), mean.min(), "o", color=style["color"], **ring)
            ax.set(xscale="log", title=title, xlabel="multiplier of the embeddings' rate")
            ticks = sorted(tuning["multiplier"].unique())
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        axes[0].set_ylabel("loss of the tuning half (nats)")
        _legend_below(figure, *axes)
    return figure


def _legend_below(figure: Figure, *axes: Axes) -> None:
    """The legend of some panels under the whole figure: within it, it would cover lines."""
    named: dict[str, Any] = {}  # an arm of two panels stands there once
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(
        named.values(), list(named), loc="outside lower center", ncols=2, fontsize=10, frameon=False
    )


def gains_by_setting(table: pd.DataFrame, settings: Sequence[str], label: str) -> Figure:
    """How much lower each arm's loss is than Adam's: every pair of seeds, mean and interval.

    Args:
        table: columns optimizer, setting, seed, gain (nats, positive if the loss is lower). At
            least two seeds of each arm and setting.
        settings: in the order of the horizontal axis.
        label: of that axis.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
        ValueError: if a mean would be that of one seed, or a value is infinite.
    """
    check_seeds(table, ["optimizer", "setting"], "gain")
    with panels(width=2.4 + 1.7 * len(settings), height=4.2) as (figure, (ax,)):
        ax.axhline(0, color=NEUTRAL, linewidth=1.2)
        for name in palette.in_order(table["optimizer"]):
            mean_and_seeds(ax, table, name, "setting", "gain", order=list(settings))
        ax.set(xlabel=label, ylabel="gain (nats)")
        _legend_below(figure, ax)
    return figure


def in_rows(table: pd.DataFrame, measures: Mapping[str, str], *, one_scale: bool = False) -> Figure:
    """Many arms or settings beneath each other: every seed, mean and interval.

    Args:
        table: columns optimizer, row (what a row is called; rows stand in the order in which they
            first occur), seed, and the measures. At least two seeds of each arm in a row.
        measures: columns to draw, one panel each, with the label of its axis.
        one_scale: whether the panels share their horizontal axis.

    Returns:
        The figure: a line at zero in each panel whose values reach it, and a legend if a row holds
        more than one arm.

    Raises:
        RefusedError: for an arm that does not exist.
        ValueError: if a mean would be that of one seed, or a value is infinite.
    """
    rows = list(dict.fromkeys(table["row"]))
    arms = palette.in_order(table["optimizer"])
    for measure in measures:
        check_seeds(table, ["optimizer", "row"], measure)
    width, height = 3.0 + 3.4 * len(measures), 1.6 + 0.36 * len(rows)
    shared = {"sharey": True, "sharex": one_scale}
    with panels(len(measures), width=width, height=height, **shared) as (figure, axes):
        for ax, (measure, label) in zip(axes, measures.items(), strict=True):
            for name in arms:
                mean_and_seeds(ax, table, name, measure, "row", order=rows)
            if table[measure].min() <= 0 <= table[measure].max():
                ax.axvline(0, color=NEUTRAL, linewidth=1.2, zorder=0.5)
            ax.set(xlabel=label, ylabel="")
            ax.tick_params(axis="y", length=0)
        if (table.groupby("row")["optimizer"].nunique() > 1).any():
            _legend_below(figure, axes[0])
    return figure


def within_memory(occurrences: np.ndarray) -> Figure:
    """How often each token occurs within the memory of Adam's second moment.

    Args:
        occurrences: n of each token, [V], at least 0; zeros are left out of the picture.

    Returns:
        The figure: tokens by rank, with a line at one occurrence.
    """
    ranked = np.sort(occurrences)[::-1]
    seen = ranked[ranked > 0]
    with panels(height=3.4) as (figure, (ax,)):
        ax.plot(np.arange(1, len(seen) + 1), seen, color=palette.colour("adamw"), linewidth=2)
        ax.axhline(1, color=NEUTRAL, linestyle="--", linewidth=1.2)
        ax.fill_between([1, len(ranked)], 1e-3, 1, color=NEUTRAL, alpha=0.12, linewidth=0)
        ax.set(
            xscale="log", yscale="log", ylim=(1e-3, 1e6), xlim=(1, len(ranked)),
            xlabel="rank of the token", ylabel="occurrences $n_i$ in memory",
        )  # fmt: skip
    return figure


def against_memory(table: pd.DataFrame, measures: Mapping[str, str]) -> Figure:
    """Settings against the share of the vocabulary that is rare within Adam's memory.

    Args:
        table: one row a setting: columns rare_share (in [0, 1]), varied (what was varied, which
            gives the marker) and the measures; NaN is left out.
        measures: columns to draw, one panel each, with the label of its axis.

    Returns:
        The figure.

    Raises:
        ValueError: if more than nine things were varied.
    """
    kinds = {kind: kind for kind in table["varied"]}
    markers = told_apart(kinds, ["o", "s", "^", "D", "v", "P", "X", "*", "<"])
    with panels(len(measures), width=4.6 * len(measures), height=4.6) as (figure, axes):
        for ax, (measure, label) in zip(axes, measures.items(), strict=True):
            ax.axhline(0, color=NEUTRAL, linewidth=1.2)
            for kind, _, marker in markers:
                part = table[table["varied"] == kind]
                ax.plot(
                    part["rare_share"], part[measure], marker, markersize=8, label=kind,
                    color=_SETTINGS, fillstyle="none", markeredgewidth=1.7,
                )  # fmt: skip
            ax.set(
                xlabel="share of the vocabulary with $n_i < 1$", ylabel=label, xlim=(-0.03, 1.03)
            )
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure
