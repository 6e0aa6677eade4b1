"""Pictures of chapter 03: how often tokens occur, and what Adam makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from coupled_adam import palette
from coupled_adam.palette import ACCENT, NEUTRAL
from coupled_adam.plots.style import look, panels, told_apart


class TokenTrace(NamedTuple):
    """One token's quantity over the steps of a run.

    Attributes:
        values: the quantity after each step, [T], positive.
        occurs: whether the token was a target in the step, [T], boolean.
        expected: level to be drawn as a dashed line, or None.
    """

    values: np.ndarray
    occurs: np.ndarray
    expected: float | None = None


def zipf(counts: np.ndarray, exponent: float, ranks: tuple[int, int]) -> Figure:
    """Rank against frequency, both logarithmic, with a power law beside it.

    Args:
        counts: occurrences of each token, [V], in any order; tokens that never occur are left out.
        exponent: of the power law, positive.
        ranks: first and last rank (from 1) that the power law is drawn between; it goes through
            the geometric middle of the data there.

    Returns:
        The figure.
    """
    ordered = np.sort(counts[counts > 0])[::-1] / counts.sum()
    every = np.arange(1, len(ordered) + 1)
    first, last = ranks
    part = slice(first - 1, last)
    level = np.exp(np.mean(np.log(ordered[part]) + exponent * np.log(every[part])))
    with panels() as (figure, (ax,)):
        ax.plot(every, ordered, color=NEUTRAL, linewidth=2.5, label="tokens of the text")
        law = level * every[part] ** -exponent
        ax.plot(every[part], law, "--", color=ACCENT, linewidth=2, label="fitted power law")
        ax.set(xscale="log", yscale="log", xlabel="rank of the token", ylabel="frequency $f_i$")
        ax.legend()
    return figure


def token_traces(traces: Mapping[str, TokenTrace], quantity: str) -> Figure:
    """One panel per token, above each other: a quantity by step, marked where the token occurs.

    Args:
        traces: by the title of the panel; all share their axes, the vertical one logarithmic.
        quantity: label of the vertical axis.

    Returns:
        The figure.
    """
    rows = len(traces)
    with panels(rows=rows, height=1.6 * rows + 0.7, sharex=True, sharey=True) as (figure, axes):
        for ax, (title, trace) in zip(axes, traces.items(), strict=True):
            steps = np.arange(1, len(trace.values) + 1)
            ax.plot(steps, trace.values, color=NEUTRAL, linewidth=1)
            here = trace.occurs
            adam = look("adamw") | {"markersize": 4, "label": "occurs in the batch"}
            ax.plot(steps[here], trace.values[here], **adam, linestyle="none")
            if trace.expected is not None:
                ax.axhline(trace.expected, color=ACCENT, linestyle="--", label="expected")
            ax.set(title=title, yscale="log")
        axes[rows // 2].set_ylabel(quantity)
        axes[-1].set_xlabel("step")
        handles, labels = axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


def second_moments_by_frequency(
    frequencies: np.ndarray,
    second_moments: np.ndarray,
    *,
    predicted: np.ndarray | None = None,
    absent: np.ndarray | None = None,
    classes: int = 20,
) -> Figure:
    """Scatter, both axes logarithmic: each token's second moment, and the mean of each class.

    Args:
        frequencies: shape [V]; tokens with frequency 0 are left out.
        second_moments: averaged over the coordinates, [V].
        predicted: drawn as a dashed line, [V].
        absent: tokens to be drawn in another shape and colour, [V], boolean.
        classes: number of equally large frequency classes whose means are drawn.

    Returns:
        The figure.
    """
    order = np.argsort(-frequencies, kind="stable")[: np.count_nonzero(frequencies)]
    f, v = frequencies[order], second_moments[order]
    away = np.zeros(len(f), bool) if absent is None else absent[order]
    with panels(height=4.2) as (figure, (ax,)):
        ax.plot(f[~away], v[~away], ".", color=palette.colour("adamw"), markersize=3, alpha=0.4,
                label="a token" if absent is None else "token seen within the memory")  # fmt: skip
        if absent is not None:
            ax.plot(f[away], v[away], "x", color=NEUTRAL, markersize=3, alpha=0.4,
                    label="token absent for longer")  # fmt: skip
        groups = np.array_split(np.arange(len(f)), classes)
        means = np.array([(f[group].mean(), v[group].mean()) for group in groups])
        ax.plot(*means.T, "s", color="black", markersize=6, label="mean of a frequency class")
        if predicted is not None:
            ax.plot(f, predicted[order], "--", color=ACCENT, linewidth=2, label="expected")
        ax.set(xscale="log", yscale="log", xlabel="frequency $f_i$", ylabel="second moment $v_i$")
        ax.legend(markerscale=1.5)
    return figure


def fit_by_step(fits: Mapping[str, np.ndarray], quoted: float | None = None) -> Figure:
    """Lines: a squared correlation by step.

    Args:
        fits: R^2 after each step, [T], by name; at most three.
        quoted: level from the literature, drawn as a dotted line.

    Returns:
        The figure.

    Raises:
        ValueError: for more than can be told apart.
    """
    with panels(height=3.0) as (figure, (ax,)):
        for name, values, dash in told_apart(fits, ("-", "--", "-.")):
            ax.plot(
                np.arange(1, len(values) + 1),
                values,
                dash,
                color=palette.colour("adamw"),
                label=name,
            )
        if quoted is not None:
            ax.axhline(quoted, color=NEUTRAL, linestyle=":", label="the paper's")
        ax.set(xlabel="step", ylabel="$R^2$ of $v_i$ and $f_i$", ylim=(0, 1))
        ax.legend(loc="lower right")
    return figure


def step_size_against_frequency(frequencies: np.ndarray, step_sizes: np.ndarray) -> Figure:
    """Scatter, both axes logarithmic: what Adam multiplies a token's mean gradient with.

    A dashed line falls with the root of the frequency, through the geometric middle of the data.

    Args:
        frequencies: shape [V]; tokens with frequency 0 are left out.
        step_sizes: shape [V], positive.

    Returns:
        The figure.
    """
    seen = frequencies > 0
    f, size = frequencies[seen], step_sizes[seen]
    level = np.exp(np.mean(np.log(size) + np.log(f) / 2))
    ends = np.array([f.min(), f.max()])
    with panels() as (figure, (ax,)):
        ax.plot(
            f, size, ".", color=palette.colour("adamw"), markersize=3, alpha=0.4, label="a token"
        )
        ax.plot(ends, level * ends**-0.5, "--", color="black", label="falls with the root of $f_i$")
        ax.set(xscale="log", yscale="log", xlabel="frequency $f_i$")
        ax.set_ylabel(r"step size $\eta\,/\,(\sqrt{v_i}+\epsilon)$")
        ax.legend(markerscale=3)
    return figure
