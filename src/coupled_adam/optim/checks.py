"""What the optimizer refuses, each with a sentence that says what to do.

torch's own step writes into foreign memory, or goes on with a wrong number, for some of it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _device_dtype_check_for_fused

from coupled_adam.optim import sharding

SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


def width(parameter: Tensor, group: dict[str, Any]) -> torch.Size:
    """The shape of a coupled matrix's shared moment: that of the axis which is not of tokens."""
    return parameter.shape[1:] if group["vocabulary_dim"] == 0 else parameter.shape[:1]


def state_shapes(parameter: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
    """The moments that a parameter of a group has, and their shapes."""
    second = width(parameter, group) if group["coupled"] else parameter.shape
    shapes = {"exp_avg": parameter.shape, "exp_avg_sq": second}
    if group["amsgrad"]:
        shapes["max_exp_avg_sq"] = second
    return shapes


def point_out_wide(group: dict[str, Any]) -> None:
    """Say in the log which coupled matrices may have their tokens in columns.

    A head stored as [width, tokens] was once coupled along the wrong axis without a word.
    """
    if not group["coupled"] or "process_group" in group:  # of shards the shape says nothing
        return
    for parameter in group["params"]:
        rows, columns = parameter.shape
        if rows < columns:
            logging.getLogger(__name__).warning(
                "The %d rows of a coupled matrix of shape (%d, %d) are taken for the tokens. If "
                "it is stored as [width, tokens], its group needs vocabulary_dim=1; "
                "vocabulary_dim=0 says that this is right.",
                rows, rows, columns,
            )  # fmt: skip


def check_group(group: dict[str, Any]) -> None:
    """Refuse a coupled group that cannot be coupled correctly.

    Raises:
        ValueError: if it is empty, or holds something other than dense floating-point matrices of
            at least two tokens, whole or in shards that say which rows they are.
    """
    if not group["coupled"]:
        return
    if group["vocabulary_dim"] not in (0, 1):
        raise ValueError(
            f"vocabulary_dim={group['vocabulary_dim']!r} of a coupled group has to be 0, for "
            "matrices of shape [tokens, width], or 1, for [width, tokens]"
        )
    # ZeroRedundancyOptimizer gives each process some of the parameters, and maybe none of a group.
    elsewhere = sharding.several_processes() and "process_group" not in group
    if not group["params"] and not elsewhere:
        raise ValueError(
            "a coupled group holds no parameters, so nothing would be coupled: pass the embedding "
            "matrix (where rows are shared out with process_group=, a shard of no rows on a "
            "process that has none), or leave the group out"
        )
    for parameter in group["params"]:
        shape = tuple(parameter.shape)
        if group["differentiable"] and (sharding.is_dtensor(parameter) or "process_group" in group):
            raise ValueError(
                f"a coupled group with differentiable=True got a matrix of shape {shape} that is "
                "spread over processes; the sum over them has no derivative here: pass the whole "
                "matrix as a plain tensor"
            )
        if parameter.dim() != 2:
            raise ValueError(
                f"a coupled group got a parameter of shape {shape}; a mean over the vocabulary "
                "needs a matrix of shape [tokens, width]: put vectors and other shapes in a group "
                "of their own without coupled=True (a flat parameter of FSDP1 cannot be coupled: "
                "shard with torch.distributed.fsdp.fully_shard)"
            )
        sharding.check(parameter, group)
        # A row shard can be as small as nothing.
        tokens, width = shape if group["vocabulary_dim"] == 0 else shape[::-1]
        if (tokens < 2 and "process_group" not in group) or width < 1:
            raise ValueError(
                f"a coupled group got a matrix of shape {shape}; with fewer than two rows (or, "
                "for vocabulary_dim=1, columns) there is nothing to share: pass the whole "
                "embedding matrix"
            )
        if not parameter.is_floating_point():
            raise ValueError(
                f"a coupled group got a {parameter.dtype} matrix of shape {shape}; only real "
                "floating-point embeddings can be coupled"
            )
        if parameter.layout != torch.strided:
            raise ValueError(f"a coupled group got a {parameter.layout} matrix; make it dense")


def check_new(parameter: Tensor, group: dict[str, Any]) -> None:
    """Refuse, before it has a state, a parameter that torch's step with these options refuses.

    Raises:
        RuntimeError: for ``fused=True`` on a device or of a type that has no fused step, such as
            "meta" or a complex one.
    """
    if group["fused"]:
        _device_dtype_check_for_fused(parameter)


def check_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Refuse a gradient that is not one of this parameter.

    Raises:
        RuntimeError: if it is of another shape or device, or neither dense nor in torch's COO
            layout.
    """
    if gradient.shape != parameter.shape:
        raise RuntimeError(
            f"a parameter of shape {tuple(parameter.shape)} has a gradient of shape "
            f"{tuple(gradient.shape)}: it was replaced by another (resize_token_embeddings, "
            "parameter.data = ...) after the backward pass; call zero_grad() and run it again"
        )
    if gradient.device != parameter.device:
        raise RuntimeError(
            f"a parameter of shape {tuple(parameter.shape)} is on {parameter.device} and its "
            f"gradient on {gradient.device}: it was moved after the backward pass; call "
            "zero_grad() and run it again"
        )
    if gradient.layout not in (torch.strided, torch.sparse_coo):
        raise RuntimeError(
            f"a parameter of shape {tuple(parameter.shape)} has a gradient in the layout "
            f"{gradient.layout}: only dense gradients and those of nn.Embedding(..., sparse=True) "
            "can be taken"
        )


def check_sparse(parameter: Tensor, group: dict[str, Any]) -> None:
    """Refuse a sparse gradient for which lazy Coupled Adam is not defined.

    Raises:
        RuntimeError: if the parameter's group is not coupled, has weight decay, an option that
            needs every step to be the same, or its tokens in columns.
    """
    shape = tuple(parameter.shape)
    if not group["coupled"]:
        raise RuntimeError(
            f"a parameter of shape {shape} has a sparse gradient, which only coupled groups can "
            "take: put the embedding into a group with coupled=True, or build it with "
            "nn.Embedding(..., sparse=False)"
        )
    if group["vocabulary_dim"] != 0:
        raise RuntimeError(
            f"a parameter of shape {shape} has a sparse gradient and its group vocabulary_dim=1: "
            "a sparse gradient leaves out rows, and there the rows are no tokens; build the "
            "matrix as [tokens, width], or with dense gradients"
        )
    if parameter.grad is not None and parameter.grad.sparse_dim() != 1:
        raise RuntimeError(
            f"the gradient of a parameter of shape {shape} is sparse in both dimensions; only "
            "whole rows may be missing, as in the gradients of nn.Embedding(..., sparse=True)"
        )
    for option in ("capturable", "differentiable"):
        if group[option]:
            raise RuntimeError(
                f"a parameter of shape {shape} has a sparse gradient, and {option}=True: which "
                f"rows are stepped depends on the batch, so use {option}=False, or build the "
                "embedding with sparse=False"
            )
    if group["weight_decay"] != 0:
        raise RuntimeError(
            f"a parameter of shape {shape} has a sparse gradient, and weight_decay="
            f"{group['weight_decay']}: a lazy step would decay rows only when they occur, so set "
            "weight_decay=0.0 for its group"
        )


def check_state(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Refuse a state that does not fit its parameter, before anything is computed from it.

    Raises:
        RuntimeError: if a moment is missing or has another shape or device, or the step count is
            not where it is needed.
    """
    device, shapes = parameter.device, state_shapes(parameter, group)
    for name, shape in shapes.items():
        moment = state.get(name)
        if moment is None:
            raise RuntimeError(
                f"the state of a parameter of shape {tuple(parameter.shape)} has no {name}, only "
                f"{sorted(state)}" + _options_changed(name)
            )
        if moment.shape != shape:
            raise RuntimeError(_does_not_fit(name, moment.shape, parameter, group, in_step=True))
        if moment.device != device:
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} is on {device} and its {name} on "
                f"{moment.device}: the model was moved after the first step. Call "
                "optimizer.load_state_dict(optimizer.state_dict()), which moves the state, or "
                "move the model before the optimizer is made"
            )
    step = state.get("step")
    if not isinstance(step, Tensor) or step.numel() != 1:
        raise RuntimeError(
            f"the step count of a parameter of shape {tuple(parameter.shape)} has to be a tensor "
            f"of one number, not {step!r}: load the state with load_state_dict"
        )
    if group["capturable"] and step.device != device:
        raise RuntimeError(
            f"capturable=True, and a parameter on {device} has its step count on {step.device}: "
            "a graph would repeat one number. Set capturable when the optimizer is made, or call "
            "optimizer.load_state_dict(optimizer.state_dict()), which moves the count"
        )
    if group["differentiable"] and step.requires_grad:
        raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
    # As torch; a coupled matrix is never stepped by foreach.
    if (
        group["foreach"]
        and not group["coupled"]
        and isinstance(group["lr"], Tensor)
        and not group["capturable"]
    ):
        raise RuntimeError("lr as a Tensor is not supported for capturable=False and foreach=True")


