"""The pictures of the report: each with its question, its answer in words, and what is seen."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from coupled_adam.extras import MissingExtraError, needs
from coupled_adam.palette import label
from coupled_adam.report.advice import Facts, interval_of
from coupled_adam.report.experiment import Result
from coupled_adam.report.facts import CURVE, TUNING
from coupled_adam.report.tables import frequency_table, gains_table, paired, rates_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """One picture of the report.

    Attributes:
        question: that it answers, its heading.
        answer: in words and numbers.
        alt: what is to be seen, for who does not see it.
        source: a data address of SVG; "" where it could not be drawn.
        missing: why it was not; "" if it was.
    """

    question: str
    answer: str
    alt: str
    source: str
    missing: str = ""


def pictures(result: Result, facts: Facts) -> list[Picture]:
    """The pictures in the order of the report.

    They need Matplotlib and seaborn, which come with the extra "book"; without, their words stay.
    """
    return [
        _gains(result, facts),
        _rates(result),
        _frequency(result),
        _curves(result, facts),
    ]


def _gains(result: Result, facts: Facts) -> Picture:
    table = gains_table(facts, list(range(facts.pairs)))
    names = {"text": "on the text", "twin": "on its shuffled twin", "net": "net: the difference"}
    names |= {"common": "at Adam's best rate"}
    long = table.melt(["rival", "seed"], list(names), "what", "gain")
    long = long.assign(row=long["what"].map(names), optimizer=long["rival"])
    said = []
    for one in facts.versus:
        found = interval_of(one.net)
        if found is not None:
            said.append(
                f"over {label(one.rival)} {found.mean:+.3f} nats ({found.low:+.3f} to "
                f"{found.high:+.3f})"
            )
    answer = (
        f"Net gain {'; '.join(said) or 'not known yet'}. A gain counts from {facts.threshold:g} "
        f"nats on. Each tick is one of {facts.pairs} pairs of runs with the same start and "
        "batches, the mark is their mean, the bar its 95 % interval; colours are the rivals'."
    )
    kept = _with_intervals(long, "gain")

    def draw() -> Figure:
        from coupled_adam import plots

        return plots.in_rows(kept, {"gain": f"lower loss of {label(facts.arm)} (nats)"})

    return _picture(
        f"Is the loss of {label(facts.arm)} lower, and is that more than counts give?",
        answer,
        f"Gains of {label(facts.arm)} in nats over each rival: on the text, on its shuffled twin, "
        f"the difference, and at one common rate. {answer}",
        draw if len(kept) else None,
    )


def _rates(result: Result) -> Picture:
    table = rates_table(result)
    said = [
        f"{label(row.optimizer)} at {row.learning_rate:.3g}"
        + ("" if row.tuned else " (not tuned: at the edge)")
        for row in table[table["best"]].itertuples()
    ]
    tried = table.groupby("optimizer")["multiplier"].nunique()
    counts = ", ".join(f"{label(name)} {count}" for name, count in tried.items())
    answer = (
        f"Best learning rate of the embeddings: {', '.join(said)}. Rates tried: {counts}; an arm "
        "whose best one lay at an edge got more."
    )
    tuning = result.table[result.table["stage"] == TUNING]
    finite = tuning[np.isfinite(tuning["loss/tuning"])]

    def draw() -> Figure:
        from coupled_adam import plots

        return plots.tuning_curves({"": finite})

    return _picture(
        "Was every arm given its own best learning rate?",
        answer,
        f"Loss of the tuning half over the embeddings' learning rate, a line an arm. {answer}",
        draw if len(finite) else None,
    )


def _frequency(result: Result) -> Picture:
    table = frequency_table(result)
    answer = "The losses of the classes of frequency are not known."
    if len(table):
        mean = table.groupby(["rival", "class"], sort=False)["contribution"].mean()
        said = []
        for rival in result.plan.rivals:
            of_rival = mean[rival]
            name = of_rival.abs().idxmax()
            said.append(
                f"over {label(rival)} most comes from tokens of frequency {name} "
                f"({of_rival[name]:+.3f} of {of_rival.sum():+.3f} nats)"
            )
        answer = (
            f"Of the gain on the text, {'; '.join(said)}. Rare tokens stand above. The parts add "
            "up to the whole gain."
        )
    kept = _with_intervals(
        table.assign(row=table["class"], optimizer=table["rival"]), "contribution"
    )

    def draw() -> Figure:
        from coupled_adam import plots

        return plots.in_rows(kept, {"contribution": "contribution to the gain (nats)"})

    return _picture(
        "Is it rare or frequent tokens that are predicted better?",
        answer,
        f"Contribution of each class of token frequency to the gain. {answer}",
        draw if len(kept) else None,
    )


def _curves(result: Result, facts: Facts) -> Picture:
    own = paired(result)
    columns = sorted((c for c in own if c.startswith(CURVE)), key=lambda c: int(c[len(CURVE) :]))
    long = own.melt(["optimizer", "seed"], columns, "at", "validation_loss")
    step = result.plan.batch_size * result.plan.shape["context"]
    at = [int(name[len(CURVE) :]) // step for name in long["at"]]
    long = long.assign(step=at)
    long = long[(long["step"] > 0) & np.isfinite(long["validation_loss"].astype(float))]
    said = []
    for one in facts.versus:
        found = interval_of(one.speed_up)
        if found is not None:
            said.append(
                f"over {label(one.rival)} {found.mean:.2f} ({found.low:.2f} to {found.high:.2f}), "
                f"in tokens alone {found.mean / one.step_ratio:.2f}, its step taking "
                f"{100 / one.step_ratio:.0f} % of the rival's time"
            )
    answer = (
        f"Effective speed-up {'; '.join(said) or 'not known'}: tokens that the rival needs for one "
        "that it needs itself, to the loss at which the worse of the two ends, times the ratio of "
        "the steps' times. It is gross: the twin's gain is in it."
    )
    enough = len(columns) > 1 and facts.pairs > 1 and len(long) > 0

    def draw() -> Figure:
        from coupled_adam import plots

        return plots.curves(long, {"validation_loss": "validation loss (nats)"})

    return _picture(
        "How much text and time does each need for the same loss?",
        answer,
        f"Validation loss by step, a line an arm. {answer}",
        draw if enough else None,
    )


def _with_intervals(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows whose mean has an interval: of at least two finite values."""
    finite = table[np.isfinite(table[measure].astype(float))]
    if not len(finite):
        return finite
    counts = finite.groupby(["optimizer", "row"])[measure].transform("size")
    return finite[counts > 1]


def _picture(question: str, answer: str, alt: str, draw: Callable[[], Figure] | None) -> Picture:
    if draw is None:
        return Picture(question, answer, alt, "", "There is too little for a picture yet.")
    try:
        with needs("book"):
            import matplotlib
            import seaborn  # noqa: F401
    except MissingExtraError as error:
        return Picture(question, answer, alt, "", f"No picture: {error}")
    file = io.BytesIO()
    # One number for the names inside, and no date: the same report is the same file.
    with matplotlib.rc_context({"svg.hashsalt": "coupled-adam"}):
        draw().savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    code = base64.b64encode(file.getvalue()).decode()
    return Picture(question, answer, alt, f"data:image/svg+xml;base64,{code}")


def shown_number(value: float, digits: int = 3) -> str:
    """A number of a table; a dash where there is none."""
    return f"{value:.{digits}g}" if math.isfinite(value) else "–"
