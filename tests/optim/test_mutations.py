"""The tests' own test: each line that matters, once broken, is noticed.

The optimizer's source is changed in one place, executed as a module of its own, and put through a
few quick checks; at least one of them has to fail.
"""

import inspect
import sys
import types

import pytest
import torch

from coupled_adam.optim import coupled_adamw
from coupled_adam.optim.reference import coupled_adamw_reference

SOURCE = inspect.getsource(coupled_adamw)
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}

MUTATIONS = {
    "not coupled at all": (
        "self._coupled_by_default = coupled",
        "self._coupled_by_default = False",
    ),
    "coupled groups stepped as plain ones": (
        'if not group["coupled"]:\n                self._plain_step(group)',
        "if True:\n                self._plain_step(group)",
    ),
    "sum instead of mean": ("swept.sums.mean()", "swept.sums.total"),
    "mean over the wrong number of rows": (
        "sums = sharding.ColumnSums(total, held.shape[0], groups)\n",
        "sums = sharding.ColumnSums(total, held.shape[1], groups)\n",
    ),
    "gradient not squared": (".addcmul_(block, block)", ".add_(block.abs())"),
    "one mean for all columns": ("return total.sum(0)\n", "return total.sum(0).mean()\n"),
    "first block of rows only summed": (
        "gradient.split(_ROWS_AT_ONCE):",
        "gradient.split(_ROWS_AT_ONCE)[:1]:",
    ),
    "no bias correction of the second moment": (
        "(second_moment / (1 - beta2**step)).sqrt_()",
        "second_moment.sqrt()",
    ),
    "no bias correction of the first moment": ("size = -lr / (1 - beta1**step)", "size = -lr"),
    "step not counted": ('        state["step"] += 1\n        step =', "        step = 1 +"),
    "betas exchanged": (
        "second_moment.lerp_(swept.sums.mean(), 1 - beta2)",
        "second_moment.lerp_(swept.sums.mean(), 1 - beta1)",
    ),
    "epsilon inside the root": (
        '.sqrt_().add_(group["eps"])\n',
        '.add_(group["eps"]).sqrt_()\n',
    ),
    "no weight decay": ("if weight_decay != 0:", "if False:"),
    "weight decay of the wrong sign": ("alpha=-lr * weight_decay)", "alpha=lr * weight_decay)"),
    "maximize ignored": ('g = -g if group["maximize"] else g\n', "pass\n"),
    "first block of rows only updated": (
        "in zip(*blocks, strict=True):",
        "in list(zip(*blocks, strict=True))[:1]:",
    ),
    "amsgrad ignored": (
        "            second_moment = largest\n        denominator",
        "            pass\n        denominator",
    ),
    "first moment of absent rows lost": ("first_moment[swept.rows] = touched", "pass"),
    "sparse gradient made dense": (
        "weight[swept.rows] = moved",
        "weight.addcdiv_(first_moment, denominator, value=size)",
    ),
    "checkpoint's second moment not converted": (
        'if key in source and (group["coupled"]',
        'if False and (group["coupled"]',
    ),
    "shared moment in the parameter's precision": (
        "sharding.column_zeros(parameter, state_dtype(parameter))",
        "sharding.column_zeros(parameter, parameter.dtype)",
    ),
}


def gradients(steps, rows, columns=3):
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -3, rows, dtype=torch.float64)[:, None]
    return scale * torch.randn(steps, rows, columns, generator=generator, dtype=torch.float64)


def run(optimizer_class, all_gradients, dtype=torch.float64, **options):
    parameter = torch.nn.Parameter(torch.ones(all_gradients.shape[1:], dtype=dtype))
    optimizer = optimizer_class([parameter], coupled=True, **{**OPTIONS, **options})
    for gradient in all_gradients:
        parameter.grad = gradient.to(dtype)
        optimizer.step()
    return parameter.detach(), optimizer


def agrees_with_the_oracle(optimizer_class):
    steps = gradients(12, 5)
    for options in ({}, {"amsgrad": True, "betas": (0.9, 0.5)}, {"maximize": True}, {"eps": 0.1}):
        found, _ = run(optimizer_class, steps, **options)
        start = torch.ones(5, 3).tolist()
        expected = coupled_adamw_reference(start, steps.tolist(), **{**OPTIONS, **options})
        assert (found - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-12


def means_over_all_rows(optimizer_class):
    steps = gradients(1, 2500)
    found, optimizer = run(optimizer_class, steps, betas=(0.9, 0.0))
    assert (found[-1] != found[-2]).all()
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state["exp_avg_sq"], steps[0].square().mean(0))


def waits_for_absent_rows(optimizer_class):
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = optimizer_class([parameter], coupled=True, **{**OPTIONS, "weight_decay": 0.0})
    seen = []
    for row in (1, 2):
        values = torch.ones(1, 3)
        parameter.grad = torch.sparse_coo_tensor(
            torch.tensor([[row]]), values, (4, 3), check_invariants=True
        )
        optimizer.step()
        seen.append(parameter.detach()[1].clone())
    assert torch.equal(*seen) and (seen[0] < 1).all()
    (state,) = optimizer.state.values()
    assert (state["exp_avg"][[1, 2]] > 0).all()


def takes_over_from_adamw(optimizer_class):
    parameter = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    old = torch.optim.AdamW([parameter])
    parameter.grad = torch.arange(12.0).reshape(4, 3).bfloat16()
    old.step()
    new = optimizer_class([parameter], coupled=True)
    new.load_state_dict(old.state_dict())
    expected = old.state[parameter]["exp_avg_sq"].float().mean(0)
    assert torch.equal(new.state[parameter]["exp_avg_sq"], expected)


def keeps_its_precision(optimizer_class):
    _, optimizer = run(optimizer_class, gradients(2, 5), torch.bfloat16)
    (state,) = optimizer.state.values()
    assert state["exp_avg_sq"].dtype == torch.float32


CHECKS = (
    agrees_with_the_oracle,
    means_over_all_rows,
    waits_for_absent_rows,
    takes_over_from_adamw,
    keeps_its_precision,
)


def optimizer_from(source):
    module = types.ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    try:
        exec(compile(source, "mutant", "exec"), module.__dict__)
    finally:
        del sys.modules["mutant"]
    return module.CoupledAdamW


def failing(optimizer_class):
    failed = []
    for check in CHECKS:
        try:
            check(optimizer_class)
        except Exception:
            failed.append(check.__name__)
    return failed


def test_the_optimizer_as_it_is_passes_every_check():
    assert failing(optimizer_from(SOURCE)) == []


@pytest.mark.parametrize(("old", "new"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_line_is_noticed(old, new):
    assert SOURCE.count(old) == 1, "the line has changed: adapt the mutation"
    assert failing(optimizer_from(SOURCE.replace(old, new)))
