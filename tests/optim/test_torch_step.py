"""What torch's AdamW does in and around a step, and that CoupledAdamW has it too.

``HABITS`` goes through ``__init__``, ``__setstate__``, ``_init_group``, ``step`` and the functional
``adam``/``adamw`` of torch 2.6 and 2.13 in their order. Each entry is called (torch's own code
runs), kept (ours does the same) or refused, and names the test that shows it.
"""

import copy
import inspect
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from coupled_adam import CoupledAdamW
from coupled_adam.optim import coupled_adamw

HABITS = {
    "__init__: ranges, types and sizes of lr, betas, eps, weight_decay": (
        "called",
        "test_hyperparameters_are_validated_by_torch",
    ),
    "__init__: fused with differentiable or foreach": (
        "called",
        "test_hyperparameters_are_validated_by_torch",
    ),
    "__init__: _step_supports_amp_scaling with fused": (
        "kept off: GradScaler does both itself then",
        "test_grad_scaler_unscales_and_skips_for_every_group",
    ),
    "__setstate__: keys that old states lack": ("called", "test_an_old_state_gets_the_newer_keys"),
    "__setstate__: a step count that was a number": (
        "called, on the CPU",
        "test_an_old_state_gets_the_newer_keys",
    ),
    "step: graph capture health check": (
        "called",
        "test_a_step_that_is_captured_without_capturable_is_refused",
    ),
    "step: closure with gradients": ("kept", "test_a_closure_is_called_with_gradients_enabled"),
    "_init_group: has_complex": ("kept", "test_complex_parameters"),
    "_init_group: sparse gradients": ("refused", "test_sparse_gradients_of_a_plain_group"),
    "_init_group: device and type for fused": ("called", "test_fused_needs_a_device_and_a_type"),
    "_init_group: step count on the device if capturable or fused": (
        "kept",
        "test_where_and_what_a_step_count_is",
    ),
    "_init_group: step count that requires a gradient": (
        "kept",
        "test_a_step_count_that_requires_a_gradient_is_refused",
    ),
    "_init_group: foreach with a tensor as lr set later": (
        "kept",
        "test_a_tensor_as_lr_that_came_later_is_refused_with_foreach",
    ),
    "adam: grad_scale and found_inf": (
        "kept for fused, refused otherwise",
        "test_a_scale_and_a_mark_set_by_hand",
    ),
    "adam: _get_value, tensors while compiling": (
        "kept",
        "test_a_traced_step_is_not_traced_anew_each_time",
    ),
    "adam: betas as tensors, without asking the device": (
        "kept",
        "test_a_captured_step_asks_no_device_for_a_number",
    ),
    "adam: derivatives through betas": ("kept", "test_derivatives_through_tensor_betas"),
    "step: works on FakeTensors": ("kept", "test_memory_can_be_estimated_with_fake_tensors"),
    "Optimizer: hooks of one optimizer and of all, profiler": (
        "called",
        "test_hooks_and_the_profiler_see_the_step",
    ),
    "Optimizer: hooks of state_dict and load_state_dict": (
        "called",
        "test_hooks_see_and_change_the_state",
    ),
    "Optimizer: repr, zero_grad, add_param_group": (
        "called",
        "test_what_the_base_class_does_is_left_to_it",
    ),
}


@pytest.mark.parametrize(("what", "test"), [(k, v[1]) for k, v in HABITS.items()], ids=HABITS)
def test_every_habit_has_its_test(what, test):
    assert callable(getattr(sys.modules[__name__], test))


def made(shape=(6, 4), device="cpu", dtype=torch.float32, **options):
    parameter = torch.nn.Parameter(torch.ones(shape, device=device, dtype=dtype))
    parameter.grad = torch.ones_like(parameter)
    return parameter, CoupledAdamW([parameter], **options)


both = pytest.mark.parametrize("coupled", [False, True])


# __init__


@both
@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": torch.tensor([1e-3, 1e-3])},
        {"lr": torch.tensor(1e-3), "foreach": True},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
        {"betas": (0.9, torch.tensor(0.9))},
        {"betas": (torch.tensor(0.9), torch.tensor([0.9, 0.9]))},
        {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "foreach": True},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"fused": True, "foreach": True},
        {"fused": True, "differentiable": True},
    ],
    ids=str,
)
def test_hyperparameters_are_validated_by_torch(coupled, options):
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        torch.optim.AdamW([torch.ones(6, 4)], **options)
    with pytest.raises(theirs.type) as ours:
        CoupledAdamW([torch.ones(6, 4)], coupled=coupled, **options)
    assert str(ours.value) == str(theirs.value)


