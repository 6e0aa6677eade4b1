"""The tests' own test: each line that matters, once broken, is noticed.

The source of the optimizer, of its C or of its Triton kernels is changed in one place, executed as
a module of its own, and put through a few quick checks; at least one of them has to fail. What is
broken between processes is in sharded_runs.py.
"""

import importlib.util
import inspect
import sys
import types
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from backends import BACKENDS, interpreted

from coupled_adam import CoupledAdamW
from coupled_adam.optim import coupled_adamw, native
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
    "sum instead of mean": (
        "second_moment.lerp_(swept.sums.mean(),",
        "second_moment.lerp_(swept.sums.total,",
    ),
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
        "corrected = second_moment / _bias_correction(beta2, number)",
        "corrected = second_moment",
    ),
    "no bias correction of the first moment": ("(-lr / _bias_correction(beta1, number))", "-lr"),
    "bias correction of the wrong sign in a graph": ("return -torch.expm1(", "return torch.expm1("),
    "step not counted": (
        '        state["step"] += 1\n        first_moment, second_moment',
        "        first_moment, second_moment",
    ),
    "betas exchanged": (
        "second_moment.lerp_(swept.sums.mean(), 1 - beta2)",
        "second_moment.lerp_(swept.sums.mean(), 1 - beta1)",
    ),
    "epsilon inside the root": (
        'corrected.sqrt() + group["eps"]',
        '(corrected + group["eps"]).sqrt()',
    ),
    "no weight decay": ("elif decay != 0:", "elif False:"),
    "weight decay of the wrong sign": (
        "return factor, -lr * weight_decay if",
        "return factor, lr * weight_decay if",
    ),
    "maximize ignored": ("g = -g if maximize else g\n", "pass\n"),
    "first block of rows only updated": (
        "in zip(*blocks, strict=True):",
        "in list(zip(*blocks, strict=True))[:1]:",
    ),
    "amsgrad ignored": (
        "            second_moment = largest\n        factor",
        "            pass\n        factor",
    ),
    "first moment of absent rows lost": ("first_moment[swept.rows] = touched", "pass"),
    "sparse gradient made dense": (
        "weight[swept.rows] = weight[swept.rows].addcmul_(touched, factor)",
        "weight.addcmul_(first_moment, factor)",
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


C_MUTATIONS = {
    "a stream of rows left out": ("(y * y + z * z)", "y * y"),
    "gradient not squared": ("float w = load(a[k])", "float w = 1"),
    "partial sums not added up": ("total[k] += part[k]", "total[k] = part[k]"),
    "partial sums not begun anew": ("memset(part, 0, columns * sizeof *part);", ""),
    "last rows not summed": ("for (int64_t row = STREAMS * each;", "for (int64_t row = rows;"),
    "first moment not kept": ("m[k] = store(moment);", ""),
    "weight of the gradient ignored": ("moment += weight * (", "moment += ("),
    "sign ignored": ("sign * load(g[k])", "load(g[k])"),
    "decay ignored": ("(decay * before + factor[k] * moment)", "factor[k] * moment"),
    "factor of the first column for all": ("factor[k] * moment", "factor[0] * moment"),
    "tiles not added up": ("sum += all->totals", "sum = all->totals"),
    "a half of a tile not updated": ("        update_row(all, row + half);", ""),
    "last row of a tile not updated": (
        "row = first + HALVES * half; row < last;",
        "row = last; 0;",
    ),
}

TRITON_MUTATIONS = {
    "gradient not squared": ("tl.sum(g * g, axis=0)", "tl.sum(tl.abs(g), axis=0)"),
    "rows of a tile overwritten": ("total += tl.sum(", "total = tl.sum("),
    "tiles of rows not added up": ("return partial.sum(0)", "return partial[0]"),
    "first moment not kept": ("        tl.store(m_at, m", "        tl.store(p_at, m"),
    "sign ignored": ("(sign * g.to(tl.float32) - m)", "(g.to(tl.float32) - m)"),
    "decay ignored": ("p += share * p + step * m", "p += step * m"),
    "weight of the gradient ignored": ("        m += weight * (", "        m += ("),
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


def agrees_with_the_oracle(optimizer_class, dtype=torch.float64, rows=5, **chosen):
    # Largest last, where rows are left over when they are shared out.
    steps = gradients(12, rows).flip(1).to(dtype)
    for options in ({}, {"amsgrad": True, "betas": (0.9, 0.5)}, {"maximize": True}, {"eps": 0.1}):
        found, _ = run(optimizer_class, steps, dtype, **options, **chosen)
        start = torch.ones(rows, 3).tolist()
        expected = coupled_adamw_reference(start, steps.tolist(), **{**OPTIONS, **options})
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        assert (found - torch.tensor(expected, dtype=torch.float64)).abs().max() < tolerance


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
    partial(agrees_with_the_oracle, capturable=True),
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


def failing(optimizer_class, checks=CHECKS):
    failed = []
    for check in checks:
        try:
            check(optimizer_class)
        except Exception:
            failed.append(check)
    return failed


def test_the_optimizer_as_it_is_passes_every_check():
    assert failing(optimizer_from(SOURCE)) == []


@pytest.mark.parametrize(("old", "new"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_line_is_noticed(old, new):
    assert SOURCE.count(old) == 1, "the line has changed: adapt the mutation"
    assert failing(optimizer_from(SOURCE.replace(old, new)))


# Enough rows for several tiles, blocks and leftovers, with magnitudes over three powers of ten.
with_interpreter = partial(agrees_with_the_oracle, dtype=torch.float32, rows=41)


def with_kernels(optimizer_class):
    # In several tiles, then in one that is long enough for several partial sums.
    for tiles in (8, 1):
        with mock.patch.object(native, "_EQUAL", tiles):
            agrees_with_the_oracle(optimizer_class, dtype=torch.float32, rows=291, fused=True)


@pytest.fixture
def compiled_from():
    """A function that has the optimizer's C replaced; what it was is put back in the end."""
    if BACKENDS["C"].missing():
        pytest.skip(BACKENDS["C"].missing())
    original = native._SOURCE

    def replace(path):
        native._SOURCE = path
        native._compiled.cache_clear()

    yield replace
    replace(original)


def test_the_optimizers_c_as_it_is_passes(compiled_from):
    compiled_from(native._SOURCE)
    assert failing(CoupledAdamW, [with_kernels]) == []


@pytest.mark.parametrize(("old", "new"), C_MUTATIONS.values(), ids=C_MUTATIONS)
def test_a_broken_line_of_c_is_noticed(old, new, compiled_from, tmp_path):
    source = native._SOURCE.read_text()
    assert source.count(old) == 1, "the line has changed: adapt the mutation"
    assert source.count("return 0;") == 1, "where the trial fails: adapt"
    mutant = tmp_path / "step.c"
    # Without its own trial, which would keep most of them from being used at all.
    mutant.write_text(source.replace(old, new).replace("return 0;", "return 1;"))
    compiled_from(mutant)
    assert native.unavailable(torch.float32) == "", "the mutant does not compile"
    with pytest.raises(AssertionError):
        with_kernels(CoupledAdamW)


@pytest.mark.parametrize(("old", "new"), C_MUTATIONS.values(), ids=C_MUTATIONS)
def test_c_that_computes_something_else_is_not_used(old, new, compiled_from, tmp_path):
    mutant = tmp_path / "step.c"
    mutant.write_text(native._SOURCE.read_text().replace(old, new))
    compiled_from(mutant)
    assert "cannot be used" in native.unavailable(torch.float32)
    assert failing(CoupledAdamW, [with_kernels]) == []  # with PyTorch's operations


def interpreted_from(path):
    specification = importlib.util.spec_from_file_location("mutant_kernel", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return interpreted(module)


needs_interpreter = pytest.mark.skipif(
    bool(BACKENDS["Triton, interpreted"].missing()),
    reason=BACKENDS["Triton, interpreted"].missing() or "at hand",
)


def kernel_source():
    # Not imported for this: where there is no Triton it cannot be.
    return Path(coupled_adamw.__file__).with_name("kernel.py")


@needs_interpreter
def test_the_triton_kernels_as_they_are_pass():
    with interpreted_from(kernel_source()):
        assert failing(CoupledAdamW, [with_interpreter]) == []


@needs_interpreter
@pytest.mark.parametrize(("old", "new"), TRITON_MUTATIONS.values(), ids=TRITON_MUTATIONS)
def test_a_broken_line_of_triton_is_noticed(old, new, tmp_path):
    source = kernel_source().read_text()
    assert source.count(old) == 1, "the line has changed: adapt the mutation"
    mutant = tmp_path / "kernel.py"
    mutant.write_text(source.replace(old, new))
    with interpreted_from(mutant), pytest.raises(AssertionError):
        with_interpreter(CoupledAdamW)
