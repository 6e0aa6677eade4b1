"""From AdamW to CoupledAdamW in the middle of a run, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from coupled_adam.optim import sharding

_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


def transfer_state(source: Optimizer, target: Optimizer) -> None:
    """Copy the state of one AdamW optimizer to another that holds the same parameters.

    Source and target may each be a ``torch.optim.AdamW`` or a ``CoupledAdamW``, and their
    parameter groups need not agree: the state is found by the parameter, not by its place. Into
    a coupled group goes the mean over the rows of the second moment, which is all that a coupled
    step uses of it; out of one, every row gets the shared vector. Learning rates and all other
    options stay the target's.

    To go over from a checkpoint: load it into the optimizer that wrote it, then transfer. ::

        old = torch.optim.AdamW(old_groups)
        old.load_state_dict(checkpoint["optimizer"])
        optimizer = CoupledAdamW(param_groups(model), lr=6e-4, betas=(0.9, 0.95))
        transfer_state(old, optimizer)

    Args:
        source: the optimizer that was used so far; it is not changed.
        target: the optimizer that is to go on; its own state is replaced.

    Raises:
        TypeError: if one of the two is not an AdamW.
        ValueError: if they do not hold the same parameters.
    """
    for optimizer in (source, target):
        if not isinstance(optimizer, AdamW):
            raise TypeError(
                f"transfer_state needs torch.optim.AdamW or CoupledAdamW on both sides, not "
                f"{type(optimizer).__name__}"
            )
    held = {id(p): p for group in source.param_groups for p in group["params"]}
    wanted = {id(p): p for group in target.param_groups for p in group["params"]}
    missing = [tuple(held[key].shape) for key in held.keys() - wanted.keys()]
    extra = [tuple(wanted[key].shape) for key in wanted.keys() - held.keys()]
    if missing or extra:
        raise ValueError(
            "source and target must hold the same parameter tensors: "
            f"{len(missing)} only in the source {sorted(missing)[:3]}, "
            f"{len(extra)} only in the target {sorted(extra)[:3]}; make both from the same model"
        )
    states = {}
    for group in target.param_groups:
        for parameter in group["params"]:
            if source.state.get(parameter):
                states[parameter] = _converted(source.state[parameter], parameter, group)
    # Only now, so that an error above leaves the target as it was.
    target.state.clear()
    target.state.update(states)


def _converted(state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    step = state["step"]
    step = step.detach().clone() if isinstance(step, Tensor) else torch.tensor(float(step))
    made: dict[str, Any] = {
        "step": step.to(parameter.device if counts_on_device(group) else "cpu"),
        "exp_avg": state["exp_avg"].clone(),
    }
    for key in _SECOND_MOMENTS[: 2 if group["amsgrad"] else 1]:
        # A run that did not keep the largest moment so far starts with the present one.
        value = state.get(key, state["exp_avg_sq"])
        made[key] = second_moment_for(value, parameter, group)
    return made


def counts_on_device(group: dict[str, Any]) -> bool:
    """Whether the steps of a group's parameters are counted on their device, as torch does it."""
    # A coupled step with kernels takes the count as a number; a captured one cannot.
    return bool(group["capturable"] or (group["fused"] and not group.get("coupled", False)))


def state_dtype(parameter: Tensor) -> torch.dtype:
    """The type of a shared second moment: float64 for float64, otherwise float32."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


@torch.no_grad()
def second_moment_for(value: Tensor, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """A second moment, matrix or shared vector, in the form that a group needs; always a copy.

    Args:
        value: shape [V, H] or [H]; for a DTensor parameter a DTensor.
        parameter: the matrix that it belongs to.
        group: the parameter's group; of a coupled one the vector is needed.

    Raises:
        ValueError: if the value has neither of the two shapes, or is plain and the parameter
            sharded.
    """
    value = value.to(parameter.device)
    shape, vector = tuple(parameter.shape), tuple(parameter.shape[1:])
    if group.get("coupled", False):
        if sharding.is_dtensor(parameter) and not sharding.is_dtensor(value):
            raise ValueError(
                f"the second moment of a sharded matrix of shape {shape} is a plain tensor: load "
                "the state with set_optimizer_state_dict of torch.distributed.checkpoint."
                "state_dict, which shards it likewise"
            )
        if tuple(value.shape) == shape:
            value = sharding.mean_of_rows(value.to(state_dtype(parameter)), parameter, group)
        if tuple(value.shape) != vector:
            raise ValueError(
                f"the loaded second moment has shape {tuple(value.shape)}; a coupled matrix of "
                f"shape {shape} needs {shape} (from AdamW) or {vector}: load the checkpoint of the "
                "same model, with the groups in the same order"
            )
        # Torch would have cast float32 state to a bfloat16 parameter's type.
        return value.to(state_dtype(parameter), copy=True)
    if parameter.dim() == 2 and tuple(value.shape) == vector:
        return sharding.matrix_of_rows(value, parameter)
    return value.clone()
