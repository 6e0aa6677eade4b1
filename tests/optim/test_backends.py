"""Every way through a coupled step gives the paper's result, and none is AdamW in disguise."""

from __future__ import annotations

import importlib
import os

import backends
import pytest
import torch
from backends import BACKENDS, SETTINGS, TOLERANCES, Trial, trials

from coupled_adam import CoupledAdamW
from coupled_adam.optim import compiler, coupled_adamw, native


@trials()
def test_the_coupled_step_agrees_with_the_oracle(trial):
    found, _ = trial.run(coupled=True)
    expected = backends.expected(trial.variant, trial.dtype, trial.shape, trial.steps)
    tolerance = TOLERANCES[trial.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@trials(shapes=[(12, 5)], dtypes=[torch.float32, torch.bfloat16])
def test_the_coupled_step_is_not_adamws(trial):
    """On no path may coupling be dropped without a word."""
    coupled, _ = trial.run(coupled=True, from_zero=True)
    as_is = Trial(BACKENDS["tensor operations"], trial.variant, trial.dtype, trial.shape)
    plain, _ = as_is.run(torch.optim.AdamW, from_zero=True)
    # The rarest token (last row): a full step each time under Adam, next to none when coupled.
    assert plain[-1].norm() > 100 * coupled[-1].norm()


@trials(module=True, shapes=[(12, 5)])
def test_the_backend_is_the_one_that_is_meant(trial, monkeypatch):
    used = []
    module = importlib.import_module(f"coupled_adam.optim.{trial.backend.module}")

    def noted(name):
        function = getattr(module, name)

        def call(*arguments, **options):
            used.append(name)
            return function(*arguments, **options)

        return call

    for name in ("sum_of_squares", "update"):
        monkeypatch.setattr(module, name, noted(name))
    _, optimizer = trial.run(coupled=True)
    assert used == ["sum_of_squares", "update"] * trial.steps
    (group,) = optimizer.param_groups
    assert group["params"][0]._version >= trial.steps  # or autograd would not notice the changes


@pytest.mark.parametrize("name", [n for n, b in BACKENDS.items() if b.wrap is BACKENDS["C"].wrap])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_run_gives_the_same_bits(name, dtype):
    backend = BACKENDS[name]
    if backend.missing():
        pytest.skip(backend.missing())
    trial = Trial(backend, "default", dtype, backend.shapes[-1])
    assert torch.equal(trial.run(coupled=True)[0], trial.run(coupled=True)[0])


# The sweeps in C


needs_compiler = pytest.mark.skipif(
    bool(BACKENDS["C"].missing()), reason=BACKENDS["C"].missing() or "there is one"
)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_show(dtype, monkeypatch):
    monkeypatch.setattr(native, "_WORTH_SHARING", 0)
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(20_000, 33, generator=generator).to(dtype) for _ in range(3)]
    factor, results = torch.rand(33, generator=generator), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            parameter, gradient, moment = (one.clone() for one in matrices)
            total = native.sum_of_squares(gradient)
            native.update(
                parameter, gradient, moment, factor, weight=0.1, decay=-0.01, maximize=False
            )
            results.append((total, parameter, moment))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    expected = matrices[1].double().square().sum(0)
    torch.testing.assert_close(results[0][0].double(), expected, rtol=1e-6, atol=0)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 300])
def test_rows_may_lie_apart_and_nothing_between_them_is_written(dtype, columns):
    wide = [torch.full((70, 301), float(n)).to(dtype) for n in (1, 2, 3)]
    parameter, gradient, moment = (one[3:64, :columns] for one in wide)
    torch.testing.assert_close(
        native.sum_of_squares(gradient), torch.full((columns,), 4.0 * 61), rtol=0, atol=0
    )
    factor = torch.full((columns,), -0.5)
    native.update(parameter, gradient, moment, factor, weight=0.5, decay=0.0, maximize=True)
    assert (moment == 0.5).all() and (parameter == 0.75).all() and (gradient == 2).all()
    for one, value in zip(wide, (1, 2, 3), strict=True):
        outside = one.clone()
        outside[3:64, :columns] = value
        assert (outside == value).all()


