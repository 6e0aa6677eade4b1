"""The ways through a coupled step, and what each is tried with: tests are made from these tables.

A new backend is an entry of BACKENDS; a new option one of VARIANTS.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from coupled_adam import CoupledAdamW
from coupled_adam.optim import coupled_adamw, native, openmp
from coupled_adam.optim.reference import coupled_adamw_reference

# Options that change what a step computes, on top of these.
SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 1e-2}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no weight decay": {"weight_decay": 0.0},
    "paper's betas": {"betas": (0.9, 0.95)},
    "large eps": {"eps": 1e-3},
    "eps of recent recipes": {"eps": 1e-10},
    "beta1 = 0": {"betas": (0.0, 0.99)},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "tensor lr": {"lr": torch.tensor(1e-2)},
}
# The smallest there is; a few; more than a block of rows, an odd width; more than a tile of rows.
SHAPES = [(2, 1), (12, 5), (1025, 19), (4099, 3)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Largest difference to the oracle, of weights of 0.1 after steps of 0.01 each. A first moment and
# a weight of 8 or 11 bits are rounded at every step.
TOLERANCES = {
    torch.float32: 1e-6,
    torch.float64: 1e-12,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-3,
}


@dataclass(frozen=True)
class Backend:
    """One way through the step.

    Attributes:
        options: that choose it, for the constructor.
        device: where the matrices are.
        dtypes: types that it steps; others go another way.
        variants: names of VARIANTS to try it with; None for all.
        shapes: to try it with.
        steps: at most so many.
        slow: every type is tried with the usual options, and every option with the first type. All
            pairs are tried elsewhere: of the lines that are traced as "tensor operations", of the
            kernels in test_kernel.py.
        wrap: what is called in place of ``optimizer.step``, given that.
        using: while it is used.
        missing: why it cannot be used on this machine; empty if it can.
        module: of ``coupled_adam.optim`` whose sweeps it takes; empty for PyTorch's operations.
    """

    options: dict[str, Any]
    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = tuple(DTYPES)
    variants: tuple[str, ...] | None = None
    shapes: tuple[tuple[int, int], ...] = tuple(SHAPES)
    steps: int = 100
    slow: bool = False
    wrap: Callable[[Callable[[], Any]], Callable[[], Any]] = lambda step: step
    using: Callable[[], AbstractContextManager[Any]] = nullcontext
    missing: Callable[[], str] = lambda: ""
    module: str = ""


def _no_gpu() -> str:
    return "" if torch.cuda.is_available() else "no CUDA device on this machine"


def _no_compiler() -> str:
    return native.unavailable(torch.float32)


def _no_triton() -> str:
    return "" if coupled_adamw._has_triton() else "Triton is not installed"


@contextmanager
def several_threads(*, team: bool) -> Iterator[None]:
    """The sweeps in C on more threads than one, in PyTorch's team or in threads of their own."""
    found = openmp.team() if team else (None, "as a test asks")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with (
            mock.patch.object(native, "_WORTH_SHARING", 0),
            mock.patch.object(openmp, "team", lambda: found),
        ):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interpreted(kernel: ModuleType | None = None) -> Iterator[None]:
    """Triton's kernels on a CPU, in tiles so small that a matrix of test size has several."""
    if kernel is None:
        from coupled_adam.optim import kernel

    def kernel_for(group: dict[str, Any], *matrices: torch.Tensor) -> Any:
        return kernel if kernel.fits(*matrices) else None

    with (
        mock.patch.object(coupled_adamw, "_kernel_for", kernel_for),
        mock.patch.multiple(kernel, _ROWS=16, _COLUMNS=16),
    ):
        yield


def graphed(step: Callable[[], Any]) -> Callable[[], Any]:
    """The first step as it is, which makes the state; the others from a CUDA graph."""
    graph: list[torch.cuda.CUDAGraph] = []
    taken = 0

    def call() -> None:
        nonlocal taken
        taken += 1
        if taken == 1:
            step()
            return
        if not graph:
            graph.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graph[0]):
                step()
        graph[0].replay()

    return call


KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS: dict[str, Backend] = {
    "tensor operations": Backend({"fused": False}),
    "by default": Backend({}),
    "C": Backend(
        {"fused": True},
        dtypes=(torch.float32, torch.bfloat16),
        missing=_no_compiler,
        module="native",
    ),
    "C, in PyTorch's team": Backend(
        {"fused": True},
        dtypes=(torch.float32, torch.bfloat16),
        variants=("default",),
        shapes=((12, 5), (4099, 3)),
        steps=20,
        using=functools.partial(several_threads, team=True),
        missing=lambda: _no_compiler() or openmp.team()[1],
        module="native",
    ),
    "C, own threads": Backend(
        {"fused": True},
        dtypes=(torch.float32, torch.bfloat16),
        variants=("default",),
        shapes=((12, 5), (4099, 3)),
        steps=20,
        using=functools.partial(several_threads, team=False),
        missing=_no_compiler,
        module="native",
    ),
    "Triton, interpreted": Backend(
        {"fused": True},
        dtypes=KERNEL_TYPES,
        shapes=((2, 1), (12, 5), (40, 35)),
        steps=20,
        slow=True,
        using=interpreted,
        missing=lambda: _no_triton() or ("" if _no_gpu() else "a GPU is at hand"),
        module="kernel",
    ),
    "capturable": Backend({"capturable": True}),
    # Tracing and compiling take their time for each of them.
    "traced": Backend(
        {},
        dtypes=(torch.float32, torch.float64, torch.bfloat16),
        variants=("default", "amsgrad", "maximize", "tensor lr"),
        shapes=((12, 5),),
        steps=5,
        slow=True,
        wrap=lambda step: torch.compile(step, backend="eager"),
    ),
    "compiled": Backend(
        {"fused": True},
        dtypes=(torch.float32,),
        variants=("default", "amsgrad"),
        shapes=((12, 5),),
        steps=10,
        wrap=torch.compile,
        missing=_no_compiler,
    ),
    "GPU, tensor operations": Backend({"fused": False}, device="cuda", missing=_no_gpu),
    "GPU": Backend({}, device="cuda", dtypes=KERNEL_TYPES, missing=_no_gpu, module="kernel"),
    "GPU, fused": Backend(
        {"fused": True}, device="cuda", dtypes=KERNEL_TYPES, missing=_no_gpu, module="kernel"
    ),
    "GPU, graph": Backend({"capturable": True}, device="cuda", wrap=graphed, missing=_no_gpu),
    "GPU, compiled": Backend(
        {"capturable": True},
        device="cuda",
        dtypes=(torch.float32,),
        shapes=((12, 5),),
        steps=10,
        wrap=torch.compile,
        missing=_no_gpu,
    ),
}


@dataclass(frozen=True)
class Trial:
    """A backend with options, a type and a shape."""

    backend: Backend
    variant: str
    dtype: torch.dtype
    shape: tuple[int, int]

    @property
    def steps(self) -> int:
        # The oracle is made of plain loops, and half precision gathers rounding errors.
        most = 10 if self.dtype in (torch.bfloat16, torch.float16) else self.backend.steps
        return max(2, min(most, 20_000 // (self.shape[0] * self.shape[1])))

    def options(self) -> dict[str, Any]:
        options = {**SETTINGS, **VARIANTS[self.variant], **self.backend.options}
        if isinstance(options["lr"], torch.Tensor) and self.backend.options.get("capturable"):
            options["lr"] = options["lr"].to(self.backend.device)
        return options

    def run(
        self,
        optimizer_class: type[torch.optim.Optimizer] = CoupledAdamW,
        *,
        from_zero: bool = False,
        transposed: bool = False,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.optim.Optimizer]:
        """The matrix after all steps, on the CPU, and the optimizer.

        With ``transposed`` the matrix is stored as [width, tokens]; what is returned is not.
        """
        start, gradients = inputs(self.dtype, self.shape, self.steps)
        if from_zero:
            start = torch.zeros_like(start)
        if transposed:
            start, gradients = start.T.contiguous(), gradients.mT
            options["vocabulary_dim"] = 1
        parameter = torch.nn.Parameter(start.to(self.backend.device, copy=True))
        # One tensor, as a captured step reads its gradient from one place.
        parameter.grad = torch.empty_like(parameter)
        optimizer = optimizer_class([parameter], **{**self.options(), **options})
        with self.backend.using():
            torch._dynamo.reset()
            step = self.backend.wrap(optimizer.step)
            for gradient in gradients:
                parameter.grad.copy_(gradient)
                step()
        end = parameter.detach().cpu()
        return end.T if transposed else end, optimizer


def trials(
    *,
    shapes: list[tuple[int, int]] = SHAPES,
    dtypes: list[torch.dtype] = DTYPES,
    module: bool = False,
) -> Any:
    """Parametrise a test with the trials of these shapes and types; of backends with a module."""
    made = [
        pytest.param(
            Trial(backend, variant, dtype, shape),
            id=f"{name}, {variant}, {str(dtype).removeprefix('torch.')}, {shape[0]} x {shape[1]}",
            marks=pytest.mark.skipif(bool(backend.missing()), reason=backend.missing()),
        )
        for name, backend in BACKENDS.items()
        for variant in backend.variants or VARIANTS
        for dtype in backend.dtypes
        for shape in backend.shapes
        if (shapes is SHAPES or shape in shapes) and dtype in dtypes
        if backend.module or not module
        # Every option at the usual size, every size with the usual options.
        if shape == (12, 5) or variant == "default"
        if not backend.slow or variant == "default" or dtype == backend.dtypes[0]
    ]
    return pytest.mark.parametrize("trial", made)


@functools.cache
def inputs(
    dtype: torch.dtype, shape: tuple[int, int], steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A start and gradients of tokens of very different frequency, as the optimizer sees them."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -4, shape[0], dtype=torch.float64)[:, None]
    gradients = torch.randn(steps, *shape, generator=generator, dtype=torch.float64) * scale
    # Of the size of embeddings; float32 could not hold 1e-6 over 100 steps of larger ones.
    start = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return start.to(dtype), gradients.to(dtype)


@functools.cache
def expected(variant: str, dtype: torch.dtype, shape: tuple[int, int], steps: int) -> torch.Tensor:
    """What the oracle makes of the same inputs."""
    start, gradients = inputs(dtype, shape, steps)
    options = {**SETTINGS, **VARIANTS[variant]}
    options["lr"] = float(options["lr"])
    end = coupled_adamw_reference(start.tolist(), gradients.tolist(), **options)
    return torch.tensor(end, dtype=torch.float64)
