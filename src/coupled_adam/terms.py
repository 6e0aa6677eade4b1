"""Remedies outside the step: terms added to the loss, and repairs of the model after a step.

Arms name them (``arms.ARMS``). All take the output embeddings [V, H] of a batch of N positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from coupled_adam.gpt import GPT

MU_LOSS = 1e-4
Z_LOSS = 1e-4
COSINE = 1.0


def mu_loss(logits: Tensor, embeddings: Tensor) -> Tensor:
    """1e-4 times the squared norm of the mean embedding (Stollenwerk et al., 2026).

    Args:
        logits: [N, V]; not used.
        embeddings: [V, H].
    """
    return MU_LOSS * embeddings.mean(dim=0).square().sum()


def z_loss(logits: Tensor, embeddings: Tensor) -> Tensor:
    """1e-4 times the mean squared log partition (Chowdhery et al., 2022, section 5).

    Args:
        logits: [N, V].
        embeddings: [V, H]; not used.
    """
    return Z_LOSS * logits.logsumexp(dim=-1).square().mean()


def cosine_loss(logits: Tensor, embeddings: Tensor) -> Tensor:
    """The mean cosine of two different embeddings (Gao et al., 2019, section 5).

    The sum over all pairs is the squared sum of the unit vectors, so it costs O(V H).

    Args:
        logits: [N, V]; not used.
        embeddings: [V, H].
    """
    units = embeddings / embeddings.norm(dim=1, keepdim=True).clamp(min=1e-12)
    count = len(embeddings)
    return COSINE * (units.sum(dim=0).square().sum() - count) / count**2


def centre_embeddings(model: GPT) -> None:
    """Take the mean row out of the output embeddings (mu-centring, Stollenwerk et al., 2026).

    With an untied head nothing else changes; a tied table is read at the input too.

    Args:
        model: its output embeddings are changed in place.
    """
    table = model.output_embedding.data
    table.sub_(table.mean(dim=0))
