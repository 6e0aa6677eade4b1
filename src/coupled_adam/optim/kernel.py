"""The coupled step on a GPU in two sweeps, with Triton.

The first sweep reads the gradient and leaves the sum of its squares over each tile of rows; the
tiles are then added in a fixed order, so that a run repeats bit for bit. The second sweep reads
gradient, first moment and parameter, and writes the latter two. That is six passes over a matrix,
against seven of a fused AdamW. Importing this module needs Triton.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from coupled_adam.optim import memory

# Rows and columns of a tile, and rows of it that are loaded at once; in a matrix that lies
# transposed, the last two are exchanged.
_ROWS, _COLUMNS, _AT_ONCE = 256, 128, 8
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(parameter: Tensor, gradient: Tensor, first_moment: Tensor) -> bool:
    """Whether the kernels can step these: dense matrices of at most 32 bits.

    They have to be of one shape, on one device, and to lie alike, with whole rows or, as of a head
    that is stored as [width, tokens], with whole columns.
    """
    return _lie_alike(parameter, gradient, first_moment)


def sum_of_squares(gradient: Tensor) -> Tensor:
    """The sum over the rows of the squared gradient.

    Args:
        gradient: shape [V, H], as ``fits`` asks.

    Returns:
        float32, shape [H]; the same bits for the same gradient.

    Raises:
        ValueError: if the gradient is not as ``fits`` asks.
    """
    _check(gradient)
    rows, columns = gradient.shape
    tile = _tile(gradient)
    tiles = -(-rows // tile[0])
    partial = torch.empty(tiles, columns, dtype=torch.float32, device=gradient.device)
    grid = (tiles, -(-columns // tile[1]))
    with _on_device_of(gradient):
        _sum_of_squares[grid](gradient, partial, rows, columns, *gradient.stride(), *tile)
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

    Raises:
        ValueError: if the matrices are not as ``fits`` asks, or the factor is not one number for
            each column on their device; then nothing was written.
    """
    _check(parameter, gradient, first_moment)
    rows, columns = parameter.shape
    if factor.shape != (columns,) or factor.device != parameter.device:
        raise ValueError(
            f"the factor has shape {tuple(factor.shape)} and is on {factor.device}; it has to have "
            f"one number for each of {columns} columns, on {parameter.device}"
        )
    if not isinstance(decay, Tensor):
        decay = torch.full((), decay, dtype=torch.float32, device=parameter.device)
    tile = _tile(parameter)
    grid = (-(-rows // tile[0]), -(-columns // tile[1]))
    with _on_device_of(parameter):
        _update[grid](
            parameter,
            gradient,
            first_moment,
            factor.contiguous(),
            rows,
            columns,
            *parameter.stride(),
            *gradient.stride(),
            *first_moment.stride(),
            -1.0 if maximize else 1.0,
            weight,
            decay.to(parameter.device, torch.float32),
            *tile,
        )


def _lie_alike(*matrices: Tensor) -> bool:
    plain = (torch.strided, 2)
    return all(one.dtype in _DTYPES and (one.layout, one.dim()) == plain for one in matrices) and (
        memory.rows_lie_alike(*matrices) or memory.rows_lie_alike(*(one.mT for one in matrices))
    )


def _check(*matrices: Tensor) -> None:
    # What is handed out below are pointers: a step of a vocabulary that had grown under its
    # optimizer wrote into foreign memory.
    if not _lie_alike(*matrices):
        raise ValueError(
            "the kernels step dense matrices of one shape on one device that lie alike, of "
            f"{', '.join(map(str, _DTYPES))}, and got "
            + "; ".join(
                f"shape {tuple(one.shape)} on {one.device}, {one.dtype}, {type(one).__name__}"
                for one in matrices
            )
        )


def _tile(matrix: Tensor) -> tuple[int, int, int]:
    """Rows and columns of a tile, and rows that are loaded at once: long side along memory."""
    if matrix.stride(1) == 1:
        return _ROWS, _COLUMNS, _AT_ONCE
    return _ROWS, _AT_ONCE, _COLUMNS


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    # Triton launches on the current device, whichever holds the tensors: with a model on the second
    # GPU and the first one current, it would be given pointers that are none there.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def _sum_of_squares(
    gradient, partial, rows, columns, row_stride, column_stride,
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
        at = row[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
        g = tl.load(gradient + at, mask=here, other=0.0).to(tl.float32)
        total += tl.sum(g * g, axis=0)
    tl.store(partial + tile * columns + column, total, mask=inside)


@triton.jit
def _update(
    parameter, gradient, first_moment, factor, rows, columns,
    parameter_row, parameter_column, gradient_row, gradient_column, moment_row, moment_column,
    sign, weight, decay,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    inside = column < columns
    # Once for all rows of the tile: this is what sharing the second moment saves.
    step = tl.load(factor + column, mask=inside, other=0.0)[None, :]
    share = tl.load(decay)
    across = column.to(tl.int64)[None, :]
    for start in range(0, tile_rows, at_once):
        row = (tile * tile_rows + start + tl.arange(0, at_once))[:, None]
        here = (row < rows) & inside[None, :]
        p_at = parameter + row * parameter_row + across * parameter_column
        m_at = first_moment + row * moment_row + across * moment_column
        g_at = gradient + row * gradient_row + across * gradient_column
        g = tl.load(g_at, mask=here, other=0.0)
        m = tl.load(m_at, mask=here, other=0.0).to(tl.float32)
        p = tl.load(p_at, mask=here, other=0.0).to(tl.float32)
        m += weight * (sign * g.to(tl.float32) - m)
        p += share * p + step * m
        tl.store(m_at, m.to(first_moment.dtype.element_ty), mask=here)
        tl.store(p_at, p.to(parameter.dtype.element_ty), mask=here)
