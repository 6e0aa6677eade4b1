"""Pictures of chapters 01 and 02: what gradients add up to, and what Adam makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerPathCollection
from numpy.typing import ArrayLike

from coupled_adam import palette
from coupled_adam.palette import ACCENT, NEUTRAL
from coupled_adam.plots.style import dots, panels, told_apart

# The quiet grey of what is only there for comparison; dark enough to be seen on white.
_PALE = "#9a9a9a"


def clouds_before_and_after(start: np.ndarray, trained: Mapping[str, np.ndarray]) -> Figure:
    """Panels: embeddings in the plane, one panel an optimizer, with the origin and the mean.

    All panels show one plane: the direction of the longest mean, and the direction in which the
    cloud with that mean is widest apart from it.

    Args:
        start: embeddings before training, [V, H].
        trained: embeddings after training by optimizer, [V, H].

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    names = palette.in_order(trained)
    farthest = max(trained.values(), key=lambda e: np.linalg.norm(e.mean(axis=0)))
    mean = farthest.mean(axis=0)
    first = mean / np.linalg.norm(mean)
    rest = farthest - mean
    rest = rest - np.outer(rest @ first, first)
    plane = np.stack([first, np.linalg.svd(rest, full_matrices=False)[2][0]], axis=1)
    height = 0.7 + 1.9 * len(names)
    with panels(1, len(names), height=height, sharex=True, sharey=True) as (figure, axes):
        for ax, name in zip(axes, names, strict=True):
            embeddings = trained[name]
            centre = embeddings.mean(axis=0) @ plane
            for label, cloud, colour in (
                ("before", start, _PALE),
                ("after", embeddings, palette.colour(name)),
            ):
                x, y = (cloud @ plane).T
                ax.scatter(x, y, s=4, color=colour, label=label, rasterized=True)
            ax.plot(0, 0, "+", color="black", markersize=16, markeredgewidth=2.5, label="origin")
            ax.plot(
                *centre,
                marker=palette.marker(name),
                color="white",
                markeredgecolor="black",
                markersize=8,
                linestyle="none",
                label="mean, after",
            )
            ax.set(title=palette.label(name), ylabel="across", aspect="equal")
            ax.legend(
                loc="upper right", ncols=2, handletextpad=0.1, columnspacing=0.8,
                handler_map={PathCollection: HandlerPathCollection(sizes=[30])},
            )  # fmt: skip
        axes[-1].set_xlabel("along the mean of the farthest cloud")
    return figure