@both
@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler_unscales_and_skips_for_every_group(coupled, fused):
    for gradient, moved in ((torch.inf, False), (8.0, True)):
        parameter, optimizer = made(coupled=coupled, fused=fused, lr=0.5, weight_decay=0)
        for one in (optimizer, copy.deepcopy(optimizer)):
            assert not getattr(one, "_step_supports_amp_scaling", False)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.ones(()))  # starts the scaler
        parameter.grad.fill_(gradient)
        scaler.step(optimizer)
        assert (parameter < 1).all() == moved
        if moved:
            assert (optimizer.state[parameter]["exp_avg"] == parameter.new_tensor(0.1)).all()


# __setstate__


@both
def test_an_old_state_gets_the_newer_keys(coupled):
    parameter, optimizer = made(coupled=coupled)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    newer = ("maximize", "foreach", "capturable", "differentiable", "fused", "coupled")
    for key in (*newer, "vocabulary_dim"):
        del state["param_groups"][0][key]
    state["state"][0]["step"] = 7.0
    optimizer.load_state_dict(state)
    (group,) = optimizer.param_groups
    assert [group[key] for key in newer] == [False, None, False, False, None, coupled]
    assert torch.equal(optimizer.state[parameter]["step"], torch.tensor(7.0))
    optimizer.step()


# step


@both
@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_that_is_captured_without_capturable_is_refused(coupled, capturable, monkeypatch):
    """A replay would repeat the rate of that one step."""
    parameter, optimizer = made(coupled=coupled, capturable=capturable)
    stream = SimpleNamespace(is_capturing=lambda: True)
    if hasattr(torch.optim.AdamW, "_accelerator_graph_capture_health_check"):
        there = SimpleNamespace(type="cuda")
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: there)
        monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    else:
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    if capturable and coupled:
        optimizer.step()
        assert (parameter < 1).all()
    elif not capturable:
        called = []
        with pytest.raises(RuntimeError, match="capturable is False"):
            optimizer.step(lambda: called.append(1))
        assert (parameter == 1).all() and not called


@both
def test_a_closure_is_called_with_gradients_enabled(coupled):
    parameter, optimizer = made(coupled=coupled)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 24
    assert (parameter < 1).all()


# _init_group


def test_complex_parameters():
    """As torch steps them; in a coupled group, and with fused=True, they are refused."""
    gradient, results = torch.complex(torch.ones(6, 4), -torch.ones(6, 4)), []
    for optimizer_class in (torch.optim.AdamW, CoupledAdamW):
        parameter = torch.nn.Parameter(torch.ones(6, 4, dtype=torch.complex64))
        optimizer = optimizer_class([parameter], amsgrad=True)
        parameter.grad = gradient.clone()
        optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)
    for fused in (None, True):
        with pytest.raises(ValueError, match="only real floating-point embeddings"):
            made(coupled=True, dtype=torch.complex64, fused=fused)


def test_sparse_gradients_of_a_plain_group():
    parameter, optimizer = made()
    parameter.grad = torch.ones(6, 4).to_sparse(1)
    with pytest.raises(RuntimeError, match="sparse gradient"):
        optimizer.step()


@both
@pytest.mark.parametrize(
    "kind",
    [
        {"device": "meta"},
        {"device": "meta", "dtype": torch.bfloat16},
        {"dtype": torch.complex64},
        {"dtype": torch.complex128},
    ],
    ids=str,
)
def test_fused_needs_a_device_and_a_type(coupled, kind):
    if coupled and "device" not in kind:
        pytest.skip("refused earlier: test_complex_parameters")
    parameter, optimizer = made(coupled=coupled, fused=True, **kind)
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params"):
        optimizer.step()
    assert not optimizer.state[parameter]


@both
def test_without_fused_meta_is_stepped_as_by_torch(coupled):
    parameter, optimizer = made(coupled=coupled, device="meta")
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg_sq"].is_meta
    assert optimizer.state[parameter]["step"] == 1


@both
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("default_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_where_and_what_a_step_count_is(coupled, options, default_dtype):
    if options.get("capturable") and not coupled:
        pytest.skip("torch steps nothing capturable on a CPU")
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default_dtype)
        parameter, optimizer = made(coupled=coupled, **options)
        theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(6, 4))], **options)
        optimizer.step()
    finally:
        torch.set_default_dtype(before)
    double = default_dtype == torch.float64 and not theirs.defaults["fused"]
    step = optimizer.state[parameter]["step"]
    assert step.dtype == (torch.float64 if double else torch.float32)
    assert step.device == parameter.device and step.shape == ()


@both
def test_a_step_count_that_requires_a_gradient_is_refused(coupled):
    parameter, optimizer = made(coupled=coupled, differentiable=True)
    parameter = parameter.clone()
    optimizer.param_groups[0]["params"] = [parameter]
    parameter.grad = torch.ones(6, 4)
    optimizer.step()
    optimizer.state[parameter]["step"].requires_grad_()
    with pytest.raises(RuntimeError, match="`requires_grad` is not supported for `step`"):
        optimizer.step()


