"""The vectors that every measure is taken of: those of the run, and what they stand beside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coupled_adam import geometry
from coupled_adam.evaluation.table import CENTRED, TOP_REMOVED, TRAINED, UNTRAINED


def variants(trained: Tensor, untrained: Tensor) -> dict[str, Tensor]:
    """The trained vectors, their two repairs after training, and the untrained ones, by name.

    All-but-the-top removes one direction for each hundred dimensions, at least one, which is what
    Mu and Viswanath (2018) suggest.

    Args:
        trained: embeddings at the end of a run, [V, H].
        untrained: those at its beginning, [V, H].

    Returns:
        ``trained``, ``centred``, ``all-but-the-top`` and ``untrained``, each [V, H], float64, on
        the CPU.
    """
    end = trained.detach().double().cpu()
    return {
        TRAINED: end,
        CENTRED: geometry.centred(end),
        TOP_REMOVED: geometry.without_top_components(end, max(1, end.shape[1] // 100)),
        UNTRAINED: untrained.detach().double().cpu(),
    }


def directions(vectors: Tensor) -> Tensor:
    """The rows scaled to length 1, so that products are cosines; a zero row stays zero.

    Args:
        vectors: [n, H].
    """
    return F.normalize(torch.as_tensor(vectors), dim=1, eps=1e-300)
