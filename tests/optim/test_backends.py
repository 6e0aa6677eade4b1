"""Every way through a coupled step gives the paper's result, and none is AdamW in disguise."""

from __future__ import annotations

import importlib

import backends
import pytest
import torch
from backends import BACKENDS, SETTINGS, TOLERANCES, Trial, trials

from coupled_adam import CoupledAdamW
from coupled_adam.optim import coupled_adamw


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
