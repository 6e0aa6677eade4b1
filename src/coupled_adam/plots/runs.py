"""Pictures of chapter 08: optimizers side by side on one text, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from coupled_adam import palette
from coupled_adam.palette import ACCENT, NEUTRAL
from coupled_adam.plots.seeds import (
    check_seeds,
    every_seed,
    mean_and_seeds,
    mean_over_seeds,
)
from coupled_adam.plots.style import dots, panels

Embeddings = Mapping[tuple[str, int], np.ndarray]


def curves(metrics: pd.DataFrame, labels: Mapping[str, str], chance: float | None = None) -> Figure:
    """Lines by step: each seed thin, the mean over the seeds thick, its 95 % interval as a band.

    Args:
        metrics: columns optimizer, seed, step and the measures, as in ``Comparison.metrics``; rows
            in which a measure was not taken (NaN) are left out. At least two seeds.
        labels: the measures to show, one panel each, with the label of its axis.
        chance: a level to mark in the first panel, as a dashed line.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
        ValueError: if a mean would be that of one seed, or a value is infinite.
    """
    names = palette.in_order(metrics["optimizer"])
    with panels(len(labels), width=4.2 * len(labels), height=3.8) as (figure, axes):
        for ax, (measure, label) in zip(axes, labels.items(), strict=True):
            taken = metrics.dropna(subset=measure)
            check_seeds(taken, ["optimizer", "step"], measure)
            every = max(1, taken["step"].nunique() // 4)
            for name in names:
                every_seed(ax, taken, name, "step", measure)
                mean_over_seeds(ax, taken, name, "step", measure, markevery=(every, every))
            ax.set(xlabel="step", ylabel=label)
        if chance is not None:
            axes[0].axhline(chance, color=NEUTRAL, linestyle="--", linewidth=1.2, zorder=4)
        axes[0].legend()
    return figure


def intervals(final: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Dots: every seed's final value, and the mean over the seeds with its 95 % interval.

    Args:
        final: one row per optimizer and seed, as in ``Comparison.final``. At least two seeds, and
            all values finite.
        labels: the measures to show, one panel each, with the label of its axis.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
        ValueError: if an optimizer has one seed only, or a value that is not finite.
    """
    names = palette.in_order(final["optimizer"])
    width, height = 3.1 * len(labels) + 1.0, 1.1 + 0.5 * len(names)
    with panels(len(labels), sharey=True, width=width, height=height) as (figure, axes):
        for ax, (measure, label) in zip(axes, labels.items(), strict=True):
            check_seeds(final, ["optimizer"], measure)
            for name in names:
                mean_and_seeds(ax, final, name, measure, "optimizer", order=names)
            ax.set(xlabel=label, ylabel="")
            ax.locator_params(axis="x", nbins=5)
        axes[0].set_yticks(range(len(names)), [palette.label(name) for name in names])
    return figure


