"""Pictures of the live figures as they first look: for places that do not run scripts."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from coupled_adam.extras import needs
from coupled_adam.figures import _arithmetic as arithmetic
from coupled_adam.palette import colour, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def picture(kind: str, config: dict[str, Any]) -> bytes:
    """One figure as an opaque PNG.

    Args:
        kind: name of the figure.
        config: what its script is given.
    """
    # Not through pyplot: that would leave open figures behind and disturb a notebook's own.
    with needs("book"):
        from matplotlib.figure import Figure

    columns = {"cloud": 3, "toy_updates": len(config.get("optimizers", ()))}.get(kind, 2)
    height = {"cloud": 3.8, "toy_updates": 4.1}.get(kind, 3.4)
    figure = Figure(figsize=(9.2, height), dpi=130, facecolor="white", layout="constrained")
    panels = [figure.add_subplot(1, columns, k + 1) for k in range(columns)]
    for panel in panels:
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    {"cloud": _cloud, "moments": _moments, "step_size": _step_size, "toy_updates": _toy}[kind](
        panels, config
    )
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _arrow(panel: Axes, start: Any, end: Any, *, zorder: float = 3, **style: Any) -> None:
    panel.annotate(
        "",
        xy=end,
        xytext=start,
        zorder=zorder,
        arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0} | style,
    )


def _plane(panel: Axes, half: float) -> None:
    panel.axhline(0, color="0.4", linewidth=0.8)
    panel.axvline(0, color="0.4", linewidth=0.8)
    panel.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xlabel="dimension 1")
    panel.locator_params(nbins=5)


def _cloud(panels: list[Axes], config: dict[str, Any]) -> None:
    _, runs = arithmetic.cloud_run(config["exponent"], config["seed"])
    frequencies = arithmetic.zipf(arithmetic.CLOUD_TOKENS, config["exponent"])
    half = 1.08 * max(1.2, *(float(np.abs(run.path[-1]).max()) for run in runs.values()))
    for panel, (name, run) in zip(panels, runs.items(), strict=True):
        rows = run.path[-1]
        panel.scatter(
            rows[:, 0],
            rows[:, 1],
            s=3 + 900 * frequencies,
            color=colour(name),
            alpha=0.55,
            linewidth=0,
        )
        _plane(panel, half)
        _arrow(panel, (0, 0), rows.mean(axis=0), linewidth=2.5, color="black")
        panel.set_title(
            f"{label(name)}\nrelative norm of the mean {arithmetic.relative_mean_norm(rows):.2f}"
        )
    panels[0].set_ylabel("dimension 2")


def _moments(panels: list[Axes], config: dict[str, Any]) -> None:
    knobs = {key: config[key] for key in ("beta1", "beta2", "noise", "seed")}
    series = arithmetic.moment_series(**knobs, scale=10 ** config["power"])
    steps = np.arange(1, arithmetic.MOMENT_STEPS + 1)
    left, right = panels
    left.fill_between(
        steps, -series["root"], series["root"], color=colour("adamw"), alpha=0.25,
        linewidth=0, label=r"$\pm\sqrt{\hat v_t}$",
    )  # fmt: skip
    left.plot(steps, series["g"], ".", color="0.55", markersize=4, label="$g_t$")
    left.plot(steps, series["m"], color="black", linewidth=2, label=r"$\hat m_t$")
    left.margins(y=0.2)
    left.set(title="The gradient and its moments", xlabel="step $t$", ylabel="gradient")
    left.legend(frameon=False, ncols=3, loc="upper right")
    right.axhline(0, color="0.4", linewidth=0.8)
    right.plot(steps, series["step"], color=colour("adamw"), linewidth=2)
    right.set(
        title="Adam's step, one over the other",
        xlabel="step $t$",
        ylabel="step, in learning rates",
        ylim=(-1.5, 1.5),
    )


def _step_size(panels: list[Axes], config: dict[str, Any]) -> None:
    tokens = config["tokens"]
    ranks = np.unique(np.geomspace(1, tokens, 120).round().astype(int))
    law = arithmetic.zipf(tokens, config["exponent"])[ranks - 1]
    left, right = panels
    left.plot(ranks, law, color="black", label="Zipf")
    right.plot(
        ranks, arithmetic.relative_step(law, tokens), color=colour("adamw"), label=label("adamw")
    )
    if config["frequencies"]:
        at, frequencies = np.array(config["frequencies"]).T
        style: dict[str, Any] = {"markersize": 4, "markerfacecolor": "none", "alpha": 0.7}
        left.plot(at, frequencies, "o", color="0.3", label="the text", **style)
        steps = arithmetic.relative_step(frequencies, tokens)
        right.plot(at, steps, "o", color=colour("adamw"), **style)
    right.axhline(1, color=colour("coupled"), linewidth=2, label=label("coupled"))
    right.axhline(1, color=colour("sgd"), linewidth=2, linestyle=(0, (4, 4)), label=label("sgd"))
    for panel, title, measure in (
        (left, "How often a token occurs", "frequency"),
        (right, "How far it is let step", "step ÷ shared step"),
    ):
        panel.set(
            xscale="log", yscale="log", title=title, xlabel="rank of the token", ylabel=measure
        )
        panel.legend(frameon=False)


def _toy(panels: list[Axes], config: dict[str, Any]) -> None:
    updates, _ = arithmetic.toy_run(
        tuple(config["optimizers"]), config["halvings"], 2 ** config["doublings"], config["seed"]
    )
    for panel, (name, update) in zip(panels, updates.items(), strict=True):
        _plane(panel, 6.5)
        tokens, places = arithmetic.head_to_tail(name, update[0])
        total = float(np.linalg.norm(places[-1]))
        if total > 1e-9:
            _arrow(
                panel, (0, 0), places[-1], zorder=1, linewidth=10, color="0.75", mutation_scale=16
            )
        for token, tail, head in zip(tokens, places[:-1], places[1:], strict=True):
            frequent = token < len(update[0]) - arithmetic.TOY_RARE
            if frequent:  # below the thin ones: often all lie on one line, there and back
                _arrow(panel, tail, head, zorder=2, linewidth=5, color=colour(name))
            else:
                _arrow(panel, tail, head, zorder=3, linewidth=1.2, color="black")
        panel.set_title(
            f"{label(name)}\nlength of the sum {0 if total < 1e-9 else round(total, 1)}"
        )
    panels[0].set_ylabel("dimension 2")
