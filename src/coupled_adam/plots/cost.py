"""Pictures of chapter 07: what an optimizer step needs in memory, and where its time goes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch

from coupled_adam import palette
from coupled_adam.palette import ACCENT, NEUTRAL
from coupled_adam.plots.style import look, panels

_PERCENT = [step * 10.0**power for power in range(-4, 2) for step in (1, 2, 5)]


def memory_of_step(table: pd.DataFrame) -> Figure:
    """Stacked bars: what each optimizer holds and needs at its worst moment, in matrices.

    Args:
        table: rows of one shape and type as from ``benchmark.compare_steps``.

    Returns:
        The figure.
    """
    optimizers = table[table["state_bytes"] > 0]
    one = (optimizers["resident_bytes"] - optimizers["state_bytes"]).to_numpy() / 2
    with panels(height=3.2) as (figure, (ax,)):
        places = np.arange(len(optimizers))[::-1]
        colours = [_colour(name) for name in optimizers["candidate"]]
        left = np.zeros(len(optimizers))
        for size, text, face in (
            (2 * one, "black", {"facecolor": "#cccccc"}),
            (optimizers["state_bytes"], "white", {"facecolor": colours}),
            (optimizers["extra_bytes"], "black", {"facecolor": "white", "hatch": "/"}),
        ):
            share = np.asarray(size) / one
            bars = ax.barh(places, share, left=left, edgecolor="black", linewidth=0.8, **face)
            left += share
            numbers = ax.bar_label(
                bars, [f"{s:.2g}" if s >= 0.5 else "" for s in share], label_type="center"
            )
            for number in numbers:
                number.set_color(text)
                if "hatch" in face and number.get_text():
                    number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        entries: dict[str, Patch | tuple[Patch, ...]] = {
            "parameter and gradient": Patch(facecolor="#cccccc", edgecolor="black"),
            "optimizer state": tuple(
                Patch(facecolor=palette.colour(name), edgecolor="black")
                for name in ("adamw", "coupled")
            ),
            "extra during the step": Patch(facecolor="white", edgecolor="black", hatch="//"),
        }
        ax.set_yticks(places, optimizers["candidate"])
        ax.set(xlabel="memory (matrices of V x H numbers)", xlim=(0, None))
        ax.grid(axis="y", visible=False)
        ax.legend(
            list(entries.values()), list(entries), loc="lower center", bbox_to_anchor=(0.4, 1),
            ncols=3, columnspacing=1.2, handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        )  # fmt: skip
    return figure


def time_ratios(table: pd.DataFrame, floor: float) -> Figure:
    """Points with quartiles: the time of each candidate over that of fused AdamW.

    Args:
        table: rows of one shape and type as from ``benchmark.compare_steps``.
        floor: the ratio that the byte model promises, drawn as a line.

    Returns:
        The figure.
    """
    with panels(height=3.2) as (figure, (ax,)):
        places = np.arange(len(table))[::-1]
        quartiles = table[["ratio_low", "ratio_median", "ratio_high"]].to_numpy(float)
        for place, name, row in zip(places, table["candidate"], quartiles, strict=True):
            low, median, high = row
            ax.errorbar(
                median, place, xerr=[[median - low], [high - median]], color=_colour(name),
                capsize=4, marker=_marker(name), markersize=8, linestyle="none",
            )  # fmt: skip
        ax.axvline(1, color=NEUTRAL, linewidth=1)
        ax.axvline(floor, color=NEUTRAL, linestyle="--", linewidth=1)
        ax.text(floor, len(table) - 0.45, "six passes of seven ", color=NEUTRAL, ha="right")
        ax.set_xscale("log")
        ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if t < 1.5 * table["ratio_high"].max()]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_yticks(places, table["candidate"])
        ax.set_ylim(-0.5, len(table) - 0.1)
        ax.set_xlabel("time of a step / time of fused AdamW")
    return figure


def parts_of_step(ratios: pd.DataFrame, floors: Mapping[str, float]) -> Figure:
    """Bars: the time of each part of a step, beside what its traffic alone would take.

    Args:
        ratios: as from ``benchmark.ratios``; a row for each part.
        floors: passes of a part over the seven of fused AdamW, by the name of the part.

    Returns:
        The figure.
    """
    parts = ratios.loc[list(floors)]
    with panels(height=3.0) as (figure, (ax,)):
        places = np.arange(len(parts))[::-1]
        ends = [parts["median"] - parts["low"], parts["high"] - parts["median"]]
        ax.barh(places, parts["median"], height=0.55, color=palette.colour("coupled"), xerr=ends,
                error_kw={"capsize": 4}, label="measured")  # fmt: skip
        for place, floor in zip(places, floors.values(), strict=True):
            ax.plot([floor, floor], [place - 0.4, place + 0.4], color=ACCENT, linewidth=3)
        ax.plot([], [], color=ACCENT, linewidth=3, label="by its passes alone")
        ax.set_yticks(places, parts.index)
        ax.grid(axis="y", visible=False)
        ax.set(xlabel="time / time of a fused AdamW step", xlim=(0, None))
        ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2)
    return figure


def share_of_training(
    tokens: np.ndarray, shares: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]
) -> Figure:
    """Lines: the embedding's optimizer step as a share of a training step, by batch size.

    Args:
        tokens: in a training step, shape [n].
        shares: measured, in [0, 1], shape [n], by optimizer.
        predicted: by a formula, likewise; drawn dashed.

    Returns:
        The figure.

    Raises:
        RefusedError: for an arm that does not exist.
    """
    with panels(height=3.4) as (figure, (ax,)):
        for name in palette.in_order(shares):
            ax.plot(tokens, 100 * shares[name], **look(name), markersize=8, linestyle="none")
        for name in palette.in_order(predicted):
            label = f"{palette.label(name)}, formula"
            ax.plot(tokens, 100 * predicted[name], "--", color=palette.colour(name), label=label)
        ax.set(xscale="log", yscale="log", xlabel="tokens in a training step")
        ax.set_ylabel("step of the embedding\n(% of the training step)")
        ax.set_xticks(tokens, [f"{n:,}" for n in tokens])
        ax.minorticks_off()
        ax.set_yticks([t for t in _PERCENT if ax.get_ylim()[0] <= t <= ax.get_ylim()[1]])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.legend(ncols=2)
    return figure


def _optimizer(candidate: str) -> str | None:
    """The arm whose optimizer a candidate is; None for what is none, such as a plain copy."""
    if candidate.startswith("Coupled"):
        return "coupled"
    return "adamw" if candidate.startswith("AdamW") else None


def _colour(candidate: str) -> str:
    name = _optimizer(candidate)
    return NEUTRAL if name is None else palette.colour(name)


def _marker(candidate: str) -> str:
    name = _optimizer(candidate)
    return "X" if name is None else palette.marker(name)