def check_parts(
    parameter: Tensor, held: Tensor, gradient: Tensor, first_moment: Tensor, second_moment: Tensor
) -> None:
    """Refuse parts of sharded tensors that are not of the same rows and columns.

    Args:
        parameter: the whole, for the message.
        held: the part of it on this process, tokens first.
        gradient: its gradient, tokens first.
        first_moment: its first moment, tokens first.
        second_moment: the shared one of its columns.

    Raises:
        RuntimeError: if one has another shape, as where the state is placed otherwise.
    """
    for name, part, shape in (
        ("gradient", gradient, held.shape),
        ("exp_avg", first_moment, held.shape),
        ("exp_avg_sq", second_moment, held.shape[1:]),
    ):
        if part.shape != shape:
            raise RuntimeError(
                f"this process has {tuple(held.shape)} (tokens, width) of a parameter of shape "
                f"{tuple(parameter.shape)} and {tuple(part.shape)} of its {name}: the two are "
                "placed differently; load the state with set_optimizer_state_dict of "
                "torch.distributed.checkpoint.state_dict, which places it like the parameter"
            )


def check_loaded(
    parameter: Tensor, loaded: dict[str, Any], group: dict[str, Any], source: dict[str, Any]
) -> None:
    """Refuse a loaded state that neither fits its parameter nor can be converted so that it does.

    Args:
        parameter: the optimizer's parameter.
        loaded: what was saved of its state.
        group: the parameter's group in the optimizer.
        source: the group that was saved.

    Raises:
        ValueError: if a moment is missing, has a shape that does not fit, or is sharded where
            the parameter is not, or the other way round.
    """
    shape, group, source = tuple(parameter.shape), _complete(group), _complete(source)
    for name in ("step", "exp_avg", *SECOND_MOMENTS[: 2 if source.get("amsgrad") else 1]):
        if name not in loaded:
            raise ValueError(
                f"the loaded state of a parameter of shape {shape} has no {name}, only "
                f"{sorted(loaded)}: load what torch.optim.AdamW or CoupledAdamW saved"
            )
    if isinstance(loaded["step"], Tensor) and loaded["step"].numel() != 1:
        raise ValueError(
            f"the loaded step count of a parameter of shape {shape} has shape "
            f"{tuple(loaded['step'].shape)}, but has to be one number"
        )
    for name in ("exp_avg", *SECOND_MOMENTS):
        if name in loaded:
            _check_loaded_moment(name, loaded[name], parameter, group, source)


