"""torch's own test of its optimizers, run against CoupledAdamW, coupled and not.

The table of inputs and errors of AdamW is the one of the installed torch
(``torch.testing._internal.common_optimizers``). Torch does not ship the checks themselves
(its test/test_optim.py); these are the generic ones of them, one function each, by their names
there. In a coupled group every parameter is a matrix.
"""

import copy
import functools
import io
import itertools
import warnings

import pytest
import torch

pytest.importorskip("expecttest", reason="torch's test utilities need expecttest")
from torch.testing._internal import common_optimizers
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

from coupled_adam import CoupledAdamW

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
(THEIRS,) = (info for info in common_optimizers.optim_db if info.optim_cls is torch.optim.AdamW)


def every_input(device, skip=()):
    """Torch's inputs for AdamW, with foreach, fused and differentiable on and off."""
    return common_optimizers._get_optim_inputs_including_global_cliquey_kwargs(
        device, torch.float32, THEIRS, skip=skip
    )


INPUTS = [
    pytest.param(
        device, coupled, one.kwargs, id=f"{'coupled' if coupled else 'plain'}, {one.desc}, {device}"
    )
    for device, coupled in itertools.product(DEVICES, (False, True))
    for one in every_input(device)
]
over_inputs = pytest.mark.parametrize(("device", "coupled", "options"), INPUTS)
both = pytest.mark.parametrize("coupled", [False, True])


def tensor_options(options):
    """Of their own for each optimizer, as a scheduler writes into a tensor."""
    return copy.deepcopy(options)


