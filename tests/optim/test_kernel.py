"""The Triton kernels, on a GPU or in Triton's interpreter, against plain tensor arithmetic.

test_backends.py has whole steps with them.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
pytest.importorskip("triton", reason="Triton is not installed")

from coupled_adam.optim import kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter is slow: smaller tiles there.
ROWS, COLUMNS = (kernel._ROWS, kernel._COLUMNS) if DEVICE == "cuda" else (32, 16)
# Below, at and above the edges of tiles, and one column.
SHAPES = [(2, 1), (8, COLUMNS), (ROWS - 1, COLUMNS - 1), (ROWS + 1, COLUMNS + 1)]
SHAPES += [(3 * ROWS - 5, 2 * COLUMNS + 3)]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    monkeypatch.setattr(kernel, "_ROWS", ROWS)
    monkeypatch.setattr(kernel, "_COLUMNS", COLUMNS)


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
@pytest.mark.parametrize(("maximize", "decay"), [(False, -1e-3), (True, torch.tensor(-1e-3))])
def test_update(shape, dtype, padding, maximize, decay):
    parameter, gradient, moment = matrices(shape, dtype, padding)
    factor = -torch.rand(shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    g = gradient.double() * (-1 if maximize else 1)
    m = moment.double() + 0.1 * (g - moment.double())
    p = parameter.double() * (1 - 1e-3) + factor.double() * m
    kernel.update(parameter, gradient, moment, factor, weight=0.1, decay=decay, maximize=maximize)
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
