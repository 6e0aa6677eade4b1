"""Pictures of chapter 05: where the cloud of embeddings lies, and what that does to cosines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from coupled_adam import palette
from coupled_adam.palette import ACCENT, NEUTRAL
from coupled_adam.plots.seeds import mean_and_seeds
from coupled_adam.plots.style import panels, told_apart


def mean_cosine_of_shift(
    shifts: np.ndarray, measured: np.ndarray, closed_form: Callable[[np.ndarray], np.ndarray]
) -> Figure:
    """Dots on a line: the mean cosine of shifted clouds, measured and computed.

    Args:
        shifts: length of the shift over the size of the cloud, [K].
        measured: mean cosine of each cloud, [K].
        closed_form: from shifts to mean cosines.

    Returns:
        The figure.
    """
    fine = np.linspace(0, max(shifts), 200)
    with panels(height=3.2) as (figure, (ax,)):
        ax.plot(fine, closed_form(fine), color=NEUTRAL, label="closed form")
        ax.plot(shifts, measured, "D", color=ACCENT, label="measured on random clouds")
        ax.set(xlabel=r"shift, $\|\mu\|$ over the size of the cloud", ylabel="mean cosine")
        ax.legend()
    return figure


def from_the_side(
    clouds: Mapping[str, np.ndarray], direction: np.ndarray, counts: np.ndarray, seed: int = 0
) -> Figure:
    """Panels, above each other: tokens in the plane of one given direction and one drawn by chance.

    Args:
        clouds: embeddings [V, H] by title; the panels share their axes.
        direction: horizontal axis, unit length, [H].
        counts: occurrences of each token, [V]; the darker and the larger, the more frequent.
        seed: of the vertical axis, a random direction orthogonal to the first.

    Returns:
        The figure.
    """
    other = np.random.default_rng(seed).standard_normal(len(direction))
    other -= (other @ direction) * direction
    other /= np.linalg.norm(other)
    rare_first = np.argsort(counts, kind="stable")
    colour = np.log10(np.maximum(counts[rare_first], 1))
    rows = len(clouds)
    with panels(rows=rows, width=7.6, height=1.1 * rows + 0.8, sharex=True, sharey=True) as (
        figure,
        axes,
    ):
        for ax, (title, cloud) in zip(axes, clouds.items(), strict=True):
            points = ax.scatter(
                (cloud @ direction)[rare_first], (cloud @ other)[rare_first],
                c=colour, s=2 + 3 * colour, cmap="viridis_r", linewidths=0,
            )  # fmt: skip
            ax.axvline(0, color="black", linewidth=0.8)
            ax.plot(0, 0, "+", color="black", markersize=22, markeredgewidth=2)
            # The same scale on both axes, or the cloud would look rounder than it is.
            ax.set_aspect("equal")
            ax.set(title=title)
        axes[-1].set_xlabel("along the drift (the line: origin)")
        figure.supylabel("random direction", fontsize="medium")
        bar = figure.colorbar(points, ax=axes, format="$10^{%d}$", shrink=0.9)
        bar.set_ticks(range(int(colour.max()) + 1))
        bar.set_label("occurrences")
        bar.ax.tick_params(labelsize=12)
    return figure


def along_the_drift(positions: Mapping[str, np.ndarray]) -> Figure:
    """Lines: where each frequency class lies along the drift, the rarest first.

    Args:
        positions: mean coordinate of each class, [classes], by name; at most three.

    Returns:
        The figure.

    Raises:
        ValueError: for more than can be told apart.
    """
    styles = [("o-", palette.colour("adamw")), ("s--", NEUTRAL), ("D:", ACCENT)]
    with panels(height=3.2) as (figure, (ax,)):
        for name, values, (dash, colour) in told_apart(positions, styles):
            ax.plot(np.arange(1, len(values) + 1), values, dash, color=colour, label=name)
            ticks = [f"{k}" for k in range(2, len(values))]
            ax.set_xticks(
                np.arange(1, len(values) + 1), ["1\nrarest", *ticks, f"{len(values)}\nfrequent"]
            )
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(xlabel="frequency class", ylabel="mean position along the drift")
        ax.legend()
    return figure


def cosine_histogram(cosines: Mapping[str, np.ndarray]) -> Figure:
    """Outlines: how the cosines of random pairs are distributed.

    Args:
        cosines: cosines of pairs, any length, by name; at most three.

    Returns:
        The figure.

    Raises:
        ValueError: for more than can be told apart.
    """
    styles = [("-", palette.colour("adamw")), ("--", NEUTRAL), (":", ACCENT)]
    edges = np.linspace(-1, 1, 81).tolist()
    with panels(height=3.2) as (figure, (ax,)):
        for name, values, (dash, colour) in told_apart(cosines, styles):
            ax.hist(values, edges, density=True, histtype="step", linewidth=2,
                    linestyle=dash, color=colour, label=name)  # fmt: skip
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(xlabel="cosine of two tokens", ylabel="density", xlim=(-1, 1))
        ax.legend()
    return figure


def cosines_by_kinship(panels_of_cosines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Panels: cosines of pairs of one class against cosines of pairs of two classes.

    Args:
        panels_of_cosines: by title, the cosines of pairs within a class and across classes.

    Returns:
        The figure.
    """
    columns = len(panels_of_cosines)
    edges = np.linspace(-1, 1, 61).tolist()
    with panels(columns, width=3.2 * columns, height=3.2, sharey=True, sharex=True) as (
        figure,
        axes,
    ):
        for ax, (title, (same, other)) in zip(axes, panels_of_cosines.items(), strict=True):
            ax.hist(other, edges, density=True, color="#bbbbbb", label="two classes")
            ax.hist(same, edges, density=True, histtype="step", linewidth=2,
                    color=palette.colour("adamw"), label="same class")  # fmt: skip
            ax.set(title=title, xlabel="cosine of two words")
        axes[0].set_ylabel("density")
        axes[0].legend(loc="upper left")
    return figure


def repairs(table: pd.DataFrame, measures: Mapping[str, str]) -> Figure:
    """Panels: a measure after each repair, one line an optimizer, one faint dot a seed.

    Bars at the means are their 95 % intervals, where there are two seeds at least.

    Args:
        table: one row per optimizer, seed and repair, with those columns and one per measure.
        measures: title of the panel by column.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    steps = list(dict.fromkeys(table["repair"]))
    names = palette.in_order(table["optimizer"])
    columns = len(measures)
    with panels(columns, width=4.2 * columns, height=3.8) as (figure, axes):
        for ax, (measure, title) in zip(axes, measures.items(), strict=True):
            for name in names:
                mean_and_seeds(ax, table, name, "repair", measure, order=steps)
            ax.set_xticks(range(len(steps)), steps, rotation=20, ha="right")
            ax.set(title=title, xlabel="", ylabel="", xlim=(-0.3, len(steps) - 0.7))
        axes[0].legend()
    return figure
