"""From word counts and a plan alone: how far will Adam move the mean, and will coupling pay?

One explaining variable: the share of the vocabulary that occurs less than once within the memory
of Adam's second moment (``evidence.memory``). A straight line is fitted to the recorded settings
and judged on settings that its fit has not seen: whatever was varied to get them is left out as a
whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from coupled_adam.errors import RefusedError
from coupled_adam.experiments import evidence, recorded
from coupled_adam.experiments.recorded import ADAM, COUPLED, MEMORY

DRIFT, GAIN, GAIN_OVER_MEMORY = "drift", "gain", "gain over memory"
MEASURES = {
    DRIFT: "relative mean norm under Adam",
    GAIN: "gain of Coupled Adam over Adam (nats)",
    GAIN_OVER_MEMORY: "gain over Adam with a long memory (nats)",
}
# At 50 steps Coupled Adam was far behind (batch 16: 0.17 nats, 0.4M batch 64: 0.79), whatever the
# share. The limit was set when this had been seen.
LEAST_STEPS = 200
_LEAST_GROUPS = 4
_OF_THE_PLAN = ("tokens", "rare_share", "median_n", "steps")


@dataclass(frozen=True)
class Prediction:
    """A forecast, and how good such forecasts were.

    Attributes:
        measure: ``DRIFT``, ``GAIN`` or ``GAIN_OVER_MEMORY``.
        value: of the line.
        error: root mean squared error of the line on settings that it had not seen.
        error_of_mean: the same for the mean of the other settings, which knows nothing.
        settings: how many there were.
    """

    measure: str
    value: float
    error: float
    error_of_mean: float
    settings: int

    @property
    def better_than_mean(self) -> bool:
        """Whether the line predicted unseen settings better than the mean of the others."""
        return self.error < self.error_of_mean


def settings(folder: str | Path = recorded.FOLDER) -> pd.DataFrame:
    """Every recorded setting of the sweeps that changes what is trained, each arm at its best rate.

    Args:
        folder: of the records.

    Returns:
        Index: the setting. Columns: ``varied``; ``tokens``, ``rare_share``, ``median_n``, ``steps``
        as in its record; ``drift``, the relative mean norm of Adam's output embeddings; ``gain``
        and ``gain over memory``, by how many nats the loss of Coupled Adam is below that of Adam
        and of Adam with a long memory (NaN where that was not run). The last three are means over
        the report's seeds.
    """
    rows = []
    for point in recorded.recorded_points(folder):
        if not point.varied:
            continue
        table = recorded.read(point.name, folder)
        adam = table[(table["stage"] == "report") & (table["optimizer"] == ADAM)]
        over_memory = np.nan
        if MEMORY in point.arms:
            over_memory = evidence.gains(table, COUPLED, MEMORY).mean()
        rows.append(
            {
                "setting": point.name,
                "varied": point.varied,
                **{name: table[name].iloc[0] for name in _OF_THE_PLAN},
                DRIFT: adam["geometry/relative_mean_norm"].mean(),
                GAIN: evidence.gains(table, COUPLED, ADAM).mean(),
                GAIN_OVER_MEMORY: over_memory,
            }
        )
    return pd.DataFrame(rows).set_index("setting")


def left_out(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Predict each setting from those in which something else was varied.

    Args:
        table: of ``settings``, or one with the columns varied, rare_share, steps and the measure.
        measure: ``DRIFT``, ``GAIN`` or ``GAIN_OVER_MEMORY``.

    Returns:
        Columns measured, line, mean: of the settings that have the measure and at least
        ``LEAST_STEPS`` steps.

    Raises:
        RefusedError: if fewer than four things were varied.
    """
    known = table[table[measure].notna() & (table["steps"] >= LEAST_STEPS)]
    groups = known["varied"].unique()
    if len(groups) < _LEAST_GROUPS:
        raise RefusedError(
            f"{len(groups)} things were varied in the recorded settings of {measure!r}, and a "
            f"prediction needs {_LEAST_GROUPS}: record more with 'coupled-adam evidence NAME'"
        )
    parts = []
    for group in groups:
        unseen, seen = known[known["varied"] == group], known[known["varied"] != group]
        line = np.polyfit(seen["rare_share"], seen[measure], 1)
        parts.append(
            pd.DataFrame(
                {
                    "measured": unseen[measure],
                    "line": np.polyval(line, unseen["rare_share"]),
                    "mean": seen[measure].mean(),
                }
            )
        )
    return pd.concat(parts).loc[known.index]


def predict(
    table: pd.DataFrame, rare_share: float, measure: str, steps: int | None = None
) -> Prediction:
    """Predict a measure from the share of rare tokens, with the error that such forecasts had.

    Args:
        table: of ``settings``.
        rare_share: of ``evidence.memory``, in [0, 1].
        measure: ``DRIFT``, ``GAIN`` or ``GAIN_OVER_MEMORY``.
        steps: of the plan; None if it has at least ``LEAST_STEPS``.

    Returns:
        The prediction, from the line through all settings of at least ``LEAST_STEPS`` steps.

    Raises:
        RefusedError: if the share is outside its range, the plan has too few steps, or fewer than
            four things were varied.
    """
    if steps is not None and steps < LEAST_STEPS:
        raise RefusedError(
            f"{steps} steps are too few to predict from settings of {LEAST_STEPS} and more: in "
            f"runs of 50 steps Coupled Adam was far behind Adam (chapter 10)"
        )
    if not 0 <= rare_share <= 1:
        raise RefusedError(f"rare_share is a share of the vocabulary in [0, 1], not {rare_share!r}")
    unseen = left_out(table, measure)
    known = table.loc[unseen.index]
    line = np.polyfit(known["rare_share"], known[measure], 1)

    def error(of: str) -> float:
        return float(np.sqrt(((unseen[of] - unseen["measured"]) ** 2).mean()))

    return Prediction(
        measure, float(np.polyval(line, rare_share)), error("line"), error("mean"), len(unseen)
    )
