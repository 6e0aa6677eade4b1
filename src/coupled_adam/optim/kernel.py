"""The coupled step on a GPU in two sweeps, with Triton.

The first sweep reads the gradient and leaves the sum of its squares over each tile of rows; the
tiles are then added in a fixed order, so that a run repeats bit for bit. The second sweep reads
gradient, first moment and parameter, and writes the latter two. That is six passes over a matrix,
against seven of a fused AdamW. Importing this module needs Triton.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from coupled_adam.optim import memory

# Rows and columns of a tile, and rows of it that are loaded at once.
_ROWS, _COLUMNS, _AT_ONCE = 256, 128, 8
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(parameter: Tensor, gradient: Tensor, first_moment: Tensor) -> bool:
    """Whether the kernels can step these: dense matrices of at most 32 bits with whole rows.

    Kernels get raw pointers: what this does not ask, nothing does.
    """
    matrices = (parameter, gradient, first_moment)
    return memory.rows_lie_alike(*matrices) and all(one.dtype in _DTYPES for one in matrices)


def sum_of_squares(gradient: Tensor) -> Tensor:
    """The sum over the rows of the squared gradient.

    Args:
        gradient: shape [V, H], as ``fits`` asks.

    Returns:
        float32, shape [H]; the same bits for the same gradient.
    """
    rows, columns = gradient.shape
    tiles = -(-rows // _ROWS)
    partial = torch.empty(tiles, columns, dtype=torch.float32, device=gradient.device)
    grid = (tiles, -(-columns // _COLUMNS))
    with _on_device_of(gradient):
        _sum_of_squares[grid](
            gradient, partial, rows, columns, gradient.stride(0), _ROWS, _COLUMNS, _AT_ONCE
        )
    return partial.sum(0)


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
    """As ``native.update``.

    A ``decay`` that is a tensor of one number on the device is read when the kernel runs, so that
    a captured graph follows it.
    """
    rows, columns = parameter.shape
    if not isinstance(decay, Tensor):
        decay = torch.full((), decay, dtype=torch.float32, device=parameter.device)
    grid = (-(-rows // _ROWS), -(-columns // _COLUMNS))
    with _on_device_of(parameter):
        _update[grid](
            parameter,
            gradient,
            first_moment,
            factor,
            rows,
            columns,
            parameter.stride(0),
            gradient.stride(0),
            first_moment.stride(0),
            -1.0 if maximize else 1.0,
            weight,
            decay.to(parameter.device, torch.float32),
            _ROWS,
            _COLUMNS,
            _AT_ONCE,
        )


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    # Triton launches on the current device, whichever holds the tensors: with a model on the second
    # GPU and the first one current, it would be given pointers that are none there.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def _sum_of_squares(
    gradient, partial, rows, columns, stride,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    # 64 bits: a matrix of 262,144 x 8,192 has more elements than 32 bits can count.
    tile = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    inside = column < columns
    total = tl.zeros((tile_columns,), dtype=tl.float32)
    for start in range(0, tile_rows, at_once):
        row = tile * tile_rows + start + tl.arange(0, at_once)
        here = (row < rows)[:, None] & inside[None, :]
        g = tl.load(gradient + row[:, None] * stride + column[None, :], mask=here, other=0.0)
        g = g.to(tl.float32)
        total += tl.sum(g * g, axis=0)
    tl.store(partial + tile * columns + column, total, mask=inside)


@triton.jit
def _update(
    parameter, gradient, first_moment, factor, rows, columns,
    parameter_stride, gradient_stride, moment_stride, sign, weight, decay,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    inside = column < columns
    # Once for all rows of the tile: this is what sharing the second moment saves.
    step = tl.load(factor + column, mask=inside, other=0.0)[None, :]
    share = tl.load(decay)
    for start in range(0, tile_rows, at_once):
        row = (tile * tile_rows + start + tl.arange(0, at_once))[:, None]
        here = (row < rows) & inside[None, :]
        p_at = parameter + row * parameter_stride + column[None, :]
        m_at = first_moment + row * moment_stride + column[None, :]
        g = tl.load(gradient + row * gradient_stride + column[None, :], mask=here, other=0.0)
        m = tl.load(m_at, mask=here, other=0.0).to(tl.float32)
        p = tl.load(p_at, mask=here, other=0.0).to(tl.float32)
        m += weight * (sign * g.to(tl.float32) - m)
        p += share * p + step * m
        tl.store(m_at, m.to(first_moment.dtype.element_ty), mask=here)
        tl.store(p_at, p.to(parameter.dtype.element_ty), mask=here)
