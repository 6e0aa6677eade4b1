"""AdamW with one shared second moment for the rows of an embedding matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT, _use_grad_for_differentiable

from coupled_adam.optim import sharding

# Rows whose squares are summed at once: large enough to keep the overhead of a call small, small
# enough that the squares stay in the processor's cache. Measured by benchmarks/optimizer_step.py.
_ROWS_AT_ONCE = 1024


class CoupledAdamW(AdamW):
    """A drop-in replacement for ``torch.optim.AdamW`` that can couple embedding matrices.

    A parameter group with ``coupled=True`` holds matrices of V rows (tokens) and H columns. For
    such a matrix the second moment of Adam is replaced by its mean over the V rows
    (Stollenwerk and Stollenwerk, 2025, *Better Embeddings with Coupled Adam*), so that all tokens
    are updated with the same step size and the updates of the output embeddings sum to zero, as
    their gradients do. Mean and exponential average commute; the state is therefore one vector of
    H numbers, not a V x H matrix, and the result is the paper's. Groups that are not coupled
    behave bit for bit like ``torch.optim.AdamW``.

    The arguments are those of ``torch.optim.AdamW``, in the same order, and one more. ``foreach``
    and ``fused`` choose the implementation of the groups that are not coupled; they do not change
    what a coupled group computes. ``amsgrad`` takes the maximum over the shared vector. The shared
    second moment is kept in float32 for parameters of lower precision (float64 for float64).

    All V rows enter the mean, rows that only pad the vocabulary to a round size included: they
    raise the step size of all tokens by the root of (rows / real rows).

    On several processes the result is that of one process, up to rounding. DDP's whole matrices
    and DTensors need no option: ``fully_shard`` (FSDP2), tensor parallelism by rows or by columns,
    both at once, or replicated; shards may be uneven or empty. A group of plain tensors that are
    shards of rows needs ``process_group=``, the processes that share out the rows. One all-reduce a
    step adds up the sums of all coupled matrices while the other groups are stepped, so every
    process has to take every step, gradients or not: rows without a gradient count as zeros if
    another process has one, else the matrix is skipped. ``Partial`` placements and the flat
    parameters of FSDP1 are refused. ``torch.distributed.checkpoint`` saves the state on n processes
    and loads it on m; of plain shards each process saves its own.

    Args:
        params: tensors or parameter groups; ``param_groups(model)`` makes the usual ones.
        lr: learning rate, at least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: decoupled weight decay, at least 0.
        amsgrad: divide by the root of the largest second moment so far.
        maximize: ascend instead of descend.
        foreach: as in ``torch.optim.AdamW``, for groups that are not coupled.
        capturable: as in ``torch.optim.AdamW``; refused for a coupled group.
        differentiable: as in ``torch.optim.AdamW``; refused for a coupled group.
        fused: as in ``torch.optim.AdamW``, for groups that are not coupled.
        coupled: whether groups that do not say so themselves are coupled.

    Raises:
        ValueError: for a hyperparameter out of range, or a coupled group that is empty or holds
            something other than dense floating-point matrices of at least two rows, whole or in
            shards as described above.
        RuntimeError: in ``step``, for a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        coupled: bool = False,
    ) -> None:
        # AdamW's constructor adds the groups before it could learn of a further default.
        self._coupled_by_default = coupled
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        # In the defaults, since copies and pickles of an optimizer keep those and no attribute.
        self.defaults["coupled"] = coupled
        # With this flag GradScaler would leave unscaling and skipping to the step, of which only
        # torch's fused kernel is capable; without it, it does both itself, for every group.
        self._step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, coupled if it says ``coupled=True``; as in ``torch.optim.Optimizer``."""
        default = self.defaults.get("coupled", getattr(self, "_coupled_by_default", False))
        param_group.setdefault("coupled", default)
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a copy or a pickle; groups of a plain AdamW are not coupled."""
        super().__setstate__(state)
        self.defaults.setdefault("coupled", False)
        for group in self.param_groups:
            group.setdefault("coupled", False)

    def state_dict(self) -> dict[str, Any]:
        """As in ``torch.optim.AdamW``; process groups, which no file can hold, are left out."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group.pop("process_group", None)
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of ``torch.optim.AdamW``.

        Which groups are coupled is decided by this optimizer, not by the loaded state: the
        second moment of a checkpoint is converted where they differ. From a V x H matrix to the
        shared vector it is the mean over the rows, which loses nothing that a coupled group uses;
        back, every row gets the shared vector. The shared vector keeps its float32.

        Args:
            state_dict: what ``state_dict()`` returned, with the same groups in the same order.

        Raises:
            ValueError: if groups or shapes do not fit.
        """
        own = [
            {key: group[key] for key in ("coupled", "process_group") if key in group}
            for group in self.param_groups
        ]
        loaded: dict[str, Any] = {}

        def remember(_: torch.optim.Optimizer, final: dict[str, Any]) -> None:
            loaded.update(final)

        def convert(_: torch.optim.Optimizer) -> None:
            for group, kept, source in zip(
                self.param_groups, own, loaded["param_groups"], strict=True
            ):
                group.update(kept)
                _check_group(group)
                for parameter, key in zip(group["params"], source["params"], strict=True):
                    if key in loaded["state"]:
                        self._convert_state(parameter, loaded["state"][key], group)

        # As hooks, so that what other hooks do to the state before and after still counts.
        first = self.register_load_state_dict_pre_hook(remember)
        last = self.register_load_state_dict_post_hook(convert, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            first.remove()
            last.remove()

    @torch.no_grad()
    def _convert_state(
        self, parameter: Tensor, source: dict[str, Any], group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            if key not in source:
                continue
            value = source[key].to(parameter.device)
            if group["coupled"]:
                if sharding.is_dtensor(parameter) and not sharding.is_dtensor(value):
                    raise ValueError(
                        f"the loaded {key} of a sharded matrix of shape {tuple(parameter.shape)} "
                        "is a plain tensor: load the state with set_optimizer_state_dict of "
                        "torch.distributed.checkpoint.state_dict, which shards it likewise"
                    )
                if value.shape == parameter.shape:
                    value = value.to(_state_dtype(parameter))
                    value = sharding.mean_of_rows(value, parameter, group)
                if value.shape != parameter.shape[1:]:
                    raise ValueError(
                        f"the loaded {key} has shape {tuple(value.shape)}; a coupled matrix of "
                        f"shape {tuple(parameter.shape)} needs {tuple(parameter.shape)} (from "
                        f"AdamW) or {tuple(parameter.shape[1:])}: load the checkpoint of the same "
                        "model, with the groups in the same order"
                    )
                # Always a copy of our own: torch would have cast float32 state to a bfloat16
                # parameter's type, and shares tensors that need no cast.
                state[key] = value.to(_state_dtype(parameter), copy=True)
            elif parameter.dim() == 2 and value.shape == parameter.shape[1:]:
                state[key] = sharding.matrix_of_rows(value, parameter)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step.

        Args:
            closure: reevaluates the model and returns the loss; optional.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: if a gradient is sparse, or a group's ``coupled`` changed after its first
                step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        swept = [
            (group, parameter, sums)
            for group in self.param_groups
            if group["coupled"]
            for parameter, sums in self._sweep(group)
        ]
        # The AdamW groups are stepped while the sums of sharded matrices travel.
        reduction = sharding.Reduction(sums for _, _, sums in swept)
        for group in self.param_groups:
            if not group["coupled"]:
                self._plain_step(group)
        reduction.wait()
        for group, parameter, sums in swept:
            self._coupled_update(group, parameter, sums)
        return loss

    def _sweep(self, group: dict[str, Any]) -> Iterator[tuple[Tensor, sharding.ColumnSums]]:
        """Read the gradients of a coupled group: update first moments, sum the squares."""
        _check_group(group)
        beta1 = float(group["betas"][0])
        present = {p: (gradient, state) for p, gradient, state in self._with_gradients(group)}
        for parameter in group["params"]:
            groups = sharding.row_groups(parameter, group)
            if parameter in present:
                gradient, state = present[parameter]
                gradient = sharding.local_gradient(gradient, parameter)
                if group["maximize"]:
                    gradient = -gradient
                first_moment = sharding.local(state["exp_avg"])
                first_moment.lerp_(gradient.to(first_moment.dtype), 1 - beta1)
                total = _sum_of_squares(gradient, state["exp_avg_sq"].dtype)
                yield parameter, sharding.ColumnSums(total, gradient.shape[0], groups)
            elif groups:
                # Another process may have a gradient for its rows: these count as zeros then.
                rows, columns = sharding.local(parameter).shape
                total = torch.zeros(columns, dtype=_state_dtype(parameter), device=parameter.device)
                yield parameter, sharding.ColumnSums(total, rows, groups, has_gradient=False)

    def _coupled_update(
        self, group: dict[str, Any], parameter: Tensor, sums: sharding.ColumnSums
    ) -> None:
        if not sums.gradient_anywhere():
            return
        lr, weight_decay, eps = float(group["lr"]), group["weight_decay"], group["eps"]
        beta1, beta2 = (float(beta) for beta in group["betas"])
        state = self.state[parameter]
        if not state:
            _start_state(state, parameter, group)
        state["step"] += 1
        step = state["step"].item()
        first_moment, second_moment = map(sharding.local, (state["exp_avg"], state["exp_avg_sq"]))
        if not sums.has_gradient:
            first_moment.lerp_(first_moment.new_zeros(()), 1 - beta1)
        second_moment.lerp_(sums.mean(), 1 - beta2)
        if group["amsgrad"]:
            largest = sharding.local(state["max_exp_avg_sq"])
            torch.maximum(largest, second_moment, out=largest)
            second_moment = largest
        denominator = (second_moment / (1 - beta2**step)).sqrt_().add_(eps)
        weight = sharding.local(parameter)
        if weight_decay != 0:
            # Not a product with 1 - lr * weight_decay: rounded to float32, that factor is off
            # by the same few parts in 1e8 at every step, and the error adds up.
            weight.add_(weight, alpha=-lr * weight_decay)
        weight.addcdiv_(first_moment, denominator, value=-lr / (1 - beta1**step))
        if weight is not parameter:
            # Autograd watches the DTensor and would not notice that its part was written to.
            torch.autograd.graph.increment_version(parameter)

    def _plain_step(self, group: dict[str, Any]) -> None:
        present = list(self._with_gradients(group))
        states = [state for _, _, state in present]
        adamw(
            [parameter for parameter, _, _ in present],
            [gradient for _, gradient, _ in present],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            has_complex=any(torch.is_complex(parameter) for parameter, _, _ in present),
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _with_gradients(
        self, group: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        """The group's parameters that have a gradient, each with its (new or old) state."""
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise RuntimeError(
                    "CoupledAdamW needs dense gradients, but a parameter of shape "
                    f"{tuple(parameter.shape)} has a sparse one: build the embedding with "
                    "nn.Embedding(..., sparse=False)"
                )
            state = self.state[parameter]
            if not state:
                _start_state(state, parameter, group)
            expected = parameter.shape[1:] if group["coupled"] else parameter.shape
            if state["exp_avg_sq"].shape != expected:
                raise RuntimeError(
                    f"the second moment of a parameter of shape {tuple(parameter.shape)} has "
                    f"shape {tuple(state['exp_avg_sq'].shape)}, but coupled={group['coupled']} "
                    f"needs {tuple(expected)}: the group's coupling changed after its first step. "
                    "Make a new CoupledAdamW with the groups as you want them and load the old "
                    "optimizer's state_dict() into it; that converts the state"
                )
            yield parameter, parameter.grad, state


def _start_state(state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> None:
    on_device = not group["coupled"] and (group["capturable"] or group["fused"])
    # Never the parameter's type: a bfloat16 counter would stop at 256.
    counter_dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    state["step"] = torch.zeros(
        (),
        dtype=torch.float32 if group["fused"] else counter_dtype,
        device=parameter.device if on_device else "cpu",
    )
    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    if group["coupled"]:
        second_moment = sharding.column_zeros(parameter, _state_dtype(parameter))
    else:
        second_moment = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    state["exp_avg_sq"] = second_moment
    if group["amsgrad"]:
        state["max_exp_avg_sq"] = torch.zeros_like(second_moment)


def _state_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _sum_of_squares(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the rows of the squared gradient, shape [H], without a full-size temporary."""
    total = torch.zeros(gradient.shape[1], dtype=dtype, device=gradient.device)
    for block in gradient.split(_ROWS_AT_ONCE):
        total += block.to(dtype).square().sum(0)
    return total


def _check_group(group: dict[str, Any]) -> None:
    """Refuse a coupled group that cannot be coupled correctly."""
    if not group["coupled"]:
        return
    if not group["params"]:
        raise ValueError(
            "a coupled group holds no parameters, so nothing would be coupled: pass the embedding "
            "matrix, or leave the group out"
        )
    for option, instead in {
        "capturable": "step outside the captured graph",
        "differentiable": "use coupled=False, or differentiate optim.reference's equations",
    }.items():
        if group[option]:
            raise ValueError(f"a coupled group does not support {option}=True: {instead}")
    for parameter in group["params"]:
        shape = tuple(parameter.shape)
        if parameter.dim() != 2:
            raise ValueError(
                f"a coupled group got a parameter of shape {shape}; a mean over the vocabulary "
                "needs a matrix of shape [tokens, width]: put vectors and other shapes in a group "
                "of their own without coupled=True (a flat parameter of FSDP1 cannot be coupled: "
                "shard with torch.distributed.fsdp.fully_shard)"
            )
        sharding.check(parameter, group)
        # A row shard can be as small as nothing.
        if (shape[0] < 2 and "process_group" not in group) or shape[1] < 1:
            raise ValueError(
                f"a coupled group got a matrix of shape {shape}; with fewer than two rows there "
                "is nothing to share: pass the whole embedding matrix"
            )
        if not parameter.is_floating_point():
            raise ValueError(
                f"a coupled group got a {parameter.dtype} matrix of shape {shape}; only real "
                "floating-point embeddings can be coupled"
            )
        if parameter.layout != torch.strided:
            raise ValueError(f"a coupled group got a {parameter.layout} matrix; make it dense")
