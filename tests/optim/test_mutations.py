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
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from coupled_adam import CoupledAdamW
from coupled_adam.optim import checks, coupled_adamw, memory, native
from coupled_adam.optim.reference import coupled_adamw_reference

SOURCE = inspect.getsource(coupled_adamw)
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}

MUTATIONS = {
    "not coupled at all": (
        '_further_defaults = {"coupled": coupled,',
        '_further_defaults = {"coupled": False,',
    ),
    "coupled groups stepped as plain ones": (
        'if not group["coupled"]:\n                _plain_step(',
        "if True:\n                _plain_step(",
    ),
    "sum instead of mean": (
        "second_moment.lerp_(swept.sums.mean(),",
        "second_moment.lerp_(swept.sums.total,",
    ),
    "mean over the wrong number of rows": (
        "sums = sharding.ColumnSums(total, held.shape[0], groups, sparse",
        "sums = sharding.ColumnSums(total, held.shape[1], groups, sparse",
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
    "bias correction of the wrong sign in a graph": (
        "return -torch.expm1(step * (math",
        "return torch.expm1(step * (math",
    ),
    "step not counted": (
        '        state["step"] += 1\n        weight, first_moment',
        "        weight, first_moment",
    ),
    "betas exchanged": (
        "second_moment.lerp_(swept.sums.mean(), _like(1 - beta2,",
        "second_moment.lerp_(swept.sums.mean(), _like(1 - beta1,",
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
        'if key in loaded and (group["coupled"]',
        'if False and (group["coupled"]',
    ),
    "shared moment in the parameter's precision": (
        "sharding.column_zeros(parameter, state_dtype(parameter), group)",
        "sharding.column_zeros(parameter, parameter.dtype, group)",
    ),
    "tokens always taken for rows": (
        'return matrix if group["vocabulary_dim"] == 0 else matrix.T',
        "return matrix",
    ),
    "a scale of the gradients passed over": (
        "if grad_scale is not None:\n                    # In place",
        "if False:\n                    # In place",
    ),
    "a mark to skip the step passed over": ("in swept if not skipped else ():", "in swept:"),
    "scale and mark taken by groups that do not follow": (
        "checks.check_scaling(self.param_groups, grad_scale, found_inf)",
        "pass",
    ),
    "captured without capturable": ("getattr(self, _GRAPH_CHECK)()", "pass"),
    "fused, whatever lies between the elements": ("parts[_may_be_fused(*one)]", "parts[True]"),
    "a loaded state not looked at": (
        'checks.check_loaded(parameter, final["state"][key], group, source)',
        "pass",
    ),
    "a state not looked at": ("checks.check_state(parameter, state, group)", "pass"),
    "a gradient not looked at": ("checks.check_gradient(parameter, parameter.grad)", "pass"),
    "fused on a device without a fused step": ("checks.check_new(parameter, group)", "pass"),
    "a step count read in a graph": ('bool(group["capturable"]) or torch', "torch"),
    "the number of a FakeTensor asked for": (" or _is_fake(step)\n", "\n"),
    "betas read in a graph": (
        'if group["differentiable"] or _stays_a_tensor(group, step):',
        "if False:",
    ),
    "a default device for a step count that was a number": (
        'with torch.device("cpu"):',
        "with torch.no_grad():",
    ),
    "the axis of the loading optimizer lost": (
        "group.update(kept)",
        'group.update({"coupled": kept["coupled"]})',
    ),
}

# In checks.py and memory.py.
FURTHER_MUTATIONS = {
    "a moment of another shape": (checks, "if moment.shape != shape:", "if False:"),
    "a moment on another device": (checks, "if moment.device != device:", "if False:"),
    "a loaded moment of another shape": (checks, "if value.shape not in fitting:", "if False:"),
    "a gradient of another shape": (checks, "if gradient.shape != parameter.shape:", "if False:"),
    "a mean over the other axis": (
        checks,
        'and source["vocabulary_dim"] != group["vocabulary_dim"]',
        "and False",
    ),
    "an axis that there is not": (
        checks,
        'if group["vocabulary_dim"] not in (0, 1):',
        "if False:",
    ),
    "a shared moment of the tokens' axis": (
        checks,
        'parameter.shape[1:] if group["vocabulary_dim"] == 0 else parameter.shape[:1]',
        "parameter.shape[1:]",
    ),
    "gaps between the elements": (memory, "_has_no_gaps(tensors[0]) and all(", "all("),
    "another order of the elements": (
        memory,
        " and all(one.stride() == stride for one in tensors)",
        "",
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
    # Not exchanged: that would read what lies behind the matrix.
    "the first column summed for all": ("[None, :] * column_stride", "[None, :] * 0"),
    "the first row's gradient for all": ("+ row * gradient_row +", "+ row * 0 +"),
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


def steps_a_transposed_matrix(optimizer_class):
    ends = []
    for turn in (False, True):
        start = torch.arange(12.0).reshape(4, 3)
        parameter = torch.nn.Parameter(start.T.contiguous() if turn else start)
        options = {"vocabulary_dim": 1} if turn else {}
        optimizer = optimizer_class([parameter], coupled=True, lr=0.1, **options)
        for gradient in gradients(3, 4).float():
            parameter.grad = gradient.T if turn else gradient
            optimizer.step()
        other = optimizer_class([parameter], coupled=True, **options)
        other.load_state_dict(optimizer.state_dict())
        plain = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3, 4))])
        plain.param_groups[0]["params"][0].grad = gradients(1, 3, 4)[0].float()
        plain.step()
        if turn:
            other.load_state_dict(plain.state_dict())
            (state,) = other.state.values()
            assert state["exp_avg_sq"].shape == (3,)
        ends.append(parameter.detach().T if turn else parameter.detach())
    torch.testing.assert_close(*ends)