def model(device, seed=0):
    """Two matrices, as their "weight" and "bias", and an input."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator).to(device) for shape in ((10, 5), (10, 1))]
    return *map(torch.nn.Parameter, made), torch.randn(5, generator=generator).to(device)


def closure_of(weight, bias, x, optimizer=None, sign=1):
    def closure():
        for parameter in (weight, bias):
            parameter.grad = None
        loss = sign * (weight.mv(x) + bias[:, 0]).pow(2).sum()
        loss.backward()
        return loss

    return closure


def optimizer_for(parameters, coupled, options, **more):
    return CoupledAdamW(parameters, coupled=coupled, **tensor_options(options), **more)


def flags_without_differentiable(options):
    return {**options, "differentiable": False}


# test_errors


ERRORS = [
    pytest.param(coupled, one, id=f"{'coupled' if coupled else 'plain'}, {number}")
    for coupled in (False, True)
    for number, one in enumerate(THEIRS.optim_error_inputs_func("cpu", torch.float32))
]


def as_matrices(params):
    """Their parameters of one row with two: in a coupled group there is nothing to share in one."""
    if isinstance(params, torch.Tensor):
        if id(params) not in MATRICES:
            MATRICES[id(params)] = torch.nn.Parameter(torch.ones(2, 1, dtype=params.dtype))
        return MATRICES[id(params)]
    if isinstance(params, dict):
        return {key: as_matrices(v) if key == "params" else v for key, v in params.items()}
    if isinstance(params, (list, tuple)):
        return type(params)(as_matrices(one) for one in params)
    return params


MATRICES = {}


@pytest.mark.parametrize(("coupled", "error"), ERRORS)
def test_errors(coupled, error):
    given = error.optimizer_error_input
    params = given.params if given.params is not None else [torch.nn.Parameter(torch.ones(2, 1))]
    params = as_matrices(params)

    def act():
        optimizer = optimizer_for(params, coupled, given.kwargs)
        if error.error_on is OptimizerErrorEnum.STEP_ERROR:
            optimizer.step()

    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            act()
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            act()


# test_forloop_goes_right_direction, test_foreach..., test_fused..., with and without a scheduler


@over_inputs
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("contiguous", [False, True])
def test_goes_right_direction(device, coupled, options, scheduled, contiguous):
    options = flags_without_differentiable(options)
    weight, bias, x = model(device)
    if not contiguous:
        weight = torch.nn.Parameter(torch.stack([weight.detach(), weight.detach()], 2)[..., 0])
    schedulers = THEIRS.scheduler_inputs[0] if scheduled else [None]
    optimizer = optimizer_for([weight, bias], coupled, options)
    started = [one(optimizer) for one in schedulers if one is not None]
    closure = closure_of(weight, bias, x, sign=-1 if options.get("maximize") else 1)
    first = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        for scheduler in started:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(loss.detach())
            else:
                scheduler.step()
    last = closure().item()
    assert last > first if options.get("maximize") else last < first


# test_param_group_with_lrscheduler_goes_right_direction


@over_inputs
def test_param_groups_with_scheduler_go_right_direction(device, coupled, options):
    options = flags_without_differentiable(options)
    weight, bias, x = model(device)
    groups = [{"params": [weight]}, {"params": [bias], "lr": 0.01}]
    optimizer = optimizer_for(groups, coupled, options)
    schedulers = [one(optimizer) for one in THEIRS.scheduler_inputs[0][:1]]
    closure = closure_of(weight, bias, x, sign=-1 if options.get("maximize") else 1)
    first = closure().item()
    for _ in range(20):
        optimizer.step(closure)
        for scheduler in schedulers:
            scheduler.step()
    last = closure().item()
    assert last > first if options.get("maximize") else last < first


# test_param_groups_weight_decay, test_param_groups_lr


@over_inputs
@pytest.mark.parametrize(
    ("key", "value", "zero"), [("weight_decay", 0.5, 0.0), ("lr", 0.5, 0.0)], ids=["decay", "lr"]
)
def test_param_groups_have_their_own_options(device, coupled, options, key, value, zero):
    options = flags_without_differentiable(options)
    moved, kept, _ = model(device)
    before = kept.detach().clone()
    groups = [{"params": [moved], key: value}, {"params": [kept], key: zero}]
    options = {name: one for name, one in options.items() if name != key}
    if key == "weight_decay":
        options["lr"] = 0.1
    optimizer = optimizer_for(groups, coupled, options)
    for parameter in (moved, kept):
        parameter.grad = torch.zeros_like(parameter)
    start = moved.detach().clone()
    optimizer.step()
    assert torch.equal(kept, before)
    if key == "weight_decay":
        torch.testing.assert_close(moved.detach(), 0.95 * start)


# test_tensor_lr


@both
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
@pytest.mark.parametrize("number", range(len(THEIRS.optim_inputs_func("cpu"))))
def test_tensor_lr(device, coupled, shape, number):
    options = THEIRS.optim_inputs_func("cpu")[number].kwargs
    ends = []
    for lr in (1e-3, torch.full(shape, 1e-3)):
        weight, bias, x = model(device)
        optimizer = optimizer_for([weight, bias], coupled, {**options, "lr": lr})
        for _ in range(5):
            optimizer.step(closure_of(weight, bias, x))
        ends.append((weight.detach(), bias.detach()))
        assert torch.equal(torch.as_tensor(optimizer.param_groups[0]["lr"]), torch.as_tensor(lr))
    torch.testing.assert_close(ends[0], ends[1])


# test_foreach_matches_forloop, test_fused_matches_forloop, test_fused_large..., mixed types


@both
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flag", [{"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", range(len(THEIRS.optim_inputs_func("cpu"))))
def test_matches_forloop(device, coupled, flag, dtype, number):
    """Not coupled, it matches torch's own with that flag bit for bit, whatever that makes of it."""
    options = THEIRS.optim_inputs_func("cpu", dtype)[number].kwargs
    ends = []
    for ours in (False, True):
        weight, bias, x = (one.detach().to(dtype) for one in model(device))
        weight, bias = map(torch.nn.Parameter, (weight, bias))
        if ours or coupled:
            chosen = flag if ours else {"foreach": False, "fused": False}
            optimizer = optimizer_for([weight, bias], coupled, {**options, **chosen})
        else:
            optimizer = torch.optim.AdamW([weight, bias], **options, **flag)
        for _ in range(7):
            closure_of(weight, bias, x)()
            optimizer.step()
        ends.append([*optimizer.state[weight].values(), weight.detach(), bias.detach()])
    close = {"atol": 0, "rtol": 0}
    if coupled:
        half = dtype in (torch.bfloat16, torch.float16)
        close = {"atol": 5e-3, "rtol": 2e-2} if half else {"atol": 1e-6, "rtol": 1e-5}
    for theirs, ours in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, **close, check_device=False)


