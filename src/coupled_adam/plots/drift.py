"""Pictures of chapter 04: who moves the mean embedding, where to, and how fast."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from coupled_adam import palette
from coupled_adam.palette import ACCENT, NEUTRAL
from coupled_adam.plots.style import look, panels, told_apart


def drift_shares(shares: pd.DataFrame) -> Figure:
    """Bars: the part of the mean's displacement that each frequency class carries.

    Args:
        shares: as from ``experiments.displacement_shares``.

    Returns:
        The figure.
    """
    steps, classes = shares["step"].unique(), sorted(shares["class"].unique())
    names = {1: "rarest", len(classes): "most frequent"}
    with panels(len(steps), sharey=True, height=3.2) as (figure, axes):
        for ax, step in zip(axes, steps, strict=True):
            part = shares[shares["step"] == step].set_index("class")["share"]
            bars = ax.bar(classes, 100 * part[classes], color=palette.colour("adamw"))
            ax.bar_label(bars, fmt="%.0f", padding=2)
            ax.margins(y=0.12)  # room for the numbers
            ax.axhline(0, color=NEUTRAL, linewidth=0.8)
            ax.set_title(f"after {step} step{'s' if step > 1 else ''}")
            ax.set_xticks(classes, [names.get(c, str(c)) for c in classes], rotation=35, ha="right")
            ax.grid(axis="x", visible=False)
        axes[0].set_ylabel("share of the mean's\ndisplacement (%)")
    return figure


def distance_of_mean(paths: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Lines: the length of the mean's displacement by step, one line an optimizer.

    Args:
        paths: displacement of the mean embedding, [T, H], by optimizer.
        title: of the panel.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    with panels() as (figure, (ax,)):
        for name in palette.in_order(paths):
            distance = np.linalg.norm(paths[name], axis=1)
            steps = np.arange(1, len(distance) + 1)
            ax.plot(steps, distance, **look(name), markevery=[-1])
        ax.set_yscale("log")
        ax.set(xlabel="step", ylabel="length of the mean's displacement", title=title)
        ax.legend()
    return figure


def foretold(measured: np.ndarray, predictions: Mapping[str, np.ndarray]) -> Figure:
    """Two panels: length and direction of predicted displacements against the measured one.

    Args:
        measured: displacement of the mean embedding in a real run, [T, H].
        predictions: what was predicted, [T, H], by name; at most three.

    Returns:
        The figure.

    Raises:
        ValueError: for more than can be told apart.
    """
    steps = np.arange(1, len(measured) + 1)
    styles = [("--", "black"), (":", ACCENT), ("-.", NEUTRAL)]
    length = np.linalg.norm(measured, axis=1)
    with panels(2, width=8.0) as (figure, (left, right)):
        left.plot(
            steps, length, color=palette.colour("adamw"), linewidth=3, alpha=0.6, label="measured"
        )
        for name, path, (dash, colour) in told_apart(predictions, styles):
            predicted = np.linalg.norm(path, axis=1)
            left.plot(steps, predicted, dash, color=colour, label=name)
            agreement = np.sum(path * measured, axis=1) / (predicted * length)
            right.plot(steps, agreement, dash, color=colour, label=name)
        left.set(xlabel="step", ylabel="length of the mean's displacement", title="how far")
        right.set(
            xlabel="step", ylabel="cosine with the measured", title="where to", ylim=(0, 1.03)
        )
        left.legend()
    return figure


def summed_updates(shares: Mapping[str, np.ndarray]) -> Figure:
    """Lines: how far the updates of all tokens point the same way, one line an optimizer.

    Args:
        shares: length of the summed update over the summed lengths, by step, shape [T], in
            [0, 1], by optimizer.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    with panels() as (figure, (ax,)):
        for name in palette.in_order(shares):
            # The first step has no predecessor to take a difference from.
            steps = np.arange(2, len(shares[name]) + 2)
            ax.plot(steps, shares[name], **look(name), markevery=5, markersize=5)
        ax.set_yscale("log")
        ax.set(xlabel="step", ylabel="|sum of updates| /\nsum of |updates|")
        ax.legend(loc="center right")
    return figure


def typical_steps(
    frequencies: np.ndarray, steps: Mapping[str, np.ndarray], groups: int = 24
) -> Figure:
    """Points: the size of a step against the token's frequency, one series an optimizer.

    Args:
        frequencies: of the tokens, shape [V]; tokens that never occur are left out.
        steps: root mean square step of a coordinate in units of the learning rate, shape [V], by
            optimizer.
        groups: tokens are grouped by the logarithm of their frequency; a point is a group's mean.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    seen = frequencies > 0
    logs = np.log(frequencies[seen])
    edges = np.linspace(logs.min(), logs.max(), groups + 1)
    member = np.clip(np.digitize(logs, edges) - 1, 0, groups - 1)
    with panels() as (figure, (ax,)):
        for name in palette.in_order(steps):
            sizes = steps[name][seen]
            part = pd.DataFrame({"group": member, "f": frequencies[seen], "step": sizes})
            mean = part.groupby("group").mean()
            ax.loglog(mean["f"], mean["step"], linestyle="none", **look(name))
        ax.axhline(1, color=NEUTRAL, linestyle="--", linewidth=1)
        ax.text(frequencies[seen].min(), 1.08, "one learning rate", color=NEUTRAL, va="bottom")
        ax.set(xlabel="frequency of the token", ylabel="step (learning rates)")
        ax.legend(loc="lower right")
    return figure


def second_moments_by_process(relative: np.ndarray) -> Figure:
    """Bars: the mean squared gradient of the rows that each process holds.

    Args:
        relative: by process, in units of the mean over all rows, shape [R].

    Returns:
        The figure.
    """
    with panels(height=2.9) as (figure, (ax,)):
        bars = ax.bar(range(1, len(relative) + 1), relative, color=NEUTRAL, width=0.6)
        ax.bar_label(bars, fmt="%.2g", padding=2)
        ax.axhline(1, color=palette.colour("coupled"), linestyle="--", label="mean over all rows")
        ax.margins(y=0.12)
        ax.set_xticks(range(1, len(relative) + 1))
        ax.grid(axis="x", visible=False)
        ax.set(xlabel="process", ylabel="mean squared gradient\n(mean over all rows = 1)")
        ax.legend()
    return figure
