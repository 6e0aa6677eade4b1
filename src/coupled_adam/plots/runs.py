"""Pictures of chapter 08: optimizers side by side on one text, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from coupled_adam.plots.style import ACCENT, COLOURS, MARKERS, NAMES, NEUTRAL, panels
from coupled_adam.statistics import interval

Embeddings = Mapping[tuple[str, int], np.ndarray]


def curves(metrics: pd.DataFrame, labels: Mapping[str, str], chance: float | None = None) -> None:
    """Lines by step: each seed thin, the mean over the seeds thick, its 95 % interval as a band.

    Args:
        metrics: columns optimizer, seed, step and the measures, as in ``Comparison.metrics``; rows
            in which a measure was not taken (NaN) are left out. At least two seeds.
        labels: the measures to show, one panel each, with the label of its axis.
        chance: a level to mark in the first panel, as a dashed line.

    Raises:
        ValueError: if an optimizer has one seed only.
    """
    with panels(len(labels), width=4.2 * len(labels), height=3.8) as axes:
        for ax, (measure, label) in zip(axes, labels.items(), strict=True):
            for name in _present(metrics["optimizer"]):
                rows = metrics[metrics["optimizer"] == name].dropna(subset=measure)
                _curve(ax, rows.pivot(index="step", columns="seed", values=measure), name)
            ax.set(xlabel="step", ylabel=label)
        if chance is not None:
            axes[0].axhline(chance, color=NEUTRAL, linestyle="--", linewidth=1.2, zorder=4)
        axes[0].legend()


def _curve(ax: Axes, by_seed: pd.DataFrame, name: str) -> None:
    colour = COLOURS[name]
    band = pd.DataFrame([interval(row) for row in by_seed.to_numpy()], index=by_seed.index)
    ax.fill_between(band.index, band["low"], band["high"], color=colour, alpha=0.2, linewidth=0)
    ax.plot(by_seed.index, by_seed, color=colour, linewidth=0.7, alpha=0.7)
    every = max(1, len(band) // 4)
    ax.plot(
        band.index,
        band["mean"],
        color=colour,
        linewidth=2,
        marker=MARKERS[name],
        markevery=(every, every),
        label=NAMES[name],
    )


def intervals(final: pd.DataFrame, labels: Mapping[str, str]) -> None:
    """Dots: every seed's final value, and the mean over the seeds with its 95 % interval.

    Args:
        final: one row per optimizer and seed, as in ``Comparison.final``. At least two seeds.
        labels: the measures to show, one panel each, with the label of its axis.

    Raises:
        ValueError: if an optimizer has one seed only.
    """
    names = _present(final["optimizer"])
    with panels(len(labels), sharey=True, width=3.1 * len(labels) + 1.0, height=2.6) as axes:
        for ax, (measure, label) in zip(axes, labels.items(), strict=True):
            for place, name in enumerate(names):
                values = final.loc[final["optimizer"] == name, measure].to_numpy()
                mean, low, high = interval(values)
                colour = COLOURS[name]
                ax.plot([low, high], [place, place], color=colour, linewidth=5, alpha=0.35)
                ax.plot(values, np.full(len(values), place), "|", color=colour, markersize=16)
                ax.plot(mean, place, MARKERS[name], color=colour, markersize=7)
            ax.set_xlabel(label)
            ax.locator_params(axis="x", nbins=5)
        axes[0].set_yticks(range(len(names)), [NAMES[name] for name in names])
        axes[0].set_ylim(len(names) - 0.5, -0.5)


def moment_against_frequency(
    frequencies: np.ndarray, moments: Mapping[str, np.ndarray], slope: float
) -> None:
    """Points: Adam's second moment of each token; a line: the one that Coupled Adam shares.

    Args:
        frequencies: unigram frequencies, [V]; tokens of frequency 0 are left out.
        moments: second moment of each token, [V], by "adamw"; the shared vector, [H], by
            "coupled", of which the mean is drawn.
        slope: second moment over frequency, drawn as the line of proportionality.
    """
    seen = frequencies > 0
    with panels(height=4.2) as (ax,):
        ax.plot(
            frequencies[seen],
            moments["adamw"][seen],
            MARKERS["adamw"],
            color=COLOURS["adamw"],
            markersize=3,
            markeredgewidth=0,
            alpha=0.4,
            label="Adam: $v_i$ of each token",
        )
        ends = np.array([frequencies[seen].min(), frequencies.max()])
        ax.plot(ends, slope * ends, "--", color=NEUTRAL, label="proportional to $f_i$")
        ax.axhline(
            moments["coupled"].mean(),
            color=COLOURS["coupled"],
            linewidth=2.5,
            label="Coupled Adam: shared by all",
        )
        ax.set(xscale="log", yscale="log", xlabel="frequency $f_i$", ylabel="second moment")
        ax.legend()


def clouds(embeddings: Embeddings, counts: np.ndarray, seed: int = 0) -> None:
    """The cloud of each optimizer, seen from the side on which its mean lies.

    The horizontal axis points from the origin to the cloud's own mean, the vertical one in the
    direction of greatest spread at right angles to it; both in units of the mean length of the
    cloud's vectors, so that the mean lies at the relative mean norm.

    Args:
        embeddings: [V, H] by (optimizer, seed), as in ``Comparison.embeddings``.
        counts: occurrences of each token, [V]; the tenth of the vocabulary that occurs most often
            is drawn as black crosses. The star is the mean.
        seed: of the runs that are shown.
    """
    names = _present(name for name, _ in embeddings)
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    frequent = rank < len(counts) / 10
    with panels(len(names), sharex=True, sharey=True, width=9.6, height=4.6) as axes:
        for ax, name in zip(axes, names, strict=True):
            across, up = _side_view(embeddings[name, seed])
            for part, colour, marker in ((~frequent, COLOURS[name], "o"), (frequent, "black", "x")):
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
            ax.set_title(NAMES[name])
            ax.set_aspect("equal")
        axes[0].set_ylabel("widest direction across")
        axes[len(names) // 2].set_xlabel("along the mean (mean length of an embedding = 1)")


def _side_view(embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(embedding, float)
    rows = rows / np.linalg.norm(rows, axis=1).mean()
    mean = rows.mean(axis=0)
    along = mean / np.linalg.norm(mean)
    rest = rows - np.outer(rows @ along, along)
    offsets = rest - rest.mean(axis=0)
    widest = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
    return rows @ along, rest @ widest


def lengths_against_frequency(embeddings: Embeddings, counts: np.ndarray, seed: int = 0) -> None:
    """Points: the length of each embedding against its token's frequency, one panel an optimizer.

    Args:
        embeddings: [V, H] by (optimizer, seed), as in ``Comparison.embeddings``.
        counts: occurrences of each token, [V]; tokens that never occur are left out. The black
            line is the median of each of twelve classes of equally many tokens.
        seed: of the runs that are shown.
    """
    names = _present(name for name, _ in embeddings)
    seen = np.flatnonzero(counts)
    seen = seen[np.argsort(counts[seen], kind="stable")]
    frequency = counts[seen] / counts.sum()
    classes = np.array_split(np.arange(len(seen)), min(12, len(seen)))
    middle = [np.median(frequency[some]) for some in classes]
    with panels(len(names), sharex=True, sharey=True, width=9.6, height=3.4) as axes:
        for ax, name in zip(axes, names, strict=True):
            length = np.linalg.norm(embeddings[name, seed][seen], axis=1)
            ax.plot(
                frequency,
                length,
                MARKERS[name],
                color=COLOURS[name],
                markersize=3,
                markeredgewidth=0,
                alpha=0.3,
            )
            ax.plot(middle, [np.median(length[some]) for some in classes], color="black")
            ax.set(xscale="log", ylim=(0, None), title=NAMES[name])
        axes[0].set_ylabel("length of the embedding")
        axes[len(names) // 2].set_xlabel("frequency $f_i$")


def learning_rates(sweep: pd.DataFrame, labels: Mapping[str, str]) -> None:
    """Lines: how a measure depends on the learning rate of the embedding matrix.

    Args:
        sweep: one row a run, with columns optimizer, multiplier (the embedding's learning rate as
            a multiple of that of the other parameters) and the measures.
        labels: the measures to show, one panel each, with the label of its axis.
    """
    with panels(len(labels), width=4.2 * len(labels), height=3.6) as axes:
        for ax, (measure, label) in zip(axes, labels.items(), strict=True):
            for name in _present(sweep["optimizer"]):
                rows = sweep[sweep["optimizer"] == name].sort_values("multiplier")
                ax.plot(
                    rows["multiplier"],
                    rows[measure],
                    marker=MARKERS[name],
                    color=COLOURS[name],
                    label=NAMES[name],
                )
            ax.set(xscale="log", xlabel="embedding's learning rate (multiple)", ylabel=label)
            ax.xaxis.set_major_formatter("{x:g}")
        axes[-1].legend(loc="center right")


def _present(names: object) -> list[str]:
    """The optimizers that occur, in the book's order."""
    there = set(names)
    return [name for name in NAMES if name in there]
