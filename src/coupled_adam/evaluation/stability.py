"""How calmly a run was trained: what its metrics say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from coupled_adam.evaluation.table import TRAINED, Measure, not_taken, too_few

_WINDOW, _LEAST_BEFORE, _DEVIATIONS = 1000, 20, 7.0
# Measures of steps that a run's metrics may hold, with their column.
_IF_RECORDED = {"largest_update_norm": "update_norm", "logit_growth": "logit_norm"}


def stability_rows(metrics: pd.DataFrame, gradient_clip: float) -> list[Measure]:
    """Spikes, gradient norms and clipped steps of a run.

    Args:
        metrics: as ``training.Run.metrics``.
        gradient_clip: the norm above which gradients were clipped.

    Returns:
        Rows of ``loss_spikes`` and ``gradient_spikes``, the share of steps that stand out as
        ``spikes`` says; ``largest_gradient_norm``, before clipping; ``clipped_steps``, the share
        of steps; and, if the metrics have the columns ``update_norm`` and ``logit_norm``,
        ``largest_update_norm``, and ``logit_growth``, the last norm over the first. ``n`` is the
        number of steps. Steps are no sample, so that there is no interval.
    """
    steps = metrics[metrics["step"] > 0]
    norms, n = steps["gradient_norm"].to_numpy(), len(steps)
    rows = []
    for name, column in (("loss_spikes", "loss"), ("gradient_spikes", "gradient_norm")):
        judged = n - _LEAST_BEFORE
        rows.append(
            Measure(name, "", TRAINED, float(spikes(steps[column].to_numpy()).mean()), n=judged)
            if judged > 0
            else not_taken(name, "", too_few(n, _LEAST_BEFORE + 1, "steps"), n)
        )
    rows += [
        Measure("largest_gradient_norm", "", TRAINED, float(norms.max()), n=n),
        Measure("clipped_steps", "", TRAINED, float((norms > gradient_clip).mean()), n=n),
    ]
    for name, column in _IF_RECORDED.items():
        found = steps[column].dropna().to_numpy() if column in steps else np.empty(0)
        if not len(found):
            rows.append(not_taken(name, "", f"the run did not record {column}"))
            continue
        value = found.max() if name == "largest_update_norm" else found[-1] / found[0]
        rows.append(Measure(name, "", TRAINED, float(value), n=len(found)))
    return rows


def spikes(values: np.ndarray) -> np.ndarray:
    """Which values stand out above those before them.

    After the spike score of OLMo 2 (arXiv 2501.00656): at least seven standard deviations above
    the mean of up to 1,000 values before, of which there must be 20; one-sided here, since a fall
    is no spike.

    Args:
        values: one a step, in order, [n].

    Returns:
        One truth value for each from the 21st on, [max(0, n - 20)].
    """
    before = pd.Series(values).rolling(_WINDOW, min_periods=_LEAST_BEFORE)
    mean, deviation = before.mean().to_numpy(), before.std().to_numpy()
    high = values[_LEAST_BEFORE:] - mean[_LEAST_BEFORE - 1 : -1]
    return high >= _DEVIATIONS * np.maximum(deviation[_LEAST_BEFORE - 1 : -1], 1e-12)
