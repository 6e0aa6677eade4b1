"""The Triton kernels, on a GPU or in Triton's interpreter, against plain tensor arithmetic."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
pytest.importorskip("triton", reason="Triton is not installed")

from coupled_adam import CoupledAdamW
from coupled_adam.optim import coupled_adamw, kernel
from coupled_adam.optim.reference import coupled_adamw_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Below, at and above the edges of tiles, and one column.
SHAPES = [(2, 1), (8, 128), (255, 127), (257, 129), (600, 300)]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def matrices(shape, dtype=torch.float32, padding=0):
    """Parameter, gradient and first moment; with padding, rows lie apart in memory."""
    generator = torch.Generator().manual_seed(0)
    wide = (shape[0], shape[1] + padding)
    made = [torch.randn(wide, generator=generator).to(DEVICE, dtype) for _ in range(3)]
    return [one[:, : shape[1]] for one in made]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [0, 3])
def test_sum_of_squares(shape, dtype, padding):
    _, gradient, _ = matrices(shape, dtype, padding)
    expected = gradient.double().square().sum(0)
    found = kernel.sum_of_squares(gradient)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)
    assert torch.equal(found, kernel.sum_of_squares(gradient))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("maximize", [False, True])
def test_update(shape, dtype, padding, maximize):
    parameter, gradient, moment = matrices(shape, dtype, padding)
    factor = -torch.rand(shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    g = gradient.double() * (-1 if maximize else 1)
    m = moment.double() + 0.1 * (g - moment.double())
    p = parameter.double() * (1 - 1e-3) + factor.double() * m
    kernel.update(parameter, gradient, moment, factor, weight=0.1, decay=-1e-3, maximize=maximize)
    close = {"rtol": ROUNDING[dtype], "atol": ROUNDING[dtype]}
    torch.testing.assert_close(moment.double(), m, **close)
    torch.testing.assert_close(parameter.double(), p, **close)


def test_nothing_beside_the_matrix_is_written():
    whole = torch.ones(300, 140, device=DEVICE)
    view = whole[10:290, 3:133]
    gradient, moment = torch.ones_like(view), torch.zeros(280, 130, device=DEVICE)
    factor = torch.full((130,), -0.5, device=DEVICE)
    kernel.update(view, gradient, moment, factor, weight=1.0, decay=0.0, maximize=False)
    expected = torch.ones(300, 140, device=DEVICE)
    expected[10:290, 3:133] = 0.5
    assert torch.equal(whole, expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, True),
        (lambda x: x.bfloat16(), True),
        (lambda x: x.double(), False),
        (lambda x: x.T.contiguous().T, False),
        (lambda x: x.to_sparse(1), False),
    ],
)
def test_what_fits(change, expected):
    one, *others = matrices((8, 4))
    assert kernel.fits(change(one), *others) == expected
    assert kernel.fits(*others, change(one)) == expected


@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.1}], ids=str
)
def test_the_optimizer_with_kernels_agrees_with_the_oracle(options, monkeypatch):
    used = []

    def kernel_for(weight, gradient, first_moment):
        used.append(kernel.fits(weight, gradient, first_moment))
        return kernel

    monkeypatch.setattr(coupled_adamw, "_kernel_for", kernel_for)
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -4, 12)[:, None]
    gradients = scale * torch.randn(40, 12, 5, generator=generator)
    start = 0.1 * torch.randn(12, 5, generator=generator)
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.0, **options}
    parameter = torch.nn.Parameter(start.to(DEVICE, copy=True))
    optimizer = CoupledAdamW([parameter], coupled=True, fused=True, **options)
    for gradient in gradients:
        parameter.grad = gradient.to(DEVICE)
        version = parameter._version
        optimizer.step()
        assert parameter._version > version  # or autograd would not notice the change
    assert used == [True] * 40
    expected = coupled_adamw_reference(
        start.double().tolist(), gradients.double().tolist(), **options
    )
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(parameter.detach().cpu().double(), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu_fused_takes_the_kernels():
    weight, gradient, moment = matrices((8, 4))
    assert coupled_adamw._kernel_for(weight, gradient, moment) is kernel
