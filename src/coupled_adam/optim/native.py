"""The coupled step on a CPU in two sweeps, in C that is compiled when it is first needed.

The compiler takes a fraction of a second. What it makes is tried in another process, used by this
one only and kept nowhere, so that it always fits the processor. Where there is no compiler, or what
it makes cannot be used, nothing ``fits`` and the optimizer uses PyTorch's operations;
``unavailable`` says why.

After each of its operations PyTorch lets the threads of its OpenMP team spin for some milliseconds.
Threads of our own would have to share the cores with them (a step took 1.2 to 1.6 times as long),
so a sweep runs in that team if it can be joined: by a function pointer into the runtime that
PyTorch has loaded, never by a runtime of our own.
"""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from coupled_adam.optim import compiler, openmp

_SOURCE = Path(__file__).with_name("step.c")
_FLAGS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
# A matrix is cut into some multiple of so many tiles, for equal shares, of about so many rows.
_EQUAL, _ROWS = 8, 512
# Elements below which it does not pay to wake other threads.
_WORTH_SHARING = 1 << 18

#: How the last sweep of this process was run, in words; for those who measure.
last_run = ""


class _Sweep(ctypes.Structure):
    """``sweep`` in step.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("parameter", "gradient", "first_moment")),
        *((name, ctypes.c_void_p) for name in ("factor", "totals", "sums")),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("parameter", "gradient", "moment")),
        *((name, ctypes.c_int64) for name in ("tiles", "shares")),
        ("taken", ctypes.c_void_p),
        ("done", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("sign", "weight", "decay")),
    )


def fits(parameter: Tensor, gradient: Tensor, first_moment: Tensor) -> bool:
    """Whether the sweeps can step these: dense matrices of one type with whole rows, compiled."""
    matrices = (parameter, gradient, first_moment)
    return (
        parameter.dtype in _FLAGS
        and not any(_misfit(one, parameter) for one in matrices)
        and _compiled(parameter.dtype)[0] is not None
    )


def unavailable(dtype: torch.dtype) -> str:
    """Why there are no sweeps for a type on this machine; empty if there are."""
    return "" if dtype not in _FLAGS else _compiled(dtype)[1]


def sum_of_squares(gradient: Tensor) -> Tensor:
    """The sum over the rows of the squared gradient.

    Args:
        gradient: shape [V, H], as ``fits`` asks.

    Returns:
        float32, shape [H]; the same bits for the same gradient, on any number of threads.

    Raises:
        ValueError: if the gradient is not as ``fits`` asks.
        RuntimeError: if there are no sweeps for its type.
    """
    _check(gradient=gradient)
    columns = gradient.shape[1]
    sweep = _sweep(gradient)
    totals = torch.empty(sweep.tiles, columns, dtype=torch.float64, device="cpu")
    sums = torch.zeros(columns, dtype=torch.float32, device="cpu")
    sweep.totals, sweep.sums = totals.data_ptr(), sums.data_ptr()
    if gradient.numel():
        _run(sweep, gradient.dtype, gradient, totals, sums)
    return sums


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

    Raises:
        ValueError: if the matrices are not as ``fits`` asks or differ in shape, or the factor is
            of another shape or type; then nothing was written.
        RuntimeError: if there are no sweeps for their type.
    """
    _check(parameter=parameter, gradient=gradient, first_moment=first_moment)
    if factor.shape != parameter.shape[1:] or factor.dtype != torch.float32:
        raise ValueError(
            f"factor has shape {tuple(factor.shape)} and type {factor.dtype}; it takes "
            f"{parameter.shape[1]} numbers of torch.float32, one for each column"
        )
    if factor.device.type != "cpu":
        raise ValueError(f"factor is on {factor.device}; it has to be on the cpu")
    if parameter.numel() == 0:
        return
    factor = factor.contiguous()
    sweep = _sweep(gradient)
    sweep.parameter, sweep.first_moment = parameter.data_ptr(), first_moment.data_ptr()
    sweep.parameter_stride, sweep.moment_stride = parameter.stride(0), first_moment.stride(0)
    sweep.factor = factor.data_ptr()
    sweep.sign, sweep.weight, sweep.decay = (-1.0 if maximize else 1.0), weight, float(decay)
    _run(sweep, parameter.dtype, parameter, gradient, first_moment, factor)