def _check_loaded_moment(
    name: str, value: Tensor, parameter: Tensor, group: dict[str, Any], source: dict[str, Any]
) -> None:
    shape = tuple(parameter.shape)
    plain = sharding.is_dtensor(parameter) and not sharding.is_dtensor(value)
    # A shared moment can be made of a whole one; the first moment of a plain state is refused.
    if plain and (name == "exp_avg" or not group["coupled"]):
        raise ValueError(
            f"{name} of a sharded matrix of shape {shape} is a plain tensor: load the state with "
            "set_optimizer_state_dict of torch.distributed.checkpoint.state_dict, which shards it "
            "likewise"
        )
    if sharding.is_dtensor(value) and not sharding.is_dtensor(parameter):
        raise ValueError(
            f"{name} of a whole matrix of shape {shape} is sharded: load its full_tensor()"
        )
    fitting = [parameter.shape]
    if name != "exp_avg" and parameter.dim() == 2:
        # A shared vector, whichever of the two optimizers shares.
        fitting.append(width(parameter, group if group["coupled"] else source))
    if value.shape not in fitting:
        raise ValueError(_does_not_fit(name, value.shape, parameter, group, in_step=False))
    # In a square matrix the two axes have one length: what was saved has to say which it is.
    if (
        group["coupled"]
        and source["coupled"]
        and value.dim() == 1
        and source["vocabulary_dim"] != group["vocabulary_dim"]
    ):
        raise ValueError(
            f"the loaded {name} of a matrix of shape {shape} is a mean over dimension "
            f"{source['vocabulary_dim']}, and its group has vocabulary_dim="
            f"{group['vocabulary_dim']}, of which it says nothing: make the optimizer with the "
            "checkpoint's vocabulary_dim, or start the state anew"
        )