def shared_second_moment(
    frequencies: np.ndarray, moments: Mapping[str, np.ndarray], slope: float
) -> Figure:
    """Points: the second moment that each token has; lines: those that all tokens share.

    Args:
        frequencies: unigram frequencies, [V]; tokens of frequency 0 are left out.
        moments: by optimizer, the second moment of each token, [V], drawn as points, or a vector
            of any other length that all tokens share, such as [H], of which the mean is drawn.
        slope: second moment over frequency, drawn as the line of proportionality.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    names = palette.in_order(moments)
    seen = frequencies > 0
    own = [name for name in names if len(moments[name]) == len(frequencies)]
    with panels(height=4.2) as (figure, (ax,)):
        for name in own:
            some = dots(name) | {"label": f"{palette.label(name)}: $v_i$ of each token"}
            ax.plot(frequencies[seen], moments[name][seen], **some, alpha=0.4)
        ends = np.array([frequencies[seen].min(), frequencies.max()])
        ax.plot(ends, slope * ends, "--", color=NEUTRAL, label="proportional to $f_i$")
        for name in (name for name in names if name not in own):
            label = f"{palette.label(name)}: shared by all"
            shared = moments[name].mean()
            ax.axhline(shared, color=palette.colour(name), linewidth=2.5, label=label)
        ax.set(xscale="log", yscale="log", xlabel="frequency $f_i$", ylabel="second moment")
        ax.legend()
    return figure


def clouds(embeddings: Embeddings, counts: np.ndarray, seed: int = 0) -> Figure:
    """The cloud of each optimizer, seen from the side on which its mean lies.

    The horizontal axis points from the origin to the cloud's own mean, the vertical one in the
    direction of greatest spread at right angles to it; both in units of the mean length of the
    cloud's vectors, so that the mean lies at the relative mean norm.

    Args:
        embeddings: [V, H] by (optimizer, seed), as in ``Comparison.embeddings``.
        counts: occurrences of each token, [V]; the tenth of the vocabulary that occurs most often
            is drawn as black crosses. The star is the mean.
        seed: of the runs that are shown.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    names = palette.in_order(name for name, _ in embeddings)
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    frequent = rank < len(counts) / 10
    with panels(len(names), sharex=True, sharey=True, width=3.2 * len(names), height=4.6) as (
        figure,
        axes,
    ):
        for ax, name in zip(axes, names, strict=True):
            across, up = _side_view(embeddings[name, seed])
            for part, colour, marker in (
                (~frequent, palette.colour(name), "o"),
                (frequent, "black", "x"),
            ):
                ax.plot(
                    across[part],
                    up[part],
                    marker,
                    color=colour,
                    markersize=3,
                    markeredgewidth=0.7 if marker == "x" else 0,
                    alpha=0.4,
                )
            ax.axhline(0, color=NEUTRAL, linewidth=0.8)
            ax.axvline(0, color=NEUTRAL, linewidth=0.8)
            ax.plot(across.mean(), 0, "*", color=ACCENT, markersize=18, markeredgecolor="black")
            ax.set_title(palette.label(name))
            ax.set_aspect("equal")
        axes[0].set_ylabel("widest direction across")
        axes[len(names) // 2].set_xlabel("along the mean (mean length of an embedding = 1)")
    return figure


def _side_view(embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(embedding, float)
    rows = rows / np.linalg.norm(rows, axis=1).mean()
    mean = rows.mean(axis=0)
    along = mean / np.linalg.norm(mean)
    rest = rows - np.outer(rows @ along, along)
    offsets = rest - rest.mean(axis=0)
    widest = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
    return rows @ along, rest @ widest


def lengths_against_frequency(embeddings: Embeddings, counts: np.ndarray, seed: int = 0) -> Figure:
    """Points: the length of each embedding against its token's frequency, one panel an optimizer.

    Args:
        embeddings: [V, H] by (optimizer, seed), as in ``Comparison.embeddings``.
        counts: occurrences of each token, [V]; tokens that never occur are left out. The black
            line is the median of each of twelve classes of equally many tokens.
        seed: of the runs that are shown.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    names = palette.in_order(name for name, _ in embeddings)
    seen = np.flatnonzero(counts)
    seen = seen[np.argsort(counts[seen], kind="stable")]
    frequency = counts[seen] / counts.sum()
    classes = np.array_split(np.arange(len(seen)), min(12, len(seen)))
    middle = [np.median(frequency[some]) for some in classes]
    with panels(len(names), sharex=True, sharey=True, width=3.2 * len(names), height=3.4) as (
        figure,
        axes,
    ):
        for ax, name in zip(axes, names, strict=True):
            length = np.linalg.norm(embeddings[name, seed][seen], axis=1)
            ax.plot(frequency, length, **dots(name), alpha=0.3)
            ax.plot(middle, [np.median(length[some]) for some in classes], color="black")
            ax.set(xscale="log", ylim=(0, None), title=palette.label(name))
        axes[0].set_ylabel("length of the embedding")
        axes[len(names) // 2].set_xlabel("frequency $f_i$")
    return figure


def learning_rates(sweep: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Lines: how a measure depends on the learning rate of the embedding matrix.

    Where there are several seeds, their mean is drawn, with its 95 % interval as a band.

    Args:
        sweep: one row a run, with columns optimizer, multiplier (the embedding's learning rate as
            a multiple of that of the other parameters) and the measures; values that are not
            finite, as of a diverged run, are left out.
        labels: the measures to show, one panel each, with the label of its axis.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    names = palette.in_order(sweep["optimizer"])
    with panels(len(labels), width=4.2 * len(labels), height=3.6) as (figure, axes):
        for ax, (measure, label) in zip(axes, labels.items(), strict=True):
            for name in names:
                mean_over_seeds(ax, sweep, name, "multiplier", measure)
            ax.set(xscale="log", xlabel="embedding's learning rate (multiple)", ylabel=label)
            ax.xaxis.set_major_formatter("{x:g}")
        axes[-1].legend(loc="center right")
    return figure
