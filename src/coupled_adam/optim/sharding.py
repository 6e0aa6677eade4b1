"""Coupled matrices of which a process holds only some rows or columns.

The mean over the vocabulary needs all V rows. Where they are spread over processes, each sums the
squares of its own rows, one all-reduce adds up the sums of all matrices, and each divides by the
rows of the whole matrix. A DTensor's own ``mean(0)`` would gather the matrix where the shards are
uneven. Columns are independent of each other: where they are spread, so is the shared moment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


# What travels with the sums of a matrix: rows, gradients, sparse gradients.
_COUNTS = 3


@dataclass
class ColumnSums:
    """Sums over the rows of one matrix: of this process, and after a reduction of all processes.

    Attributes:
        total: the sums, shape [columns of this process], float32 or float64.
        rows: number of rows that were summed.
        groups: the process groups that share out the rows; none if all rows are here.
        has_gradient: whether this process had a gradient to sum.
        sparse: whether that was a sparse one.
        gradients: number of processes that had one; known after the reduction.
        sparse_gradients: number of processes that had a sparse one; likewise.
    """

    total: Tensor
    rows: int | Tensor
    groups: tuple[ProcessGroup, ...]
    has_gradient: bool = True
    sparse: bool = False
    gradients: Tensor | None = None
    sparse_gradients: Tensor | None = None

    def mean(self) -> Tensor:
        """The mean over the rows, shape [columns of this process]."""
        return self.total / self.rows

    def gradient_anywhere(self) -> bool:
        """Whether any process had a gradient; reads the device only where this one had none."""
        return self.has_gradient or (self.gradients is not None and self.gradients.item() > 0)

    def rows_wait(self) -> bool:
        """Whether the rows of a process without a gradient are absent, and not zeros.

        Where the others had sparse gradients: all rows of this process are missing from the batch.
        """
        if self.has_gradient or self.gradients is None or self.sparse_gradients is None:
            return False
        return bool(self.gradients == self.sparse_gradients)


class Reduction:
    """One all-reduce of the column sums of many matrices, running until ``wait`` returns.

    Every process of a group has to start it with the same matrices in the same order, those with
    no rows or no gradient included; their sums are zero.
    """

    def __init__(self, sums: Iterable[ColumnSums]) -> None:
        together: dict[Any, list[ColumnSums]] = {}
        for entry in sums:
            if entry.groups:
                key = (entry.groups, entry.total.dtype, entry.total.device)
                together.setdefault(key, []).append(entry)
        self._running = [(*_start(entries), entries) for entries in together.values()]

    def wait(self) -> None:
        """Fill in the sums over all processes."""
        for work, buffer, entries in self._running:
            work.wait()
            parts = buffer.split([len(entry.total) + _COUNTS for entry in entries])
            for entry, part in zip(entries, parts, strict=True):
                entry.total = part[:-_COUNTS]
                entry.rows, entry.gradients, entry.sparse_gradients = part[-_COUNTS:]


def _start(entries: list[ColumnSums]) -> tuple[Work, Tensor]:
    first = entries[0]
    buffer = first.total.new_empty(sum(len(entry.total) + _COUNTS for entry in entries))
    parts = buffer.split([len(entry.total) + _COUNTS for entry in entries])
    for entry, part in zip(entries, parts, strict=True):
        part[:-_COUNTS] = entry.total
        # Counted along: no further collective, no count to be remembered.
        part[-3] = entry.rows
        part[-2] = float(entry.has_gradient)
        part[-1] = float(entry.sparse)
    *inner, last = first.groups
    for group in inner:
        torch.distributed.all_reduce(buffer, group=group)
    return torch.distributed.all_reduce(buffer, group=last, async_op=True), buffer


def check(parameter: Tensor, group: dict[str, Any]) -> None:
    """Refuse a matrix of which cannot be told which rows are where.

    Raises:
        ValueError: for a tensor subclass other than DTensor, a placement that leaves sums open or
            is unknown, or a ``process_group`` that is none or not needed.
    """
    shape = tuple(parameter.shape)
    with torch.no_grad():
        kind = type(local(parameter))
    # A FakeTensor stands for a plain one where memory is estimated.
    if kind not in (Tensor, torch.nn.Parameter, torch.nn.Buffer, FakeTensor):
        name = f"DTensor of {kind.__name__}" if is_dtensor(parameter) else kind.__name__
        raise ValueError(
            f"a coupled group got a {name} of shape {shape}; only plain dense tensors and DTensors "
            "of them can be coupled (a mean over the rows of one shard would not be the mean over "
            "the vocabulary): keep the embedding unsharded, shard it with fully_shard or "
            "distribute_tensor, or use coupled=False for it"
        )
    if is_dtensor(parameter):
        for placement in parameter.placements:
            if placement.is_partial():
                raise ValueError(
                    f"a coupled group got a DTensor of shape {shape} with the placement "
                    f"{placement}: its values are sums that have not been taken yet; call "
                    "redistribute with Replicate() or Shard(0) in its place first"
                )
            if not placement.is_replicate() and getattr(placement, "dim", None) not in (0, 1):
                raise ValueError(
                    f"a coupled group got a DTensor of shape {shape} with the placement "
                    f"{placement}, of which it cannot tell whether it spreads rows or columns: "
                    "use Shard(0), Shard(1) or Replicate(), or coupled=False"
                )
    if "process_group" in group:
        if is_dtensor(parameter):
            raise ValueError(
                f"a coupled group with process_group= got a DTensor of shape {shape}, which knows "
                "by itself where its rows are: leave process_group out, or put plain row shards "
                "into a group of their own"
            )
        distributed = torch.distributed.is_available()
        if not distributed or not isinstance(
            group["process_group"], torch.distributed.ProcessGroup
        ):
            raise ValueError(
                f"process_group={group['process_group']!r} is no process group of this process: "
                "call torch.distributed.init_process_group first and pass a group that this "
                "process belongs to, such as torch.distributed.group.WORLD"
            )


def row_groups(parameter: Tensor, group: dict[str, Any]) -> tuple[ProcessGroup, ...]:
    """The process groups over which row sums of a checked matrix have to be added up, in order."""
    if not is_dtensor(parameter):
        return (group["process_group"],) if "process_group" in group else ()
    mesh = parameter.device_mesh
    placements: tuple[Any, ...] = parameter.placements
    # By exclusion: FSDP2 over tensor parallelism gives a placement that is not a Shard by type.
    spread = [
        axis
        for axis, placement in enumerate(placements)
        if not placement.is_replicate() and placement.dim == group["vocabulary_dim"]
    ]
    if len(spread) > 1 and len(spread) == mesh.ndim:
        world = torch.distributed.group.WORLD
        if world is not None and mesh.size() == world.size():
            return (world,)
    # The innermost axis, the fastest by convention, first: only the last one runs under AdamW.
    return tuple(mesh.get_group(axis) for axis in reversed(spread))


def is_dtensor(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether a tensor is a DTensor."""
    # Where there is one its module has been imported; to import it here would fail where torch was
    # built without torch.distributed.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory; call without autograd."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_gradient(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The part of a gradient that belongs to the part of the parameter on this process."""
    if (
        is_dtensor(parameter)
        and is_dtensor(gradient)
        and gradient.placements != parameter.placements
    ):
        gradient = gradient.redistribute(placements=parameter.placements)
    return local(gradient)


