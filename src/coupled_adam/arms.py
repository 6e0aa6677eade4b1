"""The arms: every way in which the embeddings are trained, what it is called and how it looks.

One entry in ``ARMS`` is all that a new arm needs: command line, training, records, pictures and
live figures take it from here. Nothing is imported from torch until a model is trained, since
pictures and live figures read names and colours without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coupled_adam import terms
from coupled_adam.errors import RefusedError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from coupled_adam.gpt import GPT


@dataclass(frozen=True)
class Arm:
    """One way to train the embeddings; everything else is trained by AdamW in almost every arm.

    Attributes:
        name: in code, tables and on the command line.
        label: in pictures and prose.
        colour: as #rrggbb; distinguishable from the others with every common colour blindness, or
            ``GREY`` for an arm that is only drawn beside its own name.
        marker: of Matplotlib, distinguishable without colour.
        colour_on_dark: the same, lighter, for live figures on a dark page; "" if it needs none.
        group: what the embeddings' group of the one ``CoupledAdamW`` is told, such as
            ``{"coupled": True}``.
        alternative: what ``optim.alternatives.SharedAdam`` is told that steps the embeddings, with
            the recipe's betas and epsilon where it says none; None if it does not.
        optimizer: makes an optimizer of the embeddings' own, from their matrices and a learning
            rate; None if they are stepped by the one ``CoupledAdamW`` or an alternative.
        loss_term: what is added to the loss, from logits [N, V] and output embeddings [V, H].
        repair: what is done to the model after every step.
        matrices: makes the optimizer of the matrices inside the blocks, from these, a learning
            rate and a weight decay; None if they too are stepped by the one ``CoupledAdamW``.
        learning_rate_multiplier: the embeddings' learning rate as a multiple of the others'.
    """

    name: str
    label: str
    colour: str
    marker: str
    colour_on_dark: str = ""
    group: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Callable[[list[Tensor], float], torch.optim.Optimizer] | None = None
    alternative: Mapping[str, Any] | None = None
    loss_term: Callable[[Tensor, Tensor], Tensor] | None = None
    repair: Callable[[GPT], None] | None = None
    matrices: Callable[[list[Tensor], float, float], torch.optim.Optimizer] | None = None
    learning_rate_multiplier: float = 1.0


def _sgd(embeddings: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    import torch

    return torch.optim.SGD(embeddings, lr=learning_rate, momentum=0.9)


def _muon(
    matrices: list[Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    import torch

    if not hasattr(torch.optim, "Muon"):
        raise RefusedError(f"torch {torch.__version__} has no Muon: this arm needs 2.9 or later")
    # Its steps have the root mean square of Adam's, so that one learning rate serves both.
    return torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )


GREY = "#6E6E6E"

# In the order of tables and pictures. Colours: Okabe and Ito's palette; #CC79A7 is the accent of
# pictures.
ARMS = {
    arm.name: arm
    for arm in (
        # 300: the paper's multiplier of SGD's learning rate.
        Arm("sgd", "SGD", "#009E73", "s", "#1FB98D", {}, _sgd, learning_rate_multiplier=300.0),
        Arm("adamw", "Adam", "#D55E00", "o", "#F07F2E"),
        # Adam's two plain remedies, the rivals of Coupled Adam: a memory in which rare tokens occur
        # (nanochat's 0.995 goes the same way), and an epsilon above the root of their v.
        Arm("adamw-memory", "Adam, long memory", "#E69F00", "^", "", {"betas": (0.9, 0.999)}),
        Arm("adamw-epsilon", "Adam, large epsilon", "#56B4E9", "v", "", {"eps": 1e-4}),
        Arm("coupled", "Coupled Adam", "#0072B2", "D", "#4AA8E0", {"coupled": True}),
        # Chapter 12: the second moment shared over another axis, or none.
        Arm("adam-width", "Adam, shared over the width", GREY, "<",
            alternative=dict(share="width")),
        Arm("adam-all", "Adam, one number for all", GREY, ">", alternative=dict(share="all")),
        Arm("adam-factored", "Adam, factored", GREY, "P", alternative=dict(share="factored")),
        Arm("ember", "Ember (factored, no momentum)", GREY, "X",
            alternative=dict(share="factored", betas=(0.0, 0.999))),
        Arm("signum", "Signs of the momentum", GREY, "*", alternative=dict(share="sign")),
        Arm("scale", "Columns normalised, no memory", GREY, "h",
            alternative=dict(share="vocabulary", betas=(0.0, 0.0))),
        Arm("amsgrad", "AMSGrad", GREY, "8", group={"amsgrad": True}),
        # Chapter 12: terms in the loss, repairs after the step, Muon on the matrices.
        Arm("mu-loss", "Adam + mu-loss", GREY, "p", loss_term=terms.mu_loss),
        Arm("z-loss", "Adam + z-loss", GREY, "H", loss_term=terms.z_loss),
        Arm("cosine-loss", "Adam + cosine term", GREY, "d", loss_term=terms.cosine_loss),
        Arm("mu-centring", "Adam, centred after each step", GREY, "|",
            repair=terms.centre_embeddings),
        Arm("update-centring", "Adam, updates centred", GREY, "_", alternative=dict(centre=True)),
        Arm("muon", "Muon, Adam on the table", GREY, "1", matrices=_muon),
        Arm("muon-coupled", "Muon, Coupled Adam on the table", GREY, "2", group={"coupled": True},
            matrices=_muon),
        # Chapter 11: between Coupled Adam and Adam.
        *(Arm(f"between-{own}", f"Coupled to Adam, a = {own}", GREY, marker,
              alternative=dict(share="vocabulary", own=own))
          for own, marker in ((0.25, "3"), (0.5, "4"), (0.75, "+"))),
        *(Arm(f"floor-{floor}", f"Adam, floor {floor}", GREY, marker,
              alternative=dict(floor=floor))
          for floor, marker in ((0.01, "x"), (0.1, "$f$"), (1, "$F$"))),
        Arm("coupled-uncorrected", "Coupled Adam, uncorrected", GREY, "$u$",
            alternative=dict(share="vocabulary", bias_correction=False)),
    )
}  # fmt: skip

MAIN = ("sgd", "adamw", "coupled")  # those that the book explains; what is compared by default


def arm(name: str) -> Arm:
    """The arm of a name.

    Raises:
        RefusedError: if there is none; the message lists those there are.
    """
    try:
        return ARMS[name]
    except (KeyError, TypeError):
        raise RefusedError(
            f"there is no arm {name!r}: choose one of {', '.join(ARMS)} (coupled_adam.arms.ARMS)"
        ) from None


def make_optimizers(
    model: GPT,
    name: str,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    multiplier: float | None = None,
    embedding: Mapping[str, Any] | None = None,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model in an arm.

    Args:
        model: its embeddings are stepped as the arm does it, its other parameters by AdamW.
        name: of the arm.
        learning_rate: of all but the embeddings, at its peak.
        betas: decay rates of Adam's moments.
        eps: Adam's epsilon.
        weight_decay: on matrices, not on the token embeddings and not on vectors.
        multiplier: of the embeddings' learning rate; None for the arm's own.
        embedding: what the embeddings' group is told beside the arm's own, such as
            ``{"eps": 1e-4}``; a value of None says nothing. Not for an arm whose embeddings have
            an optimizer of their own.

    Returns:
        One optimizer, or more if the embeddings or the matrices have their own. The first one steps
        the embeddings, and they are its first group: evaluation reads their moments there. Every
        group has an ``lr_multiplier``, by which a schedule multiplies its learning rate.

    Raises:
        RefusedError: if there is no such arm, or torch is too old for it.
    """
    from coupled_adam.optim import CoupledAdamW, param_groups

    chosen = arm(name)
    if multiplier is None:
        multiplier = chosen.learning_rate_multiplier
    tables = {id(table): table for table in (model.embedding, model.output_embedding)}
    groups = param_groups(model, weight_decay, embeddings=list(tables.values()))
    of_embeddings, *others = groups
    of_matrices: list[torch.optim.Optimizer] = []
    if chosen.matrices is not None:
        of_blocks: list[Tensor] = [p for p in model.blocks.parameters() if p.ndim == 2]
        inside = {id(matrix) for matrix in of_blocks}
        for group in others:
            group["params"] = [p for p in group["params"] if id(p) not in inside]
        of_matrices.append(chosen.matrices(of_blocks, learning_rate, weight_decay))
    for group in (*others, *(group for one in of_matrices for group in one.param_groups)):
        group["lr_multiplier"] = 1.0
    given = {name: value for name, value in (embedding or {}).items() if value is not None}
    own = None
    if chosen.optimizer is not None:
        own = chosen.optimizer(of_embeddings["params"], learning_rate * multiplier)
    elif chosen.alternative is not None:
        from coupled_adam.optim.alternatives import SharedAdam

        told = {"betas": betas, "eps": eps, **chosen.alternative, **given}
        own = SharedAdam(of_embeddings["params"], lr=learning_rate * multiplier, **told)
    if own is None:
        of_embeddings |= {"coupled": False, "lr_multiplier": multiplier, **chosen.group, **given}
    else:
        groups = others
        for group in own.param_groups:
            group["lr_multiplier"] = multiplier
    made = CoupledAdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)
    return [made, *of_matrices] if own is None else [own, made, *of_matrices]