# test_set_default_dtype_works_with_foreach


@both
@pytest.mark.parametrize("flag", ["foreach", "fused", None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_set_default_dtype(coupled, flag, dtype):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        parameter = torch.nn.Parameter(torch.ones(3, 2))
        flags = {flag: True} if flag else {}
        optimizer = optimizer_for([parameter], coupled, {"lr": 0.1, **flags})
        for _ in range(2):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    assert optimizer.state[parameter]["step"] == 2
    assert (parameter < 1).all() and parameter.dtype == dtype


# test_step_is_noop_when_params_have_no_grad, test_step_is_noop_for_zero_grads


@over_inputs
@pytest.mark.parametrize("zero", [False, True])
def test_step_is_noop(device, coupled, options, zero):
    options = {**flags_without_differentiable(options), "weight_decay": 0}
    weight, bias, _ = model(device)
    before = [weight.detach().clone(), bias.detach().clone()]
    optimizer = optimizer_for([weight, bias], coupled, options)
    for parameter in (weight, bias):
        parameter.grad = torch.zeros_like(parameter) if zero else None
    optimizer.step()
    assert torch.equal(weight, before[0]) and torch.equal(bias, before[1])
    assert bool(optimizer.state) == zero


# test_empty_grad


@both
def test_empty_grad(coupled):
    """A parameter without elements beside the others; a coupled matrix of none is refused."""
    weight, bias, x = model("cpu")
    empty = torch.nn.Parameter(torch.empty(0, 3))
    groups = [{"params": [weight, bias]}, {"params": [empty], "coupled": False}]
    optimizer = optimizer_for(groups, coupled, {"fused": True})
    empty.grad = torch.empty(0, 3)
    optimizer.step(closure_of(weight, bias, x))
    assert optimizer.state[empty]["step"] == 1


# test_state_dict_deterministic


@over_inputs
def test_state_dict_deterministic(device, coupled, options):
    options = flags_without_differentiable(options)
    weight, bias, x = model(device)
    optimizer = optimizer_for([weight, bias], coupled, options)
    for _ in range(3):
        optimizer.step(closure_of(weight, bias, x))
    clones = [torch.nn.Parameter(one.detach().clone()) for one in (weight, bias)]
    other = optimizer_for(clones, coupled, options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(5):
        optimizer.step(closure_of(weight, bias, x))
        other.step(closure_of(*clones, x))
        assert torch.equal(weight, clones[0]) and torch.equal(bias, clones[1])
    ours, theirs = optimizer.state_dict(), other.state_dict()
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    assert list(ours["param_groups"][0]) == list(theirs["param_groups"][0])


# test_can_load_older_state_dict


@over_inputs
def test_can_load_older_state_dict(device, coupled, options):
    options = flags_without_differentiable(options)
    weight, bias, x = model(device)
    optimizer = optimizer_for([weight, bias], coupled, options)
    for _ in range(3):
        optimizer.step(closure_of(weight, bias, x))
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for flag in THEIRS.not_og_supported_flags:
            group.pop(flag, None)
    twin = [torch.nn.Parameter(one.detach().clone()) for one in (weight, bias)]
    resumed = optimizer_for(twin, coupled, options)
    resumed.load_state_dict(older)
    optimizer.step(closure_of(weight, bias, x))
    resumed.step(closure_of(*twin, x))
    # As in torch, a setting that the checkpoint does not know is off, and so maximize is.
    assert not any(group["maximize"] for group in resumed.param_groups)
    if not options.get("maximize"):
        for one, other in zip((weight, bias), twin, strict=True):
            torch.testing.assert_close(one, other)  # maybe by another implementation


# test_save_load_equality_with_weights_only


@over_inputs
def test_save_load_equality_with_weights_only(device, coupled, options):
    options = flags_without_differentiable(options)
    weight, bias, x = model(device)
    optimizer = optimizer_for([weight, bias], coupled, options)
    for _ in range(3):
        optimizer.step(closure_of(weight, bias, x))
    state = optimizer.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    torch.testing.assert_close(loaded["state"], state["state"], rtol=0, atol=0)
    assert loaded["param_groups"][0]["params"] == [0, 1]


# test_load_nontensor_step


@over_inputs
def test_load_nontensor_step(device, coupled, options):
    options = flags_without_differentiable(options)
    weight, bias, x = model(device)
    optimizer = optimizer_for([weight, bias], coupled, options)
    for _ in range(3):
        optimizer.step(closure_of(weight, bias, x))
    state = copy.deepcopy(optimizer.state_dict())
    for one in state["state"].values():
        one["step"] = one["step"].item()
    clones = [torch.nn.Parameter(one.detach().clone()) for one in (weight, bias)]
    other = optimizer_for(clones, coupled, options)
    other.load_state_dict(state)
    optimizer.step(closure_of(weight, bias, x))
    other.step(closure_of(*clones, x))
    assert torch.equal(weight, clones[0]) and torch.equal(bias, clones[1])


# test_deepcopy_copies_all_public_attrs, test_non_empty_state, test_can_be_printed


@over_inputs
def test_copies_states_and_print(device, coupled, options):
    options = flags_without_differentiable(options)
    weight, bias, x = model(device)
    optimizer = optimizer_for([weight, bias], coupled, options)
    for _ in range(2):
        optimizer.step(closure_of(weight, bias, x))
    copied = copy.deepcopy(optimizer)

    def public(one):
        return {key for key in one.__dict__ if not key.startswith("_")}

    assert public(copied) == public(optimizer)
    assert all(len(state) >= 3 for state in optimizer.state.values())
    assert len(optimizer.state) == 2 and "CoupledAdamW" in repr(optimizer)


# test_fused_does_not_step_if_foundinf, test_grad_scaling_autocast_fused_optimizers


@both
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("number", range(len(THEIRS.optim_inputs_func("cpu"))))
def test_fused_does_not_step_if_found_inf(device, coupled, found_inf, number):
    options = THEIRS.optim_inputs_func("cpu")[number].kwargs
    weight, bias, x = model(device)
    optimizer = optimizer_for([weight, bias], coupled, {**options, "fused": True})
    before = [weight.detach().clone(), bias.detach().clone()]
    optimizer.grad_scale = None
    optimizer.found_inf = torch.tensor(found_inf, device=device)
    for _ in range(3):
        closure_of(weight, bias, x)()
        optimizer.step()
    assert all(state["step"] == (0 if found_inf else 3) for state in optimizer.state.values())
    still = torch.equal(weight, before[0]) and torch.equal(bias, before[1])
    assert still == bool(found_inf)


# test_cpu_load_state_dict


@both
@pytest.mark.parametrize("implementation", ["capturable", "fused"])
@pytest.mark.skipif(len(DEVICES) == 1, reason="no CUDA device on this machine")
def test_cpu_load_state_dict(coupled, implementation):
    weight, bias, x = model("cpu")
    optimizer = optimizer_for([weight, bias], coupled, {implementation: implementation == "fused"})
    optimizer.step(closure_of(weight, bias, x))
    moved = [torch.nn.Parameter(one.detach().cuda()) for one in (weight, bias)]
    other = optimizer_for(moved, coupled, {implementation: True})
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0][implementation] = True
    other.load_state_dict(state)
    optimizer.step(closure_of(weight, bias, x))
    other.step(closure_of(*moved, x.cuda()))
    for one, twin in zip((weight, bias), moved, strict=True):
        torch.testing.assert_close(twin.cpu(), one)


# test_duplicated parameters are stepped as by torch


@both
def test_a_parameter_that_is_given_twice(coupled):
    ends = []
    for optimizer_class in (torch.optim.AdamW, functools.partial(CoupledAdamW, coupled=coupled)):
        # Equal rows, for which coupling changes nothing.
        parameter = torch.nn.Parameter(torch.ones(4, 2, dtype=torch.float64))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = optimizer_class([parameter, parameter])
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends)
