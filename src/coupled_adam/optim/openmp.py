"""PyTorch's OpenMP team, found in this process and never brought into it."""

from __future__ import annotations

import ctypes
import functools
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch


class Team(NamedTuple):
    """Addresses of two functions of the OpenMP runtime that PyTorch uses.

    Attributes:
        parallel: ``GOMP_parallel``, to which compilers translate ``#pragma omp parallel``: calls a
            function in each thread of the calling thread's team. LLVM's and Intel's runtimes have
            it too.
        number: ``omp_get_thread_num``.
    """

    parallel: int
    number: int


def team() -> tuple[Team | None, str]:
    """The team that PyTorch's operations run in, or None and why it cannot be joined."""
    if _forked():
        return None, "this process was forked"
    return _find()


@functools.cache
def _find() -> tuple[Team | None, str]:
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None, "PyTorch was built without OpenMP"
    found: dict[int, ctypes.CDLL] = {}
    try:
        # Where the loader looked when it bound PyTorch: first among what is visible to all, as a
        # preloaded runtime is, then among PyTorch's own libraries. Nothing is loaded by that. By a
        # file's name one could not tell: wheels rename it, and scikit-learn brings another one.
        own = ctypes.CDLL(torch._C.__file__, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        for runtime in (ctypes.CDLL(None), own):
            with suppress(AttributeError):
                if runtime.omp_get_max_threads() == torch.get_num_threads():
                    found.setdefault(_address(runtime, "GOMP_parallel"), runtime)
        for parallel, runtime in found.items():
            if len(found) == 1 or _follows_torch(runtime):
                return Team(parallel, _address(runtime, "omp_get_thread_num")), ""
    except (OSError, AttributeError) as error:
        return None, f"PyTorch's OpenMP runtime cannot be reached: {error}"
    return None, "PyTorch's OpenMP runtime was not found"


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _follows_torch(runtime: ctypes.CDLL) -> bool:
    """Whether PyTorch's number of threads is this runtime's; asked only where there are two."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        return bool(runtime.omp_get_max_threads() == before + 1)
    finally:
        torch.set_num_threads(before)


def _is_copy() -> bool:
    """Whether this process was forked and has started no program of its own since (on Linux)."""
    with suppress(OSError, ValueError, IndexError):
        # The name of the process, in brackets, may hold anything. The flag is PF_FORKNOEXEC.
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        return bool(int(fields[6]) & 0x40)
    return False


_IMPORTED_BY, _IMPORTED_BY_COPY = os.getpid(), _is_copy()


def _forked() -> bool:
    """Whether this process may have inherited a team without its threads.

    With libgomp, a copy of a process that has used its team waits in the first parallel region for
    threads that it does not have, for ever.
    """
    return _IMPORTED_BY_COPY or os.getpid() != _IMPORTED_BY