def column_zeros(parameter: Tensor, dtype: torch.dtype, group: dict[str, Any]) -> Tensor:
    """A zero for each column of a matrix, shape [H]; a DTensor placed like the columns of one."""
    axis = 1 - group["vocabulary_dim"]
    zeros = torch.zeros(local(parameter).shape[axis], dtype=dtype, device=parameter.device)
    return _as_columns(zeros, parameter, axis)


def mean_over_tokens(matrix: Tensor, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """The mean over all tokens of a matrix that is placed like a parameter.

    A collective if they are sharded.

    Returns:
        Shape [H], placed like ``column_zeros``.
    """
    groups, axis = row_groups(parameter, group), group["vocabulary_dim"]
    if not groups and not is_dtensor(parameter):
        return matrix.mean(axis)
    matrix = local_gradient(matrix, parameter)
    sums = ColumnSums(matrix.sum(axis), matrix.shape[axis], groups)
    Reduction([sums]).wait()
    return _as_columns(sums.mean(), parameter, 1 - axis)


def placed(whole: Tensor, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """A whole vector [H] that every process has, placed like ``column_zeros``."""
    if not is_dtensor(parameter):
        return whole
    module = sys.modules["torch.distributed.tensor"]
    mesh = parameter.device_mesh
    like: Any = column_zeros(parameter, whole.dtype, group)
    everywhere = module.DTensor.from_local(
        whole, mesh, [module.Replicate()] * mesh.ndim, run_check=False
    )
    return everywhere.redistribute(placements=like.placements)


def broadcast_follows() -> bool:
    """Whether torch asks for a state only to put in its place what rank 0 broadcasts.

    With ``StateDictOptions(broadcast_from_rank0=True)`` torch cuts each tensor that arrives as the
    one that it replaces is placed. An AdamW's second moment, V x H, does not go into a vector's
    place like that, and torch fails on all processes before this library hears of it. What is not
    a DTensor it replaces as a whole: so this is the one moment at which the state must not be one,
    and the only sign of it is who calls.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if (
            frame.f_code.co_name == "_load_optim_state_dict"
            and frame.f_globals.get("__name__") == "torch.distributed.checkpoint.state_dict"
        ):
            return bool(getattr(frame.f_locals.get("info"), "broadcast_from_rank0", False))
        frame = frame.f_back
    return False


def several_processes() -> bool:
    """Whether this process is one of several that train together."""
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def matrix_of(vector: Tensor, parameter: Tensor, vocabulary_dim: int) -> Tensor:
    """A matrix placed like a parameter, and of its type, that has the given vector for each token.

    Args:
        vector: shape [H], placed like ``column_zeros``.
        parameter: shape [V, H], or [H, V] with a ``vocabulary_dim`` of 1.
        vocabulary_dim: the dimension that counts the tokens.
    """
    matrix = torch.empty_like(parameter, memory_format=torch.contiguous_format)
    local(matrix).copy_(local(vector).unsqueeze(vocabulary_dim).expand_as(local(matrix)))
    return matrix


def _as_columns(vector: Tensor, parameter: Tensor, axis: int) -> Tensor:
    """One number for each index of an axis, spread over processes as that axis is."""
    if not is_dtensor(parameter):
        return vector
    module = sys.modules["torch.distributed.tensor"]
    held: tuple[Any, ...] = parameter.placements
    placements = []
    for placement in held:
        if placement.is_replicate() or placement.dim != axis:
            placements.append(module.Replicate())
        elif hasattr(placement, "split_factor"):
            placements.append(type(placement)(0, split_factor=placement.split_factor))
        else:
            placements.append(module.Shard(0))
    return module.DTensor.from_local(
        vector,
        parameter.device_mesh,
        placements,
        run_check=False,
        shape=parameter.shape[axis : axis + 1],
        stride=(1,),
    )
