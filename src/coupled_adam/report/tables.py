"""What is written beside the report: the tables as CSV and the verdict for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.losses import FREQUENCY_BORDERS
from coupled_adam.evaluation.table import class_name
from coupled_adam.experiments import evidence
from coupled_adam.files import write_json, write_whole
from coupled_adam.palette import label
from coupled_adam.report.advice import (
    PRIMARY,
    THRESHOLD,
    Advice,
    Facts,
    advise,
    interval_of,
)
from coupled_adam.report.experiment import Result
from coupled_adam.report.facts import (
    CLASSIFICATION,
    LOSS,
    MEMORY,
    REPORT,
    RETRIEVAL,
    TUNING,
    complete_pairs,
)
from coupled_adam.report.plan import LEARNING_RATE, Probe
from coupled_adam.report.steps import CostSheet, next_steps

VERDICT_FILE = "verdict.json"
_DIGITS = 6
# What the report shows of each arm, with its name in words.
MEASURES = {
    LOSS: "loss (nats)",
    RETRIEVAL: "retrieval (mean reciprocal rank)",
    CLASSIFICATION: "classification (accuracy)",
    "geometry/relative_mean_norm": "relative norm of the mean embedding",
    "geometry/isotropy": "isotropy",
    "stability/loss_spikes": "loss spikes (share of steps)",
    "stability/gradient_spikes": "gradient spikes (share of steps)",
    "stability/largest_gradient_norm": "largest gradient norm",
    "stability/clipped_steps": "clipped steps (share)",
    MEMORY: "state of the optimizers (MiB)",
}
_CLASSES = (0.0, *FREQUENCY_BORDERS, 1.0)


def paired(result: Result) -> pd.DataFrame:
    """The rows of the report of those seeds with which every arm was trained."""
    table = result.table
    seeds = complete_pairs(table, result.plan.arms)
    return table[(table["stage"] == REPORT) & table["seed"].isin(seeds)]


def gains_table(facts: Facts, seeds: list[int]) -> pd.DataFrame:
    """The gain over each rival, seed by seed, in nats.

    Columns rival, seed, text, twin, net, common: NaN where something was not trained, infinite
    where a run diverged.
    """
    rows = []
    for one in facts.versus:
        for k, seed in enumerate(seeds):
            twin = one.twin_gains[k] if one.twin_gains else math.nan
            both = math.isfinite(one.gains[k]) and math.isfinite(twin)
            rows.append(
                {
                    "rival": one.rival,
                    "seed": seed,
                    "text": one.gains[k],
                    "twin": twin,
                    "net": one.gains[k] - twin if both else math.nan,
                    "common": one.common_gains[k] if one.common_gains else math.nan,
                }
            )
    return pd.DataFrame(rows)


def rates_table(result: Result) -> pd.DataFrame:
    """The loss of the tuning half at every rate that was tried, and which one won."""
    tuning = result.table[result.table["stage"] == TUNING]
    mean = tuning.groupby(["optimizer", "multiplier"], as_index=False).agg(
        loss=("loss/tuning", "mean"), seeds=("seed", "nunique")
    )
    mean.insert(2, "learning_rate", mean["multiplier"] * LEARNING_RATE)
    mean["best"] = mean["multiplier"] == mean["optimizer"].map(result.best)
    mean["tuned"] = mean["optimizer"].map(result.tuned)
    return mean


def frequency_table(result: Result) -> pd.DataFrame:
    """What each class of frequency contributes to the gain over each rival, rarest first.

    Columns rival, class, seed, share (of the targets), gain (in nats within the class) and
    contribution, their product; of the pairs in which nothing diverged.
    """
    rows = []
    for rival in result.plan.rivals:
        own = paired(result)
        for number, (low, high) in enumerate(pairwise(_CLASSES)):
            column = f"loss/class {number}"
            if column not in own:
                continue
            share = own[f"share/class {number}"].dropna()
            gains = evidence.gains(own, result.plan.arm, rival, column=column).dropna()
            if share.empty or share.iloc[0] == 0:
                continue
            rows += [
                {
                    "rival": rival,
                    "class": class_name(low, high),
                    "seed": int(seed),
                    "share": share.iloc[0],
                    "gain": gain,
                    "contribution": share.iloc[0] * gain,
                }
                for seed, gain in gains.items()
            ]
    return pd.DataFrame(rows, columns=["rival", "class", "seed", "share", "gain", "contribution"])


def measures_table(result: Result) -> pd.DataFrame:
    """Every measure of every arm: columns optimizer, measure, and over the seeds mean, low, high.

    Descriptive: many measures stand side by side, and one of twenty differs by chance alone.
    """
    own, rows = paired(result), []
    for column, called in MEASURES.items():
        for name in result.plan.arms if column in own else ():
            values = own[own["optimizer"] == name][column]
            found = interval_of(values)
            finite = values[np.isfinite(values)]
            mean = float(finite.mean()) if len(finite) else math.nan
            low, high = (found.low, found.high) if found else (math.nan, math.nan)
            rows.append(
                {"optimizer": name, "measure": called, "mean": mean, "low": low, "high": high}
            )
    probed = Probe(result.plan.step_seconds, result.plan.run_seconds)
    for name in result.plan.arms:
        blocks = interval_of(probed.step_seconds[name])
        low, high = (1000 * blocks.low, 1000 * blocks.high) if blocks else (math.nan, math.nan)
        rows.append(
            {
                "optimizer": name, "measure": "time of a step (ms)",
                "mean": 1000 * probed.step(name), "low": low, "high": high,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def all_tables(result: Result, facts: Facts) -> dict[str, pd.DataFrame]:
    """The tables by the names of their files, without endings."""
    return {
        "gains": gains_table(facts, complete_pairs(result.table, result.plan.arms)),
        "rates": rates_table(result),
        "frequency": frequency_table(result),
        "measures": measures_table(result),
    }


def verdict_of(result: Result, facts: Facts, advice: Advice, costs: CostSheet) -> dict[str, Any]:
    """The verdict for scripts: no infinite number, no time of day."""
    gains = {}
    for one in facts.versus:
        found = interval_of(one.net)
        gains[one.rival] = {
            "net": found._asdict() if found else None,
            "text": _asdict(one.gains),
            "twin": _asdict(one.twin_gains),
            "common_rate": _asdict(one.common_gains),
            "retrieval": _asdict(one.retrieval),
            "classification": _asdict(one.classification),
            "speed_up": _asdict(one.speed_up),
            "step_ratio": one.step_ratio,
        }
    content = {
        "verdict": advice.verdict,
        "call": advice.call,
        "sentence": advice.sentence,
        "primary": PRIMARY,
        "threshold": facts.threshold,
        "strongest_rival": facts.strongest.rival,
        "pairs": facts.pairs,
        "planned_pairs": facts.planned_pairs,
        "more_pairs": advice.more_pairs,
        "gains": gains,
        "rules": [
            {
                "rule": one.rule, "kind": one.kind, "fired": one.fired,
                "sentence": one.sentence, "numbers": dict(one.numbers),
            }
            for one in advice.findings
        ],
        "best_multipliers": result.best,
        "tuned": result.tuned,
        "plan": result.plan.to_json(),
        "next_steps": [step._asdict() for step in next_steps(facts, advice)],
        "costs": {"introduction": costs.cost, "break_even_machine_hours": costs.break_even_hours},
    }  # fmt: skip
    return json.loads(json.dumps(_plain(content), allow_nan=False))


def write_tables(
    result: Result,
    out: Path,
    threshold: float = THRESHOLD,
    costs: CostSheet | None = None,
) -> tuple[Facts, Advice]:
    """Write the tables and the verdict, each whole or not at all.

    Args:
        result: of the experiment.
        out: folder of the comparison.
        threshold: nats from which on a gain counts.
        costs: prices; the defaults of ``CostSheet`` if not given.

    Returns:
        What was decided on, and the recommendation.

    Raises:
        RefusedError: if no pair is complete yet.
        OSError: if a file cannot be written.
    """
    facts = result.facts(threshold)
    advice = advise(facts)
    for name, table in all_tables(result, facts).items():
        content = table.to_csv(index=False, float_format=f"%.{_DIGITS}g")
        write_whole(out / f"{name}.csv", content.encode())
    verdict = verdict_of(result, facts, advice, costs or CostSheet())
    write_json(out / VERDICT_FILE, verdict)
    return facts, advice


def speed_up_of(facts: Facts) -> float:
    """The effective speed-up over the strongest rival, mean over the pairs; NaN if unknown."""
    found = facts.strongest.speed_up
    return float(np.mean(found)) if found else math.nan


def summary_lines(facts: Facts, advice: Advice) -> list[str]:
    """What the command line says in the end."""
    lines = [f"Primary measure: {PRIMARY}.", advice.sentence]
    lines += [f"- {one.sentence}." for one in advice.fired if one.kind == "note"]
    if speed_up_of(facts) > 0:
        lines.append(
            f"- effective speed-up over {label(facts.strongest.rival)}: {speed_up_of(facts):.2f}."
        )
    return lines


def _asdict(values: tuple[float, ...]) -> dict[str, float] | None:
    found = interval_of(values)
    return found._asdict() if found else None


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: rounded, and None for those that are not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        number = float(value)
        return float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be written, or that holds something else.

    Raises:
        RefusedError: with the reason.
    """
    if out.exists() and not out.is_dir():
        raise RefusedError(f"--out {out} is a file: give the name of a folder")
    ours = {"state.json", "probe.json", "runs"}
    if out.is_dir() and any(out.iterdir()) and not ours & {path.name for path in out.iterdir()}:
        raise RefusedError(f"--out {out} is not empty and holds no comparison: choose another")