def check_scaling(
    groups: list[dict[str, Any]], grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Refuse a scale of the gradients, or a mark to skip the step, that would be passed over.

    Raises:
        RuntimeError: if one is set and a group is not fused, or coupled and capturable.
    """
    if grad_scale is None and found_inf is None:
        return
    for group in groups:
        if not group["fused"] or (group["coupled"] and group["capturable"]):
            raise RuntimeError(
                "grad_scale or found_inf is set on the optimizer, which only groups with "
                "fused=True follow, and coupled ones only without capturable=True: let "
                "torch.amp.GradScaler unscale the gradients and skip the step, which it does for "
                "every group, or set neither"
            )


def _complete(group: dict[str, Any]) -> dict[str, Any]:
    """A saved group with what AdamW does not save."""
    return {"coupled": False, "vocabulary_dim": 0, **group}


def _options_changed(name: str) -> str:
    if name == "max_exp_avg_sq":
        return (
            ": amsgrad was set after the first step. Set it when the optimizer is made, or give "
            "the state a max_exp_avg_sq, such as a clone of exp_avg_sq"
        )
    return ": load what torch.optim.AdamW or CoupledAdamW saved"


def _does_not_fit(
    name: str, found: torch.Size, parameter: Tensor, group: dict[str, Any], *, in_step: bool
) -> str:
    shape, coupled = parameter.shape, group["coupled"]
    needed = state_shapes(parameter, group).get(name, shape)
    said = (
        f"{name} of a parameter of shape {tuple(shape)} has shape {tuple(found)}; "
        f"coupled={coupled} needs {tuple(needed)}"
    )
    if parameter.dim() == 2 and len(found) == 2:
        axis = group["vocabulary_dim"] if coupled else 0
        if found[1 - axis] == shape[1 - axis] and found[axis] != shape[axis]:
            return f"{said}: {_other_vocabulary(found[axis], shape[axis], group, in_step)}"
    if in_step and name != "exp_avg":
        return (
            f"{said}: the group's coupling changed after its first step. Make a new CoupledAdamW "
            "with the groups as you want them and load the old optimizer's state_dict() into it; "
            "that converts the state"
        )
    if in_step:
        return (
            f"{said}: the parameter was replaced by another after its first step; start its state "
            "anew with optimizer.state.pop(parameter)"
        )
    return f"{said}: load the checkpoint of the same model, with the groups in the same order"


def _other_vocabulary(before: int, now: int, group: dict[str, Any], in_step: bool) -> str:
    tokens = "rows" if not group["coupled"] or group["vocabulary_dim"] == 0 else "columns"
    what = (
        f"give exp_avg {now - before} {tokens} of zeros for the new tokens, and exp_avg_sq "
        f"likewise if it is a matrix (a shared vector keeps its shape; times {before}/{now} it is "
        "the mean over all tokens)"
        if now > before
        else f"take the {tokens} of the {before - now} tokens that are gone out of exp_avg, and "
        "of exp_avg_sq if it is a matrix (a shared vector keeps its shape)"
    )
    anew = (
        "optimizer.state.pop(parameter)"
        if in_step
        else "take the matrix's entry out of state_dict['state']"
    )
    return (
        f"the vocabulary has {now} tokens and had {before} when the state was made (as after "
        f"resize_token_embeddings). Either {what}, or start the state anew: {anew}"
    )
