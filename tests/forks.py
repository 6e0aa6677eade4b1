"""Processes that begin with everything imported: to import torch and the library takes seconds."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

# Once for all tests of a worker, as there is one server of a process; what is not installed here
# is passed over.
IMPORTED = (
    "coupled_adam.experiments",
    "coupled_adam.training",
    "pytest",
    "torch._dynamo",  # which an optimizer imports when it is made
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.tensor",
)


def context() -> BaseContext:
    """Where to take ``Process`` and ``Queue`` from; the processes have no threads but their own."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(IMPORTED))
    return made
