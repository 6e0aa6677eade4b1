"""The coupled step on a CPU in two sweeps, in C that is compiled when it is first needed.

The compiler takes a fraction of a second. What it makes is used by this process only and kept
nowhere, so that it always fits the processor. Where there is no compiler, or it fails, nothing
``fits``, and the optimizer uses PyTorch's operations.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from coupled_adam.optim import memory

_SOURCE = Path(__file__).with_name("step.c")
_FLAGS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
# Rows that one thread works on at a time. As the sum over the rows is made tile by tile, the number
# of threads does not change it.
_ROWS = 4096
# Elements below which it does not pay to wake other threads.
_WORTH_SHARING = 1 << 18


def fits(parameter: Tensor, gradient: Tensor, first_moment: Tensor) -> bool:
    """Whether the sweeps can step these: dense matrices of one type with whole rows, compiled."""
    matrices = (parameter, gradient, first_moment)
    return (
        memory.rows_lie_alike(*matrices)
        and all(one.dtype == parameter.dtype for one in matrices)
        and parameter.device.type == "cpu"
        and parameter.dtype in _FLAGS
        and _library(parameter.dtype) is not None
    )


def sum_of_squares(gradient: Tensor) -> Tensor:
    """The sum over the rows of the squared gradient.

    Args:
        gradient: shape [V, H], as ``fits`` asks.

    Returns:
        float32, shape [H]; the same bits for the same gradient, on any number of threads.
    """
    rows, columns = gradient.shape
    library, size = _library(gradient.dtype), gradient.element_size()
    tiles = -(-rows // _ROWS)
    totals = torch.empty(tiles, columns, dtype=torch.float64, device="cpu")
    parts = torch.empty(tiles, columns, dtype=torch.float32, device="cpu")

    def tile(number: int) -> None:
        first = number * _ROWS
        library.sum_of_squares(
            gradient.data_ptr() + first * gradient.stride(0) * size,
            min(_ROWS, rows - first),
            columns,
            gradient.stride(0),
            parts[number].data_ptr(),
            totals[number].data_ptr(),
        )

    _for_each(tile, tiles, gradient.numel())
    return totals.sum(0).float()


def update(
    parameter: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    factor: Tensor,
    *,
    weight: float,
    decay: float | Tensor,
    maximize: bool,
) -> None:
    """Move the first moment and, by it, the parameter, both in place.

    ``m += weight * (g - m)`` and ``p += decay * p + factor * m``, in float32.

    Args:
        parameter: shape [V, H].
        gradient: shape [V, H].
        first_moment: shape [V, H].
        factor: minus step size over denominator, float32, shape [H].
        weight: 1 - beta1.
        decay: minus learning rate times weight decay.
        maximize: whether the gradient is taken with the opposite sign.
    """
    rows, columns = parameter.shape
    matrices = (parameter, gradient, first_moment)
    library, size = _library(parameter.dtype), parameter.element_size()
    factor, decay = factor.contiguous(), float(decay)

    def tile(number: int) -> None:
        first = number * _ROWS
        library.update(
            *(one.data_ptr() + first * one.stride(0) * size for one in matrices),
            factor.data_ptr(),
            min(_ROWS, rows - first),
            columns,
            *(one.stride(0) for one in matrices),
            -1.0 if maximize else 1.0,
            weight,
            decay,
        )

    _for_each(tile, -(-rows // _ROWS), parameter.numel())


def _for_each(tile: Callable[[int], None], tiles: int, elements: int) -> None:
    threads = min(torch.get_num_threads(), tiles) if elements > _WORTH_SHARING else 1
    if threads == 1:
        for number in range(tiles):
            tile(number)
        return
    # Python's lock is open while C is running, so that threads of Python are enough.
    for _ in _pool(threads, os.getpid()).map(tile, range(tiles)):
        pass


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one inherits the memory of a pool but not its threads."""
    return ThreadPoolExecutor(threads, "coupled-adam")


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled sweeps for a type; None where they cannot be compiled."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform == "win32":
        return None
    with tempfile.TemporaryDirectory(prefix="coupled-adam-") as folder:
        made = Path(folder) / "step.so"
        command = [compiler, "-O3", "-shared", "-fPIC", *_FLAGS[dtype], str(_SOURCE), "-o", made]
        # Not every compiler knows the processor that it runs on by this name.
        for flags in (["-march=native"], []):
            try:
                done = subprocess.run([*command, *flags], capture_output=True, check=False)
            except OSError:
                return None
            if done.returncode == 0:
                break
        else:
            return None
        library = ctypes.CDLL(str(made))
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.sum_of_squares.argtypes = [pointer, *[count] * 3, pointer, pointer]
    library.update.argtypes = [*[pointer] * 4, *[count] * 5, *[number] * 3]
    library.sum_of_squares.restype = library.update.restype = None
    return library
