"""AdamW with one shared second moment for the rows of an embedding matrix."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import AdamW
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT, _use_grad_for_differentiable

from coupled_adam.optim import checks, memory, native, sharding
from coupled_adam.optim.transfer import counts_on_device, second_moment_for, state_dtype

# Rows that are stepped at once: large enough to keep the overhead of a call small, small enough to
# stay in the processor's cache. Between 512 and 4,096 it hardly matters (coupled-adam bench).
_ROWS_AT_ONCE = 1024

# Torch's own refusal of a step in a graph that would repeat its numbers; renamed after torch 2.6.
_GRAPH_CHECK = (
    "_accelerator_graph_capture_health_check"
    if hasattr(AdamW, "_accelerator_graph_capture_health_check")
    else "_cuda_graph_capture_health_check"
)

# What a group of torch.optim.AdamW does not say.
_PLAIN_ADAMW = {"coupled": False, "vocabulary_dim": 0}
# What a group keeps when a state is loaded.
_OWN_KEYS = (*_PLAIN_ADAMW, "process_group")

# A parameter, its gradient and its state.
_Present: TypeAlias = tuple[Tensor, Tensor, dict[str, Any]]


@dataclass
class _Swept:
    """A coupled matrix between the two halves of its step.

    Attributes:
        group: its parameter group.
        parameter: the matrix.
        sums: of the squared gradient over the tokens.
        gradient: what this process has of it, tokens first; None if nothing.
        rows: which rows the gradient holds, if it is sparse.
        kernel: the module whose sweeps are used instead of PyTorch's operations, if any.
    """

    group: dict[str, Any]
    parameter: Tensor
    sums: sharding.ColumnSums
    gradient: Tensor | None = None
    rows: Tensor | None = None
    kernel: ModuleType | None = None


class CoupledAdamW(AdamW):
    """A drop-in replacement for ``torch.optim.AdamW`` that can couple embedding matrices.

    A parameter group with ``coupled=True`` holds matrices of V rows (tokens) and H columns, or,
    with ``vocabulary_dim=1``, of H rows and V columns, as some output heads are stored. For such
    a matrix the second moment of Adam is replaced by its mean over the V rows
    (Stollenwerk and Stollenwerk, 2025, *Better Embeddings with Coupled Adam*), so that all tokens
    are updated with the same step size and the updates of the output embeddings sum to zero, as
    their gradients do. Mean and exponential average commute; the state is therefore one vector of
    H numbers, not a V x H matrix, and the result is the paper's. Groups that are not coupled
    behave bit for bit like ``torch.optim.AdamW``.

    The arguments are those of ``torch.optim.AdamW``, in the same order, and two more. ``foreach``
    and ``fused`` choose the implementation of the groups that are not coupled. Coupled groups are
    stepped with PyTorch's operations, which work everywhere, or in two sweeps of their own: on a
    GPU with Triton kernels, where Triton is installed and unless ``fused=False``; on a CPU in C,
    with ``fused=True`` and where there is a compiler. ``fused=True`` is the fastest for all groups.
    ``amsgrad`` takes the maximum over the shared vector. The shared second moment is kept in
    float32 for parameters of lower precision (float64 for float64).

    All V rows enter the mean, rows that only pad the vocabulary to a round size included: they
    raise the step size of all tokens by the root of (rows / real rows).

    Sparse gradients, as of ``nn.Embedding(..., sparse=True)``, are treated lazily, as by
    ``torch.optim.SparseAdam``: a row that is absent from the gradient does not move, and its first
    moment waits. The shared second moment is that of the dense gradient, in which absent rows are
    zero, and decays at every step. They are for ``vocabulary_dim=0``.

    On several processes the result is that of one process, up to rounding. DDP's whole matrices
    and DTensors need no option: ``fully_shard`` (FSDP2), tensor parallelism by rows or by columns,
    both at once, or replicated; shards may be uneven or empty. A group of plain tensors that are
    shards of rows needs ``process_group=``, the processes that share out the rows. One all-reduce a
    step adds up the sums of all coupled matrices while the other groups are stepped, so every
    process has to take every step, gradients or not: rows without a gradient count as zeros if
    another process has one (as absent, if what others have is sparse), else the matrix is skipped.
    Of matrices that are not sharded a process may hold none at all, as ZeroRedundancyOptimizer
    gives them out. ``Partial`` placements and the flat parameters of FSDP1 are refused.
    ``torch.distributed.checkpoint`` saves the state on n processes and loads it on m, and puts a
    whole state of this class or of AdamW into shards, broadcast from rank 0 or not; of plain
    shards each process saves its own.

    Args:
        params: tensors or parameter groups; ``param_groups(model)`` makes the usual ones.
        lr: learning rate, at least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: decoupled weight decay, at least 0.
        amsgrad: divide by the root of the largest second moment so far.
        maximize: ascend instead of descend.
        foreach: as in ``torch.optim.AdamW``, for groups that are not coupled.
        capturable: as in ``torch.optim.AdamW``, for CUDA graphs; dense gradients only.
        differentiable: as in ``torch.optim.AdamW``; in a coupled group for whole matrices with
            dense gradients.
        fused: as in ``torch.optim.AdamW``; for coupled groups see above.
        coupled: whether groups that do not say so themselves are coupled.
        vocabulary_dim: which dimension of a coupled matrix counts the tokens: 0 for one of shape
            [tokens, width], as of ``nn.Embedding`` and ``nn.Linear``; 1 for [width, tokens]. The
            mean is taken over it, and the shared second moment has a number for each coordinate
            of the other one. Also a key of a group. Where neither names it, it is 0, and a matrix
            with fewer rows than columns gets a line in the log.

    Raises:
        ValueError: for a hyperparameter out of range, or a coupled group that is empty or holds
            something other than dense floating-point matrices of at least two rows, whole or in
            shards as described above.
        RuntimeError: in ``step``, for a sparse gradient of a group that is not coupled, has weight
            decay, or is capturable or differentiable; for a state or gradient whose shape or
            device is not its parameter's, as after the vocabulary grew; and where torch's step
            raises one: ``fused=True`` on devices or for types without a fused step, capture in a
            graph without ``capturable=True``.
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
        vocabulary_dim: int | None = None,
    ) -> None:
        self._further_defaults = {"coupled": coupled, "vocabulary_dim": vocabulary_dim or 0}
        self._names_vocabulary_dim = vocabulary_dim is not None
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
        # With this flag GradScaler would leave unscaling and skipping to the step, which does them
        # for groups with fused=True only; without it, it does both itself, for every group.
        self._step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, coupled if it says ``coupled=True``; as in ``torch.optim.Optimizer``."""
        # Here, since AdamW's constructor adds the groups before it could learn of ours; and in the
        # defaults, since copies and pickles of an optimizer keep those and no attribute.
        for key, default in getattr(self, "_further_defaults", _PLAIN_ADAMW).items():
            self.defaults.setdefault(key, default)
        named = "vocabulary_dim" in param_group or getattr(self, "_names_vocabulary_dim", False)
        super().add_param_group(param_group)
        try:
            checks.check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        if not named:
            checks.point_out_wide(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a copy or a pickle; groups of a plain AdamW are not coupled."""
        # Torch makes a tensor of a step count that was saved as a number, and names no device.
        with torch.device("cpu"):
            super().__setstate__(state)
        for options in (self.defaults, *self.param_groups):
            for key, default in _PLAIN_ADAMW.items():
                options.setdefault(key, default)

    def state_dict(self) -> dict[str, Any]:
        """As in ``torch.optim.AdamW``; process groups, which no file can hold, are left out."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            group.pop("process_group", None)
        if sharding.broadcast_follows():
            for group in state_dict["param_groups"]:
                for key in group["params"] if group["coupled"] else ():
                    if key in state_dict["state"]:
                        state_dict["state"][key] = _with_whole_moments(state_dict["state"][key])
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
            ValueError: if groups or shapes do not fit, the message says which and, for a
                vocabulary of another size, what to do. The optimizer is left as it was.
        """
        own = [
            {key: group[key] for key in _OWN_KEYS if key in group} for group in self.param_groups
        ]
        loaded: dict[str, Any] = {}

        def remember(_: torch.optim.Optimizer, final: dict[str, Any]) -> None:
            loaded.update(final)
            # Where the groups do not agree torch refuses them.
            for group, source in zip(self.param_groups, final["param_groups"], strict=False):
                for parameter, key in zip(group["params"], source["params"], strict=False):
                    if final["state"].get(key):
                        checks.check_loaded(parameter, final["state"][key], group, source)

        def convert(_: torch.optim.Optimizer) -> None:
            for group, kept, source in zip(
                self.param_groups, own, loaded["param_groups"], strict=True
            ):
                group.update(kept)
                checks.check_group(group)
                for parameter, key in zip(group["params"], source["params"], strict=True):
                    if loaded["state"].get(key):
                        self._convert_state(parameter, loaded["state"][key], group, source)

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
        self,
        parameter: Tensor,
        loaded: dict[str, Any],
        group: dict[str, Any],
        source: dict[str, Any],
    ) -> None:
        state = self.state[parameter]
        if not counts_on_device(group):
            # Torch brings it to a GPU for fused=True; a coupled step would wait for it each time.
            state["step"] = state["step"].cpu()
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            # Torch shares tensors that need no cast, and would have cast float32 state to a
            # bfloat16 parameter's type: so from the source, and a copy of our own.
            if key in loaded and (group["coupled"] or loaded[key].shape != parameter.shape):
                state[key] = second_moment_for(loaded[key], parameter, group, source)

    @_use_grad_for_differentiable
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Make one step.

        Args:
            closure: reevaluates the model and returns the loss; optional.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: for what the class says; nothing of a coupled group was changed then.
        """
        getattr(self, _GRAPH_CHECK)()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Set by hand; GradScaler does both itself for an optimizer like this one.
        grad_scale, found_inf = (getattr(self, key, None) for key in ("grad_scale", "found_inf"))
        checks.check_scaling(self.param_groups, grad_scale, found_inf)
        skipped = found_inf is not None and bool(found_inf)
        # All of them, so that what is refused is refused before anything moves.
        present = [(group, list(self._with_gradients(group))) for group in self.param_groups]
        swept = [
            one
            for group, here in present
            if group["coupled"]
            for one in self._sweep(group, here, None if skipped else grad_scale)
        ]
        # The AdamW groups are stepped while the sums of sharded matrices travel.
        reduction = sharding.Reduction(one.sums for one in swept)
        for group, here in present:
            if not group["coupled"]:
                _plain_step(group, here, grad_scale, found_inf)
        reduction.wait()
        for one in swept if not skipped else ():
            self._coupled_update(one)
        return loss

    def _sweep(
        self, group: dict[str, Any], here: list[_Present], grad_scale: Tensor | None
    ) -> Iterator[_Swept]:
        """Read the gradients of a coupled group and sum their squares."""
        present = {p: (gradient, state) for p, gradient, state in here}
        for parameter in group["params"]:
            groups = sharding.row_groups(parameter, group)
            held, dtype = _tokens_first(sharding.local(parameter), group), state_dtype(parameter)
            if parameter in present:
                gradient, state = present[parameter]
                moment = _tokens_first(sharding.local(state["exp_avg"]), group)
                rows = None
                if gradient.is_sparse:
                    gradient = gradient.coalesce()
                    rows, gradient = gradient.indices()[0], gradient.values()
                else:
                    gradient = _tokens_first(sharding.local_gradient(gradient, parameter), group)
                    checks.check_parts(
                        parameter, held, gradient, moment, sharding.local(state["exp_avg_sq"])
                    )
                if not torch.compiler.is_compiling():
                    memory.check(held, gradient, moment)
                if grad_scale is not None:
                    # In place, as torch's fused step leaves it.
                    gradient.div_(grad_scale.to(gradient.device, non_blocking=True))
                kernel = _kernel_for(group, held, gradient, moment) if rows is None else None
                total = (
                    kernel.sum_of_squares(gradient)
                    if kernel is not None
                    else _sum_of_squares(gradient, dtype)
                )
                sums = sharding.ColumnSums(total, held.shape[0], groups, sparse=rows is not None)
                yield _Swept(group, parameter, sums, gradient, rows, kernel)
            elif groups:
                # Another process may have a gradient for its rows: these count as zeros then.
                total = torch.zeros(held.shape[1], dtype=dtype, device=parameter.device)
                sums = sharding.ColumnSums(total, held.shape[0], groups, has_gradient=False)
                yield _Swept(group, parameter, sums)

    def _coupled_update(self, swept: _Swept) -> None:
        group, parameter, gradient = swept.group, swept.parameter, swept.gradient
        if not swept.sums.gradient_anywhere():
            return
        if not self.state[parameter]:
            _start_state(self.state[parameter], parameter, group)
        if group["differentiable"]:
            self._differentiable_update(swept)
            return
        state, maximize = self.state[parameter], group["maximize"]
        state["step"] += 1
        weight, first_moment = (
            _tokens_first(sharding.local(one), group) for one in (parameter, state["exp_avg"])
        )
        second_moment = sharding.local(state["exp_avg_sq"])
        beta1, beta2 = _betas(group, state["step"])
        second_moment.lerp_(swept.sums.mean(), _like(1 - beta2, second_moment))
        if group["amsgrad"]:
            largest = sharding.local(state["max_exp_avg_sq"])
            torch.maximum(largest, second_moment, out=largest)
            second_moment = largest
        factor, decay = _factor_and_decay(group, state["step"], second_moment)
        if swept.kernel is not None:
            swept.kernel.update(
                weight,
                gradient,
                first_moment,
                factor,
                weight=1 - beta1,
                decay=decay,
                maximize=maximize,
            )
        elif swept.rows is not None and gradient is not None:
            gradient = -gradient if maximize else gradient
            touched = first_moment[swept.rows].lerp_(gradient.to(first_moment.dtype), 1 - beta1)
            first_moment[swept.rows] = touched
            weight[swept.rows] = weight[swept.rows].addcmul_(touched, factor)
        elif not swept.sums.rows_wait():
            if gradient is None:
                gradient = first_moment.new_zeros(()).expand_as(first_moment)
            share = _like(1 - beta1, first_moment)
            # In blocks, so that a processor still has the first moment at hand when it is used.
            at_once = _ROWS_AT_ONCE if weight.device.type == "cpu" else max(1, len(weight))
            blocks = (matrix.split(at_once) for matrix in (weight, first_moment, gradient))
            for e, m, g in zip(*blocks, strict=True):
                g = -g if maximize else g
                m.lerp_(g.to(m.dtype), share)
                # Not a product with 1 - lr * weight_decay: rounded to float32, that factor is off
                # by the same few parts in 1e8 at every step, and the error adds up.
                if isinstance(decay, Tensor):
                    e.addcmul_(e, decay)
                elif decay != 0:
                    e.add_(e, alpha=decay)
                e.addcmul_(m, factor)
        if sharding.is_dtensor(parameter) or swept.kernel is not None:
            # Autograd watches the parameter and would not notice that its memory was written to.
            torch.autograd.graph.increment_version(parameter)

    def _differentiable_update(self, swept: _Swept) -> None:
        """The same with new tensors as state, since the graphs of earlier steps hold the old."""
        group, parameter, state = swept.group, swept.parameter, self.state[swept.parameter]
        beta1, beta2 = _betas(group, state["step"])
        # Whole matrices only, of which every process has the gradient; as the parameter lies.
        assert swept.gradient is not None
        gradient = _tokens_first(swept.gradient, group)
        gradient = -gradient if group["maximize"] else gradient
        state["step"] += 1
        state["exp_avg"] = state["exp_avg"].lerp(gradient, _like(1 - beta1, gradient))
        second_moment = state["exp_avg_sq"]
        second_moment = second_moment.lerp(swept.sums.mean(), _like(1 - beta2, second_moment))
        state["exp_avg_sq"] = second_moment
        if group["amsgrad"]:
            second_moment = torch.maximum(state["max_exp_avg_sq"], second_moment)
            state["max_exp_avg_sq"] = second_moment
        factor, decay = _factor_and_decay(group, state["step"], second_moment)
        factor = factor.unsqueeze(group["vocabulary_dim"])
        # A copy, as the derivative by a learning rate needs the parameter as it was.
        parameter.add_(decay * parameter.clone() + factor * state["exp_avg"])

    def _with_gradients(self, group: dict[str, Any]) -> Iterator[_Present]:
        """The group's parameters that have a gradient, each with its (new or old) state."""
        checks.check_group(group)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            checks.check_gradient(parameter, parameter.grad)
            if parameter.grad.is_sparse:
                checks.check_sparse(parameter, group)
            state = self.state[parameter]
            if not state:
                checks.check_new(parameter, group)
                _start_state(state, parameter, group)
            checks.check_state(parameter, state, group)
            yield parameter, parameter.grad, state


