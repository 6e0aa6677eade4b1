"""From AdamW to CoupledAdamW in the middle of a run, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from coupled_adam.optim import checks, sharding


def transfer_state(source: Optimizer, target: Optimizer) -> None:
    """Copy the state of one AdamW optimizer to another that holds the same parameters.

    Source and target may each be a ``torch.optim.AdamW`` or a ``CoupledAdamW``, and their
    parameter groups need not agree: the state is found by the parameter, not by its place. Into
    a coupled group goes the mean over the tokens of the second moment, which is all that a coupled
    step uses of it; out of one, every token gets the shared vector. Learning rates and all other
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
        ValueError: if they do not hold the same parameters, or the source's state does not fit
            them, as after the vocabulary grew.
    """
    for optimizer in (source, target):
        if not isinstance(optimizer, AdamW):
            raise TypeError(
                f"transfer_state needs torch.optim.AdamW or CoupledAdamW on both sides, not "
                f"{type(optimizer).__name__}"
            )
    held = {id(p): p for group in source.param_groups for p in group["params"]}
    origin = {id(p): group for group in source.param_groups for p in group["params"]}
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
                states[parameter] = _converted(
                    source.state[parameter], parameter, group, origin[id(parameter)]
                )
    # Only now, so that an error above leaves the target as it was.
    target.state.clear()
    target.state.update(states)


def _converted(
    state: dict[str, Any], parameter: Tensor, group: dict[str, Any], source: dict[str, Any]
) -> dict[str, Any]:
    checks.check_loaded(parameter, state, group, source)
    device = parameter.device if counts_on_device(group) else "cpu"
    step = state["step"]
    made: dict[str, Any] = {
        # A device for a number too, or a default device would get it.
        "step": step.detach().to(device, copy=True)
        if isinstance(step, Tensor)
        else torch.tensor(float(step), device=device),
        "exp_avg": state["exp_avg"].to(parameter.device, copy=True),
    }
    for key in checks.SECOND_MOMENTS[: 2 if group["amsgrad"] else 1]:
        # A run that did not keep the largest moment so far starts with the present one.
        value = state.get(key, state["exp_avg_sq"])
        made[key] = second_moment_for(value, parameter, group, source)
    return made


def counts_on_device(group: dict[str, Any]) -> bool:
    """Whether the steps of a group's parameters are counted on their device, as torch does it."""
    # A coupled step with kernels takes the count as a number; a captured one cannot.
    return bool(group["capturable"] or (group["fused"] and not group.get("coupled", False)))


def state_dtype(parameter: Tensor) -> torch.dtype:
    """The type of a shared second moment: float64 for float64, otherwise float32."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


@torch.no_grad()
def second_moment_for(
    value: Tensor, parameter: Tensor, group: dict[str, Any], source: dict[str, Any]
) -> Tensor:
    """A second moment, matrix or shared vector, in the form that a group needs; always a copy.

    Args:
        value: of the parameter's shape, or a shared vector, as ``checks.check_loaded`` asks.
        parameter: the matrix that it belongs to.
        group: the parameter's group; of a coupled one the vector is needed.
        source: the group that the value comes from, which says over which dimension a vector is
            the mean.
    """
    value = value.to(parameter.device)
    if group.get("coupled", False):
        if sharding.is_dtensor(parameter) and not sharding.is_dtensor(value):
            # Whole on every process, as torch's broadcast from rank 0 leaves it.
            value = value.to(state_dtype(parameter))
            vector = value if value.dim() == 1 else value.mean(group["vocabulary_dim"])
            return sharding.placed(vector, parameter, group).clone()
        if value.shape == parameter.shape:
            value = sharding.mean_over_tokens(value.to(state_dtype(parameter)), parameter, group)
        # Torch would have cast float32 state to a bfloat16 parameter's type.
        return value.to(state_dtype(parameter), copy=True)
    if value.shape != parameter.shape:
        return sharding.matrix_of(value, parameter, source.get("vocabulary_dim", 0))
    return value.clone()