@pytest.mark.parametrize("first", [False, True])
def test_a_tensor_as_lr_that_came_later_is_refused_with_foreach(first):
    parameter, optimizer = made(foreach=True)
    if not first:
        optimizer.step()
    optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
    before = parameter.detach().clone()
    with pytest.raises(RuntimeError, match="lr as a Tensor is not supported"):
        optimizer.step()
    assert torch.equal(parameter, before)


# The functional step


@both
@pytest.mark.parametrize("found_inf", [None, 0.0, 1.0])
@pytest.mark.parametrize("grad_scale", [None, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_scale_and_a_mark_set_by_hand(coupled, found_inf, grad_scale, dtype):
    """As torch's fused step follows them: the unscaled gradient stays in ``.grad``."""
    results = []
    for optimizer_class in (torch.optim.AdamW, CoupledAdamW):
        parameter = torch.nn.Parameter(torch.ones(6, 4, dtype=dtype))
        options = {"coupled": True} if coupled and optimizer_class is CoupledAdamW else {}
        optimizer = optimizer_class([parameter], lr=1e-2, fused=True, **options)
        if grad_scale is not None:
            optimizer.grad_scale = torch.tensor(grad_scale)
        if found_inf is not None:
            optimizer.found_inf = torch.tensor(found_inf)
        for _ in range(2):
            # Equal rows, for which coupling changes nothing.
            parameter.grad = torch.arange(1.0, 5.0).to(dtype).expand(6, 4).clone()
            optimizer.step()
        state = optimizer.state[parameter]
        results.append([parameter.detach(), parameter.grad, state["exp_avg"], state["step"]])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert results[1][3] == (0 if found_inf else 2)
    assert (results[1][0] == 1).all() == bool(found_inf)


@pytest.mark.parametrize(
    "options",
    [
        {"coupled": True},
        {"coupled": False},
        {"coupled": True, "fused": False},
        {"coupled": True, "fused": True, "capturable": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_a_scale_and_a_mark_that_would_be_passed_over_are_refused(options, name):
    parameter, optimizer = made(**options)
    setattr(optimizer, name, torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="grad_scale or found_inf is set"):
        optimizer.step()
    assert (parameter == 1).all()


def test_a_sparse_gradient_is_unscaled():
    results = []
    for scale in (1.0, 8.0):
        parameter, optimizer = made(coupled=True, fused=True, weight_decay=0)
        parameter.grad = (scale * torch.arange(24.0).reshape(6, 4)).to_sparse(1)
        optimizer.grad_scale = torch.tensor(scale)
        optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)


@both
def test_a_traced_step_is_not_traced_anew_each_time(coupled):
    """A step count that is read as a number becomes a constant of the trace."""
    graphs = []

    def counted(module, inputs):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    parameter, optimizer = made(coupled=coupled, lr=torch.tensor(1e-2))
    step = torch.compile(optimizer.step, backend=counted)
    for _ in range(3):
        step()
    after_three = len(graphs)
    for _ in range(9):
        step()
    assert 0 < len(graphs) == after_three
    assert optimizer.state[parameter]["step"] == 12


class NoNumbers(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function), "asked a tensor for its number"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": torch.tensor(1e-2)},
        {"betas": (torch.tensor(0.9), torch.tensor(0.99))},
        {"betas": (torch.tensor([[0.9]]), torch.tensor([0.99])), "lr": torch.tensor([1e-2])},
        {"betas": (torch.tensor(0.0), torch.tensor(0.5)), "amsgrad": True, "maximize": True},
        {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "fused": True, "weight_decay": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_captured_step_asks_no_device_for_a_number(options, dtype):
    parameter, optimizer = made(coupled=True, capturable=True, dtype=dtype, **options)
    plain, expected = made(coupled=True, dtype=dtype, **{**options, "fused": None})
    assert isinstance(optimizer.param_groups[0]["betas"][0], torch.Tensor) == ("betas" in options)
    for _ in range(3):
        gradient = torch.arange(24.0).reshape(6, 4).to(dtype)
        parameter.grad, plain.grad = gradient, gradient.clone()
        if options.get("fused") and "betas" not in options:
            optimizer.step()
        else:
            with NoNumbers():
                optimizer.step()
        expected.step()
    torch.testing.assert_close(parameter, plain)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_derivatives_through_tensor_betas(amsgrad):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64)
    betas = torch.tensor([0.8, 0.9], dtype=torch.float64)

    def after_two_steps(first, second, start, *gradients):
        parameter = start.clone()
        options = {"lr": 0.1, "coupled": True, "differentiable": True, "amsgrad": amsgrad}
        optimizer = CoupledAdamW([parameter], betas=(first, second), **options)
        for gradient in gradients:
            parameter.grad = gradient
            optimizer.step()
        return parameter

    inputs = [one.detach().clone().requires_grad_() for one in (*betas, start, *gradients)]
    assert torch.autograd.gradcheck(after_two_steps, inputs)


@both
@pytest.mark.parametrize(
    "options",
    [{}, {"fused": True}, {"amsgrad": True}, {"maximize": True}, {"foreach": True}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_can_be_estimated_with_fake_tensors(coupled, options, dtype):
    with FakeTensorMode():
        parameter, optimizer = made(coupled=coupled, dtype=dtype, **options)
        for _ in range(2):
            optimizer.step()
    state = optimizer.state[parameter]
    assert isinstance(parameter, FakeTensor) and isinstance(state["exp_avg"], FakeTensor)
    assert state["exp_avg_sq"].shape == ((4,) if coupled else (6, 4))


@both
def test_memory_can_be_estimated_of_a_whole_training(coupled):
    """The state of a model that was made outside, and a transposed head, as estimators see it."""
    with FakeTensorMode() as mode:
        table, head = torch.nn.Embedding(9, 4), torch.nn.Parameter(torch.ones(4, 9))
        groups = [{"params": table.parameters()}, {"params": [head], "vocabulary_dim": 1}]
        optimizer = CoupledAdamW(groups, coupled=coupled, lr=1e-2)
        for _ in range(2):
            (table(torch.zeros(3, dtype=torch.long)) @ head).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert optimizer.state[head]["exp_avg_sq"].shape == ((4,) if coupled else (4, 9))
    real = torch.nn.Parameter(torch.ones(6, 4))
    with mode:
        faked = torch.nn.Parameter(mode.from_tensor(real))
        faked.grad = torch.ones(6, 4)
        one = CoupledAdamW([faked], coupled=coupled)
        one.step()
        state = one.state[faked]
        if coupled:
            # A count whose number nobody knows, as after a conversion.
            state["step"] = mode.from_tensor(torch.tensor(3.0))
        one.step()


# The base class


@both
def test_hooks_and_the_profiler_see_the_step(coupled):
    parameter, optimizer = made(coupled=coupled)
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("all, pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("all")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
    ]
    optimizer._optimizer_step_code = lambda: calls.append("profiler")
    try:
        with torch.profiler.profile() as profile:
            optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["all, pre", "pre", "profiler", "post", "all"]
    names = {event.name for event in profile.events()}
    assert "Optimizer.step#CoupledAdamW.step" in names
    assert (parameter < 1).all()


@both
def test_hooks_see_and_change_the_state(coupled):
    parameter, optimizer = made(coupled=coupled)
    optimizer.step()
    calls = []

    def doubled(_, state):
        changed = copy.deepcopy(state)
        changed["state"][0]["exp_avg_sq"] *= 2
        return changed

    optimizer.register_state_dict_pre_hook(lambda _: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    state = optimizer.state_dict()
    other = CoupledAdamW([torch.nn.Parameter(torch.ones(6, 4))], coupled=coupled)
    other.register_load_state_dict_pre_hook(doubled)
    other.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    other.load_state_dict(state)
    assert calls == ["save", "saved", "loaded"]
    expected = 2 * optimizer.state[parameter]["exp_avg_sq"]
    (loaded,) = other.state.values()
    assert torch.equal(loaded["exp_avg_sq"], expected)
    assert len(other._optimizer_load_state_dict_pre_hooks) == 1  # ours are gone again


@both
def test_what_the_base_class_does_is_left_to_it(coupled):
    parameter, optimizer = made(coupled=coupled)
    assert f"coupled: {coupled}" in repr(optimizer) and "vocabulary_dim: 0" in repr(optimizer)
    optimizer.zero_grad(set_to_none=False)
    assert (parameter.grad == 0).all()
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [parameter]})
    with pytest.raises(TypeError, match="must be a dict"):
        optimizer.add_param_group([parameter])
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        CoupledAdamW(parameter, coupled=coupled)
    with pytest.raises(ValueError, match="non-leaf"):
        CoupledAdamW([parameter * 2], coupled=coupled)
    copied = pickle.loads(pickle.dumps(optimizer))
    assert type(copied) is CoupledAdamW and copied.defaults == optimizer.defaults


def test_torchs_step_has_no_lines_that_this_table_does_not_know():
    """Lines of torch's step that call a method of the optimizer: a new one wants an entry above."""
    step = inspect.unwrap(torch.optim.AdamW.step)
    called = {
        word.split("(")[0]
        for line in inspect.getsource(step).splitlines()
        for word in line.split("self.")[1:]
        if "(" in word
    }
    assert called <= {coupled_adamw._GRAPH_CHECK, "_init_group"}
