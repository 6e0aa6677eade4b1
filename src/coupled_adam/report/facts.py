"""From the table of runs, as from ``evidence.rows_of``, to the facts that are decided on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from coupled_adam.report.advice import THRESHOLD, Facts, Versus

TUNING, REPORT, COMMON, SHUFFLED = "tuning", "report", "common", "shuffled"
LOSS = "loss/report"
RETRIEVAL, CLASSIFICATION, CURVE = "retrieval/halves", "classification/labels", "curve/"
MEMORY = "memory/optimizer_state"


def complete_pairs(table: pd.DataFrame, arms: Sequence[str]) -> list[int]:
    """The seeds with which every arm has been trained at its own best rate, in order."""
    reported = table[table["stage"] == REPORT]
    seen = reported.groupby("seed")["optimizer"].agg(set)
    return sorted(int(seed) for seed, there in seen.items() if set(arms) <= there)


def facts_of(
    table: pd.DataFrame,
    arm: str,
    rivals: Sequence[str],
    *,
    tuned: Mapping[str, bool],
    step_seconds: Mapping[str, float] | None = None,
    common: float | None = None,
    planned_pairs: int = 0,
    stopped: str = "",
    threshold: float = THRESHOLD,
    parameters: int = 0,
    tokens: int = 0,
    documents: int = 2,
) -> Facts:
    """The facts of a comparison.

    Args:
        table: one row a run; columns stage, optimizer, multiplier, seed, ``loss/report`` (infinite
            if it diverged), and whatever else was measured.
        arm: that is to be decided on.
        rivals: beside which it stands.
        tuned: see ``Facts``.
        step_seconds: of each arm; the ratio stays unknown without.
        common: the multiplier that all arms share, or None.
        planned_pairs: see ``Facts``, as for all that follow.
        stopped: why there are fewer.
        threshold: in nats.
        parameters: of a model.
        tokens: of a run.
        documents: of the validation text.

    Returns:
        The facts, of the seeds with which every arm was trained.
    """
    arms = [arm, *rivals]
    seeds = complete_pairs(table, arms)
    reported = table[(table["stage"] == REPORT) & table["seed"].isin(seeds)]
    twins = _wide(table[table["stage"] == SHUFFLED], LOSS)
    has_twins = set(arms) <= set(twins) and set(seeds) <= set(twins.index)
    own = _wide(reported, LOSS)
    shared = table[table["stage"].isin([REPORT, COMMON]) & (table["multiplier"] == common)]
    at_common = _wide(shared[shared["seed"].isin(seeds)], LOSS)
    versus = []
    for rival in rivals:
        ratio = math.nan
        if step_seconds and step_seconds.get(arm) and step_seconds.get(rival):
            ratio = step_seconds[rival] / step_seconds[arm]
        twin = twins.loc[seeds] if has_twins and seeds else None
        with_common = {arm, rival} <= set(at_common)
        versus.append(
            Versus(
                rival,
                _difference(own, rival, arm),
                () if twin is None else _difference(twin, rival, arm),
                _difference(at_common, rival, arm) if with_common else (),
                _measured(reported, RETRIEVAL, arm, rival),
                _measured(reported, CLASSIFICATION, arm, rival),
                speed_ups(reported, arm, rival, ratio),
                ratio,
            )
        )
    diverged = reported[np.isinf(reported[LOSS])].groupby("optimizer").size()
    return Facts(
        arm,
        tuple(versus),
        dict(tuned),
        {str(name): int(count) for name, count in diverged.items()},
        planned_pairs or len(seeds),
        stopped,
        threshold,
        parameters,
        tokens,
        documents,
    )


def tokens_to_reach(tokens: np.ndarray, losses: np.ndarray, target: float) -> float:
    """Tokens after which a falling loss is first at or below a target, between points by a line.

    Args:
        tokens: at which the loss was measured, rising, [n].
        losses: in nats, [n].
        target: in nats.

    Returns:
        Tokens; infinite if it is never reached.
    """
    there = np.flatnonzero(losses <= target)
    if not len(there):
        return math.inf
    k = int(there[0])
    if k == 0:
        return float(tokens[0])
    share = (losses[k - 1] - target) / (losses[k - 1] - losses[k])
    return float(tokens[k - 1] + share * (tokens[k] - tokens[k - 1]))


def speed_ups(reported: pd.DataFrame, arm: str, rival: str, step_ratio: float) -> tuple[float, ...]:
    """Tokens that the rival needs for one that the arm needs, times the ratio of throughputs.

    Whichever ends with the lower loss is asked when it had reached the other's last loss. Its
    learning rate was still high then, so that the answer is a cautious one.

    Args:
        reported: rows with columns ``curve/TOKENS``, the validation loss on the way.
        arm: that is judged.
        rival: beside it.
        step_ratio: the rival's seconds a step over the arm's.

    Returns:
        One number a seed in which both learned; empty without losses on the way or a ratio.
    """
    columns = sorted((c for c in reported if c.startswith(CURVE)), key=lambda c: int(c[6:]))
    if not columns or not math.isfinite(step_ratio):
        return ()
    tokens = np.array([int(column[6:]) for column in columns], float)
    found = []
    for _, rows in reported.groupby("seed"):
        curves = rows.set_index("optimizer")[columns]
        if not {arm, rival} <= set(curves.index):
            continue
        ours, theirs = (curves.loc[name].to_numpy(float) for name in (arm, rival))
        if not (np.isfinite(ours[-1]) and np.isfinite(theirs[-1])):
            continue
        better, worse = (ours, theirs) if ours[-1] <= theirs[-1] else (theirs, ours)
        needed = tokens_to_reach(tokens, better, worse[-1])
        if needed == 0:  # the worse one has learned nothing
            continue
        saved = tokens[-1] / needed
        found.append(float((saved if better is ours else 1 / saved) * step_ratio))
    return tuple(found)


def _wide(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    return rows.pivot(index="seed", columns="optimizer", values=column).sort_index()


def _difference(wide: pd.DataFrame, one: str, other: str) -> tuple[float, ...]:
    return tuple(float(value) for value in wide[one] - wide[other])


def _measured(reported: pd.DataFrame, column: str, arm: str, rival: str) -> tuple[float, ...]:
    """The arm's measure minus the rival's; empty where it was not measured."""
    if column not in reported or reported[column].isna().all():
        return ()
    return _difference(_wide(reported, column), arm, rival)
