"""Coupled Adam written out as the equations say it: plain loops, float64, no tricks.

This is what chapter 06 shows, and what the tests hold the real optimizer against. It is slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = list[list[float]]


def coupled_adamw_reference(
    weight: Sequence[Sequence[float]],
    gradients: Sequence[Sequence[Sequence[float]]],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    coupled: bool = True,
) -> Matrix:
    """Run AdamW on one matrix, with or without coupling, from given gradients.

    Adam: Kingma and Ba (2015), algorithm 1, with decoupled weight decay of Loshchilov and Hutter
    (2019). Coupling: Stollenwerk and Stollenwerk (2025), where the second moment of each row is
    replaced by its mean over the rows. The state here is the full matrix, averaged at every step,
    as in the paper; that the optimizer keeps one vector instead is for the tests to justify.

    Args:
        weight: the matrix before the first step, V rows (tokens) of H numbers.
        gradients: one gradient a step, each V rows of H numbers.
        lr: learning rate, at least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: share of the weight, times the learning rate, taken off before each step.
        amsgrad: use the largest second moment so far (of the mean, if coupled).
        maximize: ascend instead of descend.
        coupled: False gives plain AdamW.

    Returns:
        The matrix after the last step, V rows of H numbers.
    """
    beta1, beta2 = betas
    rows, columns = range(len(weight)), range(len(weight[0]))
    e = [[float(x) for x in row] for row in weight]
    m = [[0.0 for _ in columns] for _ in rows]
    v = [[0.0 for _ in columns] for _ in rows]
    largest = [[0.0 for _ in columns] for _ in rows]
    for t, gradient in enumerate(gradients, start=1):
        for i in rows:
            for k in columns:
                g = -float(gradient[i][k]) if maximize else float(gradient[i][k])
                m[i][k] = beta1 * m[i][k] + (1 - beta1) * g
                v[i][k] = beta2 * v[i][k] + (1 - beta2) * g * g
        for k in columns:
            shared = sum(v[i][k] for i in rows) / len(rows)
            for i in rows:
                second_moment = shared if coupled else v[i][k]
                largest[i][k] = max(largest[i][k], second_moment)
                used = largest[i][k] if amsgrad else second_moment
                m_hat = m[i][k] / (1 - beta1**t)
                v_hat = used / (1 - beta2**t)
                e[i][k] -= lr * weight_decay * e[i][k]
                e[i][k] -= lr * m_hat / (math.sqrt(v_hat) + eps)
    return e