def refuses_the_other_axis(optimizer_class):
    square = torch.nn.Parameter(torch.ones(3, 3))
    old = optimizer_class([square], coupled=True)
    square.grad = torch.ones(3, 3)
    old.step()
    with pytest.raises(ValueError, match="mean over dimension 0"):
        optimizer_class([square], coupled=True, vocabulary_dim=1).load_state_dict(old.state_dict())
    with pytest.raises(ValueError, match="has to be 0"):
        optimizer_class([square], coupled=True, vocabulary_dim=2)


def refuses_another_vocabulary(optimizer_class):
    small, large = (torch.nn.Parameter(torch.ones(rows, 3)) for rows in (4, 6))
    old, new = (optimizer_class([one], coupled=True) for one in (small, large))
    small.grad = torch.ones(4, 3)
    old.step()
    with pytest.raises(ValueError, match="vocabulary has 6 tokens and had 4"):
        new.load_state_dict(old.state_dict())
    small.data = torch.ones(6, 3)
    with pytest.raises(RuntimeError, match="gradient of shape"):
        old.step()
    small.grad = torch.ones(6, 3)
    with pytest.raises(RuntimeError, match="vocabulary has 6 tokens and had 4"):
        old.step()
    large.grad = torch.ones(6, 3)
    new.step()
    new.state[large]["exp_avg"] = new.state[large]["exp_avg"].to("meta")
    with pytest.raises(RuntimeError, match="its exp_avg on meta"):
        new.step()


def follows_scale_and_mark(optimizer_class):
    ends = []
    for scale, marks in ((1.0, (0, 0)), (8.0, (0, 1, 0))):
        parameter = torch.nn.Parameter(torch.ones(4, 3))
        # Large enough to tell scales apart.
        options = {**OPTIONS, "eps": 1.0}
        optimizer = optimizer_class([parameter], coupled=True, fused=True, **options)
        optimizer.grad_scale = torch.tensor(scale)
        for mark in marks:
            parameter.grad = scale * torch.arange(12.0).reshape(4, 3)
            optimizer.found_inf = torch.tensor(float(mark))
            optimizer.step()
        ends.append(parameter.detach())
    assert torch.equal(*ends)
    optimizer.param_groups[0]["fused"] = None
    with pytest.raises(RuntimeError, match="grad_scale or found_inf"):
        optimizer.step()


def has_torchs_refusals(optimizer_class):
    parameter = torch.nn.Parameter(torch.ones(4, 3, device="meta"))
    optimizer = optimizer_class([parameter], coupled=True, fused=True)
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match="fused=True"):
        optimizer.step()

    def capturing():
        raise RuntimeError("capturing")

    optimizer = optimizer_class([torch.nn.Parameter(torch.ones(4, 3))], coupled=True)
    setattr(optimizer, coupled_adamw._GRAPH_CHECK, capturing)
    with pytest.raises(RuntimeError, match="capturing"):
        optimizer.step()


def fused_leaves_alone_what_lies_between(optimizer_class):
    wide = torch.ones(4, 5)
    cases = [
        (wide[:, :3], torch.ones(4, 5)[:, :3]),
        (torch.ones(4, 3), torch.arange(12.0).reshape(3, 4).T - 5),
        (torch.ones(4, 3), torch.complex(torch.ones(4, 3), torch.ones(4, 3)).conj().imag),
    ]
    for start, gradient in cases:
        ends = []
        for fused in (False, True):
            parameter = torch.nn.Parameter(start if fused else start.clone())
            parameter.grad = gradient if fused else gradient.clone().contiguous()
            optimizer = optimizer_class([parameter], lr=0.1, fused=fused)
            optimizer.step()
            if fused and start is cases[0][0]:
                # Moments with gaps as well, so that all lie alike.
                state = optimizer.state[parameter]
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = torch.ones(4, 5)[:, :3].copy_(state[key])
            optimizer.step()
            ends.append(parameter.detach())
        torch.testing.assert_close(*ends)
    assert (wide[:, 3:] == 1).all()


