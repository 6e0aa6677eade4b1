"""The processes that train one model together."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from coupled_adam.errors import RefusedError

_Result = TypeVar("_Result")


class Processes:
    """The processes that train together; just this one where there is no process group.

    Attributes:
        rank: the number of this process, from 0.
        count: how many there are.
        pieces: in which this process computes its share of a batch, one after another.

    Raises:
        RefusedError: if a batch cannot be shared equally among them.
    """

    def __init__(self, batch_size: int, accumulation: int) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        if batch_size % self.count:
            raise RefusedError(
                f"a batch of {batch_size} sequences cannot be shared equally among "
                f"{self.count} processes: choose batch_size as a multiple of their number"
            )
        share = batch_size // self.count
        # Equal pieces, of at most the size that one process alone would compute at once.
        fewest = math.ceil(accumulation / self.count)
        self.pieces = next(pieces for pieces in range(fewest, share + 1) if share % pieces == 0)

    def first_then_others(
        self, first: Callable[[], _Result], others: Callable[[], _Result]
    ) -> _Result:
        """Let the first process act, and only then the others."""
        if self.rank == 0:
            result = first()
        if self.count > 1:
            dist.barrier()
        return result if self.rank == 0 else others()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it has to be called, so that gradients are averaged over processes."""
        return DistributedDataParallel(model) if self.count > 1 else model

    def reduction(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Average the gradients once a step: in the backward pass of the last piece."""
        if self.count == 1 or last:
            return nullcontext()
        assert isinstance(model, DistributedDataParallel)
        return model.no_sync()

    def share(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """This process's sequences."""
        tokens, targets = (part.chunk(self.count)[self.rank] for part in batch)
        return tokens, targets

    def total(self, value: Tensor) -> Tensor:
        """The sum of a number over the processes, in float64."""
        everywhere = value.double()
        if self.count > 1:
            dist.all_reduce(everywhere)
        return everywhere