def _misfit(one: Tensor, like: Tensor) -> str:
    """What keeps a matrix from being swept together with another; empty if nothing does."""
    if type(one) not in (Tensor, torch.nn.Parameter) or one.layout != torch.strided:
        return f"is a {type(one).__name__} of layout {one.layout}; it takes a plain dense tensor"
    if one.device.type != "cpu":
        return f"is on {one.device}; it takes a matrix on the cpu"
    if one.dtype != like.dtype or one.dtype not in _FLAGS:
        return f"is of {one.dtype}; it takes torch.float32 or torch.bfloat16, the same for all"
    if one.dim() != 2 or one.is_neg():
        return f"has shape {tuple(one.shape)}; it takes a matrix, and no view of its negative"
    if one.numel() and one.stride(1) != 1:
        return f"has strides {one.stride()}; it takes whole rows"
    return ""


def _check(**matrices: Tensor) -> None:
    """Refuse what C would read or write at places that do not belong to the matrices.

    A vocabulary that had grown under its optimizer once made the step write into foreign memory.
    """
    first, like = next(iter(matrices.items()))
    for name, one in matrices.items():
        wrong = _misfit(one, like)
        if not wrong and one.shape != like.shape:
            wrong = f"has shape {tuple(one.shape)}, and {first} has {tuple(like.shape)}"
        if not wrong and one.numel():
            last = (one.shape[0] - 1) * one.stride(0) + one.shape[1]
            needed = (one.storage_offset() + last) * one.element_size()
            if needed > one.untyped_storage().nbytes():
                wrong = f"needs {needed} bytes, and its storage has been resized to fewer"
            elif name != "gradient" and one.shape[0] > 1 and one.stride(0) < one.shape[1]:
                wrong = f"has strides {one.stride()}: its rows overlap and cannot be written"
        if wrong:
            raise ValueError(f"{name} {wrong}")


def _sweep(gradient: Tensor) -> _Sweep:
    rows, columns = gradient.shape
    # The same for any number of threads, so that the sums are the same to the bit.
    tiles = _EQUAL * -(-rows // (_EQUAL * _ROWS))
    return _Sweep(
        gradient=gradient.data_ptr(),
        gradient_stride=gradient.stride(0),
        rows=rows,
        columns=columns,
        tiles=tiles,
    )


def _run(sweep: _Sweep, dtype: torch.dtype, *used: Tensor) -> None:
    """Run a sweep to its end; whatever happens meanwhile, nothing is read or written afterwards."""
    global last_run
    library, wrong = _compiled(dtype)
    if library is None:
        raise RuntimeError(f"there are no sweeps for {dtype} on this machine: {wrong}")
    threads = torch.get_num_threads() if sweep.rows * sweep.columns > _WORTH_SHARING else 1
    sweep.shares = threads
    taken = (ctypes.c_int64 * threads)()
    sweep.taken = ctypes.addressof(taken)
    if threads == 1:
        library.lead(ctypes.byref(sweep))
        last_run = "C, on one thread"
        return
    team, why_not = openmp.team()
    if team is not None:
        library.lead_team(ctypes.byref(sweep), *team, threads)
        last_run = f"C, in torch's OpenMP team of {threads} threads"
        return

    # Python's lock is open while C is running, so that threads of Python are enough. They hold on
    # to what they use, as one that comes late still looks into the sweep.
    def join(member: int, *_: object) -> None:
        library.take_part(ctypes.byref(sweep), member)

    try:
        pool = _pool(threads - 1, os.getpid())
        for member in range(1, threads):
            pool.submit(join, member, taken, used)
    except RuntimeError:
        pass  # no new threads, as after the end of the main thread: those that there are do it all
    finally:
        library.lead(ctypes.byref(sweep))
    last_run = f"C, on {threads} threads of its own ({why_not})"


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one inherits the memory of a pool but not its threads."""
    return ThreadPoolExecutor(threads, "coupled-adam")


@functools.cache
def _compiled(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    """The compiled sweeps for a type; None, and why, where they cannot be had."""
    library, wrong = compiler.shared_library(_SOURCE, _FLAGS[dtype])
    if library is not None:
        pointer = ctypes.c_void_p
        library.take_part.argtypes = [pointer, ctypes.c_int64]
        library.lead.argtypes = [pointer]
        library.lead_team.argtypes = [pointer, pointer, pointer, ctypes.c_int]
        for function in (library.take_part, library.lead, library.lead_team):
            function.restype = None
    return library, wrong