@needs_compiler
def test_bfloat16_is_rounded_as_by_torch():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(64, 1000, generator=generator) * torch.logspace(-40, 38, 1000)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0, -0.0, torch.inf, -torch.inf])
    numbers[0, :7], numbers[0, 7] = ties, torch.nan
    parameter = torch.zeros(64, 1000, dtype=torch.bfloat16)
    gradient, moment = numbers.bfloat16(), torch.zeros_like(parameter)
    native.update(
        parameter, gradient, moment, torch.full((1000,), 1 / 3), weight=1.0, decay=0.0,
        maximize=False,
    )  # fmt: skip
    third = torch.full((), 1 / 3)
    torch.testing.assert_close(
        parameter, (gradient.float() * third).bfloat16(), rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(moment, gradient, rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, True),
        (lambda x: x.bfloat16(), False),  # one of three
        (lambda x: x.T.contiguous().T, False),
        (lambda x: x.to_sparse(1), False),
        (lambda x: x.as_subclass(type("Wrapped", (torch.Tensor,), {})), False),
    ],
)
def test_what_fits(change, expected):
    matrices = [torch.ones(8, 4) for _ in range(3)]
    for place in range(3):
        changed = [change(one) if n == place else one for n, one in enumerate(matrices)]
        assert native.fits(*changed) == expected
    assert not native.fits(*(one.double() for one in matrices))
    assert native.fits(*(one.bfloat16() for one in matrices))


@pytest.mark.parametrize("asked", ["", "/nowhere/cc", "false"])
def test_without_a_working_compiler_the_step_is_made_of_tensor_operations(asked, monkeypatch):
    monkeypatch.setenv("CC", asked)
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    native._compiled.cache_clear()
    try:
        trial = Trial(BACKENDS["C"], "default", torch.float32, (12, 5))
        found, _ = trial.run(coupled=True)
        assert native._compiled(torch.float32)[0] is None
    finally:
        native._compiled.cache_clear()
    expected = backends.expected("default", torch.float32, (12, 5), trial.steps)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(native, "_WORTH_SHARING", 0)
    gradient = torch.ones(10_000, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        native.sum_of_squares(gradient)
        child = os.fork()
        if child == 0:
            import signal

            signal.alarm(20)  # with the parent's pool it would wait for ever
            right = native.sum_of_squares(gradient)[0] == 10_000
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


# Options that a backend cannot take


@pytest.mark.parametrize("option", ["capturable", "differentiable"])
def test_sparse_gradients_are_refused_where_a_step_has_to_be_the_same_each_time(option):
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = CoupledAdamW([parameter], coupled=True, weight_decay=0.0, **{option: True})
    parameter.grad = torch.ones(4, 3).to_sparse(1)
    with pytest.raises(RuntimeError, match=f"sparse gradient, and {option}=True"):
        optimizer.step()
    assert torch.equal(parameter, torch.ones(4, 3))


def test_a_captured_step_reads_neither_step_count_nor_learning_rate():
    """What changes from step to step stays in tensors, or a graph would repeat the first values."""
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    parameter.grad = torch.ones(4, 3)
    lr = torch.tensor(1e-2)
    optimizer = CoupledAdamW([parameter], lr=lr, coupled=True, capturable=True)
    optimizer.step()

    class NoNumbers(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(function), "a captured step asked for a number"
            return function(*args, **(kwargs or {}))

    with NoNumbers():
        optimizer.step()


def test_the_step_count_of_a_coupled_matrix_is_where_it_is_read():
    """Torch would bring it to the device of the parameter for ``fused=True``."""
    for options, on_device in (({"fused": True}, False), ({"capturable": True}, True)):
        group = {**SETTINGS, "capturable": False, "fused": None, "coupled": True, **options}
        assert coupled_adamw.counts_on_device(group) is on_device


# Derivatives of a step


@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.1}], ids=str
)
def test_a_differentiable_step_has_the_right_derivatives(options):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    lr = torch.tensor(0.1, dtype=torch.float64)

    def after_three_steps(start, lr, *gradients):
        parameter = start.clone()  # not a leaf, as the weights of an inner loop are none
        options_here = {"lr": lr, "coupled": True, "differentiable": True, **options}
        optimizer = CoupledAdamW([parameter], **options_here)
        for gradient in gradients:
            parameter.grad = gradient
            optimizer.step()
        return parameter

    inputs = [one.requires_grad_() for one in (start, lr, *gradients)]
    assert torch.autograd.gradcheck(after_three_steps, inputs)


def test_a_differentiable_step_agrees_with_the_oracle():
    for variant in ("default", "amsgrad", "maximize"):
        trial = Trial(BACKENDS["by default"], variant, torch.float64, (12, 5))
        start, gradients = backends.inputs(torch.float64, (12, 5), trial.steps)
        parameter = start.clone().requires_grad_().clone()
        options = {**trial.options(), "coupled": True, "differentiable": True}
        optimizer = CoupledAdamW([parameter], **options)
        for gradient in gradients:
            parameter.grad = gradient
            optimizer.step()
        expected = backends.expected(variant, torch.float64, (12, 5), trial.steps)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-12)
