"""Which tensors raw pointers may be taken of: for C, for Triton, for torch's fused step.

A pointer knows neither shape nor device. A step that walks a matrix by the shape of another one
writes into foreign memory, without an error: torch's own fused AdamW does so when a vocabulary grew
under it, and when a parameter is a part of a wider matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def rows_lie_alike(*matrices: Tensor) -> bool:
    """Whether matrices of one shape lie on one device, each with whole rows of numbers in a row.

    Rows may lie apart. Types are for the caller to compare.
    """
    shape, device = matrices[0].shape, matrices[0].device
    return all(
        _is_plain(one)
        and one.dim() == 2
        and one.shape == shape
        and one.device == device
        and one.stride(1) == 1
        and (one.shape[0] < 2 or one.stride(0) >= one.shape[1])
        for one in matrices
    )


def elements_lie_alike(*tensors: Tensor) -> bool:
    """Whether tensors can be walked element by element, in the order of the first one's memory.

    That is what torch's fused step does: one shape and order, and no gaps. That they are of one
    type and on one device it sees to itself; a subclass answers for what is done to it.
    """
    shape = tensors[0].shape
    if any(type(one) not in _PLAIN for one in tensors):
        return True
    if not all(_is_plain(one) and one.shape == shape for one in tensors):
        return False
    if all(one.is_contiguous() for one in tensors):
        return True
    stride = tensors[0].stride()
    return _has_no_gaps(tensors[0]) and all(one.stride() == stride for one in tensors)


def check(*tensors: Tensor) -> None:
    """Refuse tensors whose memory is not there; torch's operations would read past its end too.

    Raises:
        RuntimeError: if a tensor's storage is smaller than its shape says.
    """
    for one in tensors:
        if _is_plain(one) and not _is_there(one):
            raise RuntimeError(
                f"a parameter, gradient or moment of shape {tuple(one.shape)} has a storage of "
                f"{one.untyped_storage().nbytes()} bytes, which is too small for it: its memory "
                "was freed or cut down (untyped_storage().resize_); restore it before the step"
            )


def _is_plain(tensor: Tensor) -> bool:
    # A subclass may have no memory of its own (FakeTensor) or only a part of it (DTensor), and a
    # view such as x.conj().imag holds its numbers with the opposite sign.
    return type(tensor) in _PLAIN and tensor.layout == torch.strided and not tensor.is_neg()


def _is_there(tensor: Tensor) -> bool:
    there = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
    if tensor.is_contiguous():
        return tensor.nbytes <= there or tensor.nbytes == 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return tensor.numel() == 0 or (last + 1) * tensor.element_size() <= there


def _has_no_gaps(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