def head_to_tail(arrows: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Panels: a few vectors in the plane, each starting where the last one ends.

    They are taken in the order of their directions, so that a sum of zero makes a convex polygon.
    If they add up to zero the last one ends at the start; otherwise a thick dashed arrow shows
    their sum.

    Args:
        arrows: one vector a token, [tokens, 2], by title of the panel.
        names: what each vector belongs to.

    Returns:
        The figure.

    Raises:
        ValueError: if a panel has another number of vectors than there are names.
    """
    with panels(len(arrows), width=3.9 * len(arrows) + 0.4, height=3.7) as (figure, axes):
        for ax, (title, vectors) in zip(axes, arrows.items(), strict=True):
            if len(vectors) != len(names):
                raise ValueError(f"{title!r} has {len(vectors)} vectors for {len(names)} names")
            order = np.argsort(np.arctan2(vectors[:, 1], vectors[:, 0]))
            ends = np.vstack([np.zeros(2), np.cumsum(vectors[order], axis=0)])
            size = np.ptp(ends, axis=0).max()
            for tail, head, token in zip(ends[:-1], ends[1:], order, strict=True):
                _arrow(ax, tail, head, color=NEUTRAL, width=1.8)
                forward = head - tail
                outward = np.array([forward[1], -forward[0]]) / max(np.linalg.norm(forward), 1e-12)
                middle = (tail + head) / 2 + 0.09 * size * outward
                ax.annotate(names[token], middle, ha="center", va="center")
            if np.linalg.norm(ends[-1]) > 1e-3 * size:
                _arrow(ax, ends[0], ends[-1], color=ACCENT, width=4, dash=True)
                ax.plot([], [], "--", color=ACCENT, linewidth=4, label="sum")
            ax.plot(0, 0, "o", color="black", label="start")
            low, high = ends.min(axis=0) - 0.22 * size, ends.max(axis=0) + 0.22 * size
            ax.set(title=title, xlabel="first coordinate", aspect="equal")
            ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            ax.legend(loc="best")
        axes[0].set_ylabel("second coordinate")
    return figure


def walk(gradients: np.ndarray, absent: ArrayLike) -> Figure:
    """One path: the gradients of a whole vocabulary head to tail, those of absent tokens first.

    The path is drawn in the plane that shows it best, the leading one of its corners; the axes have
    different scales.

    Args:
        gradients: one row a token, in the order in which they are walked, [V, H].
        absent: whether the token is no target in the batch, [V].

    Returns:
        The figure.
    """
    absent = np.asarray(absent, bool)
    order = np.concatenate([np.flatnonzero(absent), np.flatnonzero(~absent)])
    corners = np.vstack([np.zeros(gradients.shape[1]), np.cumsum(gradients[order], axis=0)])
    plane = np.linalg.svd(corners, full_matrices=False)[2][:2].T
    path, turn = corners @ plane, int(absent.sum())
    with panels(height=4.2) as (figure, (ax,)):
        ax.plot(
            *path[: turn + 1].T,
            color=ACCENT,
            linewidth=4,
            label=f"{turn} tokens that are absent",
        )
        ax.plot(
            *path[turn:].T,
            color=NEUTRAL,
            linewidth=1,
            marker=".",
            markersize=4,
            label=f"{len(order) - turn} tokens that occur",
        )
        ax.plot(*path[0], "o", color="black", markersize=11, label="start", zorder=3)
        ax.plot(
            *path[-1], "o", color="white", markeredgecolor="black", markersize=6, label="end",
            zorder=4,
        )  # fmt: skip
        ax.set(xlabel="gradient, first direction", ylabel="gradient, second direction")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def bowl_paths(curvatures: tuple[float, float], paths: Mapping[str, np.ndarray]) -> Figure:
    """Panels: the way of an optimizer down a bowl, over the bowl's contour lines.

    Args:
        curvatures: of f(x, y) = (a x^2 + b y^2) / 2, both positive.
        paths: points visited, [T + 1, 2], by title of the panel.

    Returns:
        The figure.
    """
    grid = np.linspace(-1.6, 1.6, 101)
    x, y = np.meshgrid(grid, grid)
    height = (curvatures[0] * x**2 + curvatures[1] * y**2) / 2
    levels = curvatures[0] / 2 * np.linspace(0.02, 1.6, 8) ** 2
    with panels(len(paths), width=8.0, height=3.5, sharex=True, sharey=True) as (figure, axes):
        for ax, (title, path) in zip(axes, paths.items(), strict=True):
            ax.contour(x, y, height, levels=levels, colors="#c8c8c8", linewidths=0.9)
            ax.plot(*path.T, "-", color=NEUTRAL, linewidth=1, marker=".", markersize=4)
            ax.plot(*path[0], "o", color="black", markersize=9, label="start")
            ax.plot(*path[-1], "X", color=ACCENT, markersize=11, label=f"step {len(path) - 1}")
            ax.plot(0, 0, "*", color="black", markersize=14, label="minimum")
            ax.set(title=title, xlabel="$x$ (steep)", xlim=(-1.6, 1.6), ylim=(-0.3, 1.6))
            ax.grid(visible=False)
        axes[0].set_ylabel("$y$ (flat)")
        axes[-1].legend(loc="upper left", handletextpad=0.3)
    return figure


def step_by_noise(noise: ArrayLike, steps: ArrayLike, foretold: ArrayLike) -> Figure:
    """Dots on a line: Adam's mean step at each level of noise, and what theory says.

    Args:
        noise: standard deviation of the gradient over its mean, [K].
        steps: mean step in learning rates, measured, [K].
        foretold: the same by a formula, [K].

    Returns:
        The figure.
    """
    with panels() as (figure, (ax,)):
        ax.plot(noise, foretold, "--", color=NEUTRAL, label=r"$1/\sqrt{1 + \mathrm{noise}^2}$")
        ax.plot(
            noise, steps, palette.marker("adamw"), color=palette.colour("adamw"), label="measured"
        )
        ax.set(
            xlabel="noise, in units of the signal",
            ylabel="mean step\n(learning rates)",
            ylim=(0, 1.05),
        )
        ax.legend()
    return figure


def after_a_kick(gradients: ArrayLike, steps: Mapping[str, np.ndarray]) -> Figure:
    """Three panels: a gradient, the steps that Adam makes of it, and the way that they add up to.

    Args:
        gradients: shape [T].
        steps: Adam's steps in learning rates, [T], by the name of the setting; at most three.

    Returns:
        The figure.

    Raises:
        ValueError: for more than can be told apart.
    """
    styles = [("-", palette.colour("adamw")), ("--", ACCENT), (":", NEUTRAL)]
    number = np.arange(len(np.asarray(gradients)))
    with panels(3, width=8.4, height=3.2) as (figure, (left, middle, right)):
        left.plot(number, gradients, color=NEUTRAL)
        for name, step, (dash, colour) in told_apart(steps, styles):
            middle.plot(number, step, dash, color=colour, linewidth=2, label=name)
            right.plot(number, np.cumsum(step), dash, color=colour, linewidth=2, label=name)
        left.set(title="the gradient", ylabel="gradient")
        middle.set(title="each step", ylabel="step (learning rates)")
        right.set(title="the way so far", ylabel="way (learning rates)")
        for ax in (left, middle, right):
            ax.set_xlabel("step")
        middle.legend()
    return figure


def step_by_row(scale: np.ndarray, sgd: np.ndarray, adam: np.ndarray) -> Figure:
    """Two panels: the size of a row's step against the size of its gradients, SGD and Adam.

    Args:
        scale: root mean square gradient of each row, [V], positive.
        sgd: root mean square step of each row under SGD with momentum, in learning rates, [V].
        adam: the same under Adam, [V].

    Returns:
        The figure.
    """
    with panels(2, width=8.0, sharey=True) as (figure, axes):
        for ax, name, steps in zip(axes, ("sgd", "adamw"), (sgd, adam), strict=True):
            ax.plot(scale, steps, **dots(name), alpha=0.35, rasterized=True)
            ax.axhline(1, color=NEUTRAL, linewidth=0.8)
            ax.set(
                title=palette.label(name),
                xscale="log",
                yscale="log",
                xlabel="size of the gradients",
            )
        axes[0].set_ylabel("size of the step\n(learning rates)")
    return figure


def _arrow(
    ax: Axes, tail: np.ndarray, head: np.ndarray, *, color: str, width: float, dash: bool = False
) -> None:
    ax.annotate(
        "",
        tuple(head),
        tuple(tail),
        arrowprops={
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": width,
            "linestyle": "--" if dash else "-",
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 14,
        },
    )