class NoNumbers(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function)
        return function(*args, **(kwargs or {}))


def asks_for_no_number(optimizer_class):
    betas = (torch.tensor(0.9), torch.tensor(0.99))
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = optimizer_class([parameter], coupled=True, capturable=True, betas=betas)
    parameter.grad = torch.ones(4, 3)
    optimizer.step()
    with NoNumbers():
        optimizer.step()
    with FakeTensorMode() as mode:
        parameter = torch.nn.Parameter(torch.ones(4, 3))
        optimizer = optimizer_class([parameter], coupled=True)
        parameter.grad = torch.ones(4, 3)
        optimizer.step()
        optimizer.state[parameter]["step"] = mode.from_tensor(torch.tensor(3.0))
        optimizer.step()


def keeps_to_its_device(optimizer_class):
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = optimizer_class([parameter], coupled=True)
    parameter.grad = torch.ones(4, 3)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["step"] = 1.0
    with torch.device("meta"):
        optimizer.load_state_dict(state)
        optimizer.step()
    assert optimizer.state[parameter]["step"] == 2


CHECKS = (
    agrees_with_the_oracle,
    partial(agrees_with_the_oracle, capturable=True),
    means_over_all_rows,
    waits_for_absent_rows,
    takes_over_from_adamw,
    keeps_its_precision,
    steps_a_transposed_matrix,
    refuses_the_other_axis,
    refuses_another_vocabulary,
    follows_scale_and_mark,
    has_torchs_refusals,
    fused_leaves_alone_what_lies_between,
    asks_for_no_number,
    keeps_to_its_device,
)


def module_from(source):
    module = types.ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    try:
        exec(compile(source, "mutant", "exec"), module.__dict__)
    finally:
        del sys.modules["mutant"]
    return module


def optimizer_from(source, **modules):
    """The class that a source defines, with other modules in place of those that it imports."""
    made = module_from(source)
    made.__dict__.update(modules)
    return made.CoupledAdamW


def failing(optimizer_class, checks=CHECKS):
    """The checks that fail, one after the other."""
    for check in checks:
        try:
            check(optimizer_class)
        except (Exception, pytest.fail.Exception):
            yield check


def fails(optimizer_class, checks=CHECKS):
    return next(failing(optimizer_class, checks), None) is not None


def test_the_optimizer_as_it_is_passes_every_check():
    assert list(failing(optimizer_from(SOURCE))) == []


@pytest.mark.parametrize(("old", "new"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_line_is_noticed(old, new):
    assert SOURCE.count(old) == 1, "the line has changed: adapt the mutation"
    assert fails(optimizer_from(SOURCE.replace(old, new)))


@pytest.mark.parametrize(
    ("module", "old", "new"), FURTHER_MUTATIONS.values(), ids=FURTHER_MUTATIONS
)
def test_a_broken_line_of_the_checks_is_noticed(module, old, new):
    source = inspect.getsource(module)
    assert source.count(old) == 1, "the line has changed: adapt the mutation"
    name = module.__name__.rpartition(".")[2]
    mutant = module_from(source.replace(old, new))
    assert fails(optimizer_from(SOURCE, **{name: mutant}))


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
    native._SOURCE = original
    native._compiled.cache_clear()


def test_the_optimizers_c_as_it_is_passes(compiled_from):
    compiled_from(native._SOURCE)
    assert not fails(CoupledAdamW, [with_kernels])


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
    assert not fails(CoupledAdamW, [with_kernels])  # with PyTorch's operations


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
        assert not fails(CoupledAdamW, [with_interpreter])


@needs_interpreter
@pytest.mark.parametrize(("old", "new"), TRITON_MUTATIONS.values(), ids=TRITON_MUTATIONS)
def test_a_broken_line_of_triton_is_noticed(old, new, tmp_path):
    source = kernel_source().read_text()
    assert source.count(old) == 1, "the line has changed: adapt the mutation"
    mutant = tmp_path / "kernel.py"
    mutant.write_text(source.replace(old, new))
    with interpreted_from(mutant), pytest.raises(AssertionError):
        with_interpreter(CoupledAdamW)
