"""The Triton kernels, on a GPU or in Triton's interpreter, against plain tensor arithmetic.

test_backends.py has whole steps with them.
"""

import os
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

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
        (lambda x: x.T.contiguous().T, False),  # one of three
        (lambda x: x.to_sparse(1), False),
        (lambda x: x[:7], False),
        (lambda x: x[:, :3], False),
        (lambda x: x.flatten(), False),
        (lambda x: x.to("meta"), False),
        (lambda x: x[:1].expand(8, 4), False),
        (lambda x: torch.complex(x, x).conj().imag, False),
        (lambda x: x.as_subclass(type("Wrapped", (torch.Tensor,), {})), False),
    ],
)
def test_what_fits(change, expected):
    one, *others = matrices((8, 4))
    assert kernel.fits(change(one), *others) == expected
    assert kernel.fits(*others, change(one)) == expected


def test_matrices_that_all_lie_transposed_fit():
    assert kernel.fits(*(one.T.contiguous().T for one in matrices((8, 4))))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "change",
    [lambda x: x[:30], lambda x: x[:, :4], lambda x: x.to("meta")],
    ids=["fewer rows", "fewer columns", "another device"],
)
def test_no_pointer_is_handed_out_for_matrices_that_differ(place, change):
    given = [change(one) if n == place else one for n, one in enumerate(matrices((40, 5)))]
    kept = [one.clone() for one in given]
    factor = torch.ones(5, device=DEVICE)
    with pytest.raises(ValueError, match="one shape on one device"):
        kernel.update(*given, factor, weight=0.1, decay=0.0, maximize=False)
    assert all(
        torch.equal(a, b) for a, b in zip(given, kept, strict=True) if a.device.type != "meta"
    )


@pytest.mark.parametrize("columns", [1, 4, 6])
def test_a_factor_of_another_width_is_refused(columns):
    with pytest.raises(ValueError, match="one number for each of 5 columns"):
        kernel.update(
            *matrices((8, 5)), torch.ones(columns, device=DEVICE), weight=0.1, decay=0.0,
            maximize=False,
        )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_transposed_matrix_is_stepped_alike(shape):
    parameter, gradient, moment = matrices(shape)
    lying = [one.T.contiguous().T for one in (parameter, gradient, moment)]
    sums = kernel.sum_of_squares(gradient)
    torch.testing.assert_close(kernel.sum_of_squares(lying[1]), sums, rtol=2e-6, atol=0)
    factor = -torch.rand(shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for given in ((parameter, gradient, moment), lying):
        kernel.update(*given, factor, weight=0.1, decay=-1e-3, maximize=False)
    assert torch.equal(parameter, lying[0]) and torch.equal(moment, lying[2])


def test_kernels_are_launched_on_the_device_of_the_matrices(monkeypatch):
    """With the model on one GPU while another is current, Triton would launch on the other."""
    launches, current = [], []

    @contextmanager
    def on_device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    class Launched:
        def __getitem__(self, grid):
            return lambda *arguments: launches.append((current[-1], arguments[0]))

    monkeypatch.setattr(kernel, "_on_device_of", on_device_of)
    for name in ("_sum_of_squares", "_update"):
        monkeypatch.setattr(kernel, name, Launched())
    parameter, gradient, moment = matrices((8, 5))
    kernel.sum_of_squares(gradient)
    factor = torch.ones(5, device=DEVICE)
    kernel.update(parameter, gradient, moment, factor, weight=0.1, decay=0.0, maximize=False)
    assert [device_of is first for device_of, first in launches] == [True, True]
    assert not current


def test_the_device_of_a_tensor_is_made_the_current_one(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(entered.append(device)))
    second = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))
    with kernel._on_device_of(second):
        assert entered == [torch.device("cuda", 1)]
    with kernel._on_device_of(torch.zeros(1)):
        assert len(entered) == 1