def _with_whole_moments(state: dict[str, Any]) -> dict[str, Any]:
    """A coupled matrix's state in which its shared moments are plain tensors; a collective."""
    whole = dict(state)
    for key in checks.SECOND_MOMENTS:
        if key in whole and sharding.is_dtensor(whole[key]):
            whole[key] = whole[key].full_tensor()
    return whole


def _plain_step(
    group: dict[str, Any],
    present: list[_Present],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Torch's own step for a group that is not coupled."""
    parts = {group["fused"]: present}
    if group["fused"]:
        parts = {False: [], True: []}
        for one in present:
            parts[_may_be_fused(*one)].append(one)
    for fused, chosen in parts.items():
        if not chosen:
            continue
        states = [state for _, _, state in chosen]
        adamw(
            [parameter for parameter, _, _ in chosen],
            [gradient for _, gradient, _ in chosen],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=fused,
            grad_scale=grad_scale,
            found_inf=found_inf,
            has_complex=any(torch.is_complex(parameter) for parameter, _, _ in chosen),
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


def _may_be_fused(parameter: Tensor, gradient: Tensor, state: dict[str, Any]) -> bool:
    """Whether torch's fused step, which takes raw pointers, goes where it should."""
    moments = [state[key] for key in ("exp_avg", *checks.SECOND_MOMENTS) if key in state]
    tensors = [sharding.local(one) for one in (parameter, gradient, *moments)]
    memory.check(*tensors)
    return memory.elements_lie_alike(*tensors)


def _tokens_first(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """A matrix of a coupled group as [tokens, width]: itself or a view of it, and back again."""
    return matrix if group["vocabulary_dim"] == 0 else matrix.T


def _is_fake(tensor: Tensor) -> bool:
    """Whether a tensor only stands for one, as in torch's estimates of memory."""
    return isinstance(tensor, FakeTensor)


def _stays_a_tensor(group: dict[str, Any], step: Tensor) -> bool:
    """Whether what changes from step to step may not be read as a number.

    A graph would repeat the number at each replay, a compiler would make it a constant and compile
    anew at each step, and a FakeTensor has none.
    """
    return bool(group["capturable"]) or torch.compiler.is_compiling() or _is_fake(step)


def _betas(group: dict[str, Any], step: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """The decay rates, as numbers unless that would ask a device or lose their derivatives."""
    if group["differentiable"] or _stays_a_tensor(group, step):
        first, second = (
            beta.reshape(()) if isinstance(beta, Tensor) else beta for beta in group["betas"]
        )
        return first, second
    return float(group["betas"][0]), float(group["betas"][1])


def _like(number: float | Tensor, tensor: Tensor) -> float | Tensor:
    """A number as it is, or if it is a tensor on the device and of the type of another one."""
    if isinstance(number, Tensor):
        return number.to(tensor.device, tensor.dtype, non_blocking=True)
    return number


def _factor_and_decay(
    group: dict[str, Any], step: Tensor, second_moment: Tensor
) -> tuple[Tensor, float | Tensor]:
    """What each column's first moment is multiplied by, shape [H]; and the share that decays.

    Both with their signs, to be added. Where the step is captured in a graph, everything that
    changes from step to step stays on the device.
    """
    lr = group["lr"]
    beta1, beta2 = (_like(beta, second_moment) for beta in _betas(group, step))
    if _stays_a_tensor(group, step):
        number: float | Tensor = _like(step, second_moment)
        lr = lr.to(second_moment.dtype) if isinstance(lr, Tensor) else lr
    else:
        number = step.item()
        lr = lr if group["differentiable"] else float(lr)
    corrected = second_moment / _bias_correction(beta2, number)
    denominator = corrected.sqrt() + group["eps"]
    factor = (-lr / _bias_correction(beta1, number)) / denominator
    weight_decay = group["weight_decay"]
    # Zero as a number, which an update can leave out without looking into a tensor.
    return factor, -lr * weight_decay if weight_decay != 0 else 0.0


def _bias_correction(beta: float | Tensor, step: float | Tensor) -> float | Tensor:
    """``1 - beta**step``; for a tensor without the cancellation that float32 would suffer."""
    if isinstance(beta, Tensor):
        return -torch.expm1(step * torch.log(beta))
    if isinstance(step, Tensor):
        return -torch.expm1(step * (math.log(beta) if beta > 0 else -math.inf))
    return 1 - beta**step


def _start_state(state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> None:
    # Never the parameter's type: a bfloat16 counter would stop at 256.
    counter_dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    dtype = torch.float32 if group["fused"] else counter_dtype
    # As torch makes them: zeros on a device, which a graph can be capturing, and elsewhere from a
    # number, which can be read back even from a FakeTensor.
    if counts_on_device(group):
        state["step"] = torch.zeros((), dtype=dtype, device=parameter.device)
    else:
        state["step"] = torch.tensor(0.0, dtype=dtype, device="cpu")
    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    if group["coupled"]:
        second_moment = sharding.column_zeros(parameter, state_dtype(parameter), group)
    else:
        second_moment = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    state["exp_avg_sq"] = second_moment
    if group["amsgrad"]:
        state["max_exp_avg_sq"] = torch.zeros_like(second_moment)


def _kernel_for(group: dict[str, Any], *matrices: Tensor) -> ModuleType | None:
    """The module of sweeps that the group's options ask for, where it fits the matrices."""
    # What a compiler traces it can fuse by itself, and a call into C would be lost to it.
    if group["fused"] is False or group["differentiable"] or torch.compiler.is_compiling():
        return None
    if isinstance(group["betas"][0], Tensor) and group["capturable"]:
        return None  # the kernels take it as a number
    device, module = matrices[0].device.type, None
    if device == "cuda" and _has_triton():
        module = importlib.import_module("coupled_adam.optim.kernel")  # needs Triton
    elif device == "cpu" and group["fused"]:
        module = native
    return module if module is not None and module.fits(*matrices) else None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _sum_of_squares(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the rows of the squared gradient, shape [H], without a full-size temporary."""
    # Block upon block first, so that each core of a processor adds to its own part; summing every
    # block by columns would send the squares from core to core. It lies in memory as a block does.
    total = torch.zeros_like(gradient[:_ROWS_AT_ONCE], dtype=dtype)
    for block in gradient.split(_ROWS_AT_ONCE):
        total[: len(block)].addcmul_(block, block)
    return total.sum(0)
