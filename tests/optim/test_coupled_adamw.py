"""CoupledAdamW against torch, and against its own promises; test_backends.py has the oracle."""

import copy
import inspect
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from backends import VARIANTS
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_adam import CoupledAdamW
from coupled_adam.optim import sharding
from coupled_adam.optim.reference import coupled_adamw_reference

VOCABULARY, WIDTH, STEPS = 12, 5, 100

# How torch's own AdamW can be run on a CPU; groups that are not coupled go the same ways.
IMPLEMENTATIONS = {
    "default": {},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
    "fused": {"fused": True},
}


def make_gradients(steps=STEPS, rows=VOCABULARY, width=WIDTH, seed=0):
    """Gradients of tokens of very different frequency; each step's rows sum to zero."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -4, rows, dtype=torch.float64)[:, None]
    gradients = torch.randn(steps, rows, width, generator=generator, dtype=torch.float64) * scale
    gradients[:, 0] -= gradients.sum(1)
    return gradients


def make_weight(rows=VOCABULARY, width=WIDTH):
    """Of the size of embeddings; float32 could not hold 1e-6 over 100 steps of larger ones."""
    generator = torch.Generator().manual_seed(1)
    return 0.1 * torch.randn(rows, width, generator=generator, dtype=torch.float64)


def run(optimizer_class, weight, gradients, dtype=torch.float32, **options):
    parameter = torch.nn.Parameter(weight.to(dtype, copy=True))
    optimizer = optimizer_class([parameter], **{"lr": 1e-2, **options})
    for gradient in gradients:
        parameter.grad = gradient.to(dtype)
        optimizer.step()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="no CUDA device on this machine"
            ),
        ),
    ],
)
def test_not_coupled_is_torch_bit_for_bit(options, implementation, dtype, device):
    if isinstance(options.get("lr"), torch.Tensor) and implementation.get("foreach"):
        pytest.skip("torch refuses a tensor as learning rate with foreach, unless capturable")
    weight, gradients = make_weight().to(device), make_gradients(steps=20).to(device)
    options = {**options, **implementation}
    ours, _ = run(CoupledAdamW, weight, gradients, dtype, coupled=False, **options)
    theirs, _ = run(torch.optim.AdamW, weight, gradients, dtype, **options)
    assert torch.equal(ours, theirs)


def test_the_oracle_without_coupling_is_adamw():
    weight, gradients = make_weight(), make_gradients(steps=20)
    expected = coupled_adamw_reference(
        weight.tolist(), gradients.tolist(), lr=1e-2, weight_decay=0.1, coupled=False
    )
    result, _ = run(torch.optim.AdamW, weight, gradients, torch.float64, weight_decay=0.1)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 9),
    width=st.integers(1, 7),
    steps=st.integers(1, 5),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.999),
    seed=st.integers(0, 1000),
)
def test_updates_sum_to_zero_when_gradients_do(rows, width, steps, beta1, beta2, seed):
    gradients = make_gradients(steps, rows, width, seed)
    weight = make_weight(rows, width)
    result, _ = run(
        CoupledAdamW,
        weight,
        gradients,
        torch.float64,
        coupled=True,
        betas=(beta1, beta2),
        weight_decay=0.0,
    )
    # A step is about 1e-2; the gradients themselves sum to zero only up to rounding.
    assert (result - weight).sum(0).abs().max() <= 1e-9


@settings(max_examples=25, deadline=None)
@given(exponent=st.integers(-6, 6))
def test_the_step_does_not_depend_on_the_gradient_scale(exponent):
    weight, gradients = make_weight(), make_gradients(steps=5)
    options = {"coupled": True, "eps": 0.0, "dtype": torch.float64}
    one, _ = run(CoupledAdamW, weight, gradients, **options)
    other, _ = run(CoupledAdamW, weight, gradients * 10.0**exponent, **options)
    torch.testing.assert_close(one, other)


def test_state_is_one_vector_for_a_matrix():
    _, optimizer = run(CoupledAdamW, make_weight(), make_gradients(2), coupled=True, amsgrad=True)
    (state,) = optimizer.state.values()
    assert state["exp_avg"].shape == (VOCABULARY, WIDTH)
    assert state["exp_avg_sq"].shape == state["max_exp_avg_sq"].shape == (WIDTH,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_shared_moment_and_step_count_never_lose_precision(dtype):
    # A scale that float16 holds: what is squared must not underflow in the parameter's type.
    gradients = make_gradients(300) * 1e-3
    _, optimizer = run(CoupledAdamW, make_weight(), gradients, dtype, coupled=True)
    (state,) = optimizer.state.values()
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert state["exp_avg_sq"].dtype == expected
    assert (state["exp_avg_sq"] > 0).all()
    assert state["step"].item() == 300


@pytest.mark.parametrize("rows", [1023, 1024, 1025, 2500])
def test_mean_over_many_rows_is_taken_in_blocks_without_gaps(rows):
    gradient = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    _, optimizer = run(
        CoupledAdamW, torch.zeros(rows, 3), [gradient], coupled=True, betas=(0.9, 0.0)
    )
    (state,) = optimizer.state.values()
    torch.testing.assert_close(
        state["exp_avg_sq"].double(), gradient.double().square().mean(0), rtol=1e-6, atol=0
    )


def test_non_contiguous_gradients_and_parameters():
    weight, gradients = make_weight(), make_gradients(5)
    expected, _ = run(CoupledAdamW, weight, gradients, coupled=True)
    parameter = torch.nn.Parameter(weight.float().T.contiguous().T)
    optimizer = CoupledAdamW([parameter], lr=1e-2, coupled=True)
    for gradient in gradients:
        parameter.grad = gradient.float().T.contiguous().T
        optimizer.step()
    assert not parameter.is_contiguous()
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-7)


def test_gradient_is_left_alone():
    for options in ({}, {"maximize": True}):
        parameter = torch.nn.Parameter(make_weight())
        parameter.grad = make_gradients(1)[0]
        before = parameter.grad.clone()
        CoupledAdamW([parameter], coupled=True, **options).step()
        assert torch.equal(parameter.grad, before)


def test_zero_learning_rate_and_zero_gradient_change_nothing():
    """Distributed checkpointing makes exactly this step to create the state."""
    parameter = torch.nn.Parameter(make_weight())
    parameter.grad = torch.zeros_like(parameter)
    CoupledAdamW([parameter], lr=0.0, coupled=True).step()
    assert torch.equal(parameter, make_weight())


def test_a_matrix_without_gradient_is_skipped():
    first, second = (torch.nn.Parameter(make_weight()) for _ in range(2))
    first.grad = make_gradients(1)[0]
    optimizer = CoupledAdamW([first, second], coupled=True)
    optimizer.step()
    assert torch.equal(second, make_weight())
    assert second not in optimizer.state


def test_arguments_are_torchs_and_two_more():
    theirs = inspect.signature(torch.optim.AdamW).parameters
    ours = inspect.signature(CoupledAdamW).parameters
    assert list(ours) == [*theirs, "coupled", "vocabulary_dim"]
    assert ours["coupled"].kind == ours["vocabulary_dim"].kind == inspect.Parameter.KEYWORD_ONLY
    for name, parameter in theirs.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default)


def two_groups(coupled=True):
    torch.manual_seed(0)
    embedding, matrix = torch.nn.Parameter(make_weight()), torch.nn.Parameter(torch.randn(3, 4))
    groups = [{"params": [embedding], "coupled": coupled}, {"params": [matrix]}]
    return embedding, matrix, groups


def take_steps(optimizer, first, last):
    gradients = make_gradients(last, seed=3)
    for gradient in gradients[first:last]:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = gradient.to(p.dtype) if len(p) == VOCABULARY else p.detach().clone()
        optimizer.step()


def parameters_of(optimizer):
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def through_state_dict(optimizer, fresh):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}], ids=str)
def test_a_copy_continues_bit_for_bit(way, dtype, options):
    embedding, matrix, groups = two_groups()
    embedding.data, matrix.data = embedding.data.to(dtype), matrix.data.to(dtype)
    optimizer = CoupledAdamW(groups, lr=1e-2, **options)
    take_steps(optimizer, 0, 5)
    if way == "deepcopy":
        other = copy.deepcopy(optimizer)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(optimizer))
    else:
        copies = [torch.nn.Parameter(p.detach().clone()) for p in (embedding, matrix)]
        fresh = CoupledAdamW(
            [{"params": [copies[0]], "coupled": True}, {"params": [copies[1]]}], **options
        )
        other = through_state_dict(optimizer, fresh)
    assert [group["coupled"] for group in other.param_groups] == [True, False]
    assert other.defaults["coupled"] is False
    take_steps(optimizer, 5, 10)
    take_steps(other, 5, 10)
    for ours, theirs in zip(parameters_of(optimizer), parameters_of(other), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_adamw_loads_as_its_column_mean():
    embedding, matrix, groups = two_groups()
    adamw = torch.optim.AdamW([{"params": [embedding]}, {"params": [matrix]}], amsgrad=True)
    take_steps(adamw, 0, 5)
    optimizer = CoupledAdamW(groups, amsgrad=True)
    optimizer.load_state_dict(state_dict=adamw.state_dict())
    assert optimizer.param_groups[0]["coupled"] is True
    for key in ("exp_avg_sq", "max_exp_avg_sq"):
        expected = adamw.state[embedding][key].mean(0)
        torch.testing.assert_close(optimizer.state[embedding][key], expected)
    assert torch.equal(optimizer.state[embedding]["exp_avg"], adamw.state[embedding]["exp_avg"])
    assert optimizer.state[embedding]["step"] == 5
    take_steps(optimizer, 5, 6)


def test_a_coupled_checkpoint_loads_into_a_plain_group():
    embedding, _, groups = two_groups()
    optimizer = CoupledAdamW(groups)
    take_steps(optimizer, 0, 5)
    plain = CoupledAdamW([{"params": g["params"]} for g in groups])
    plain.load_state_dict(optimizer.state_dict())
    assert not any(group["coupled"] for group in plain.param_groups)
    shared = optimizer.state[embedding]["exp_avg_sq"]
    torch.testing.assert_close(
        plain.state[embedding]["exp_avg_sq"].float(), shared.float().expand(VOCABULARY, WIDTH)
    )
    take_steps(plain, 5, 6)


def test_loading_does_not_share_memory_with_the_checkpoint():
    optimizer = CoupledAdamW(two_groups()[2])
    take_steps(optimizer, 0, 2)
    state = optimizer.state_dict()
    kept = state["state"][0]["exp_avg_sq"].clone()
    other = CoupledAdamW(two_groups()[2])
    other.load_state_dict(state)
    take_steps(other, 2, 4)
    assert torch.equal(state["state"][0]["exp_avg_sq"], kept)


def test_a_checkpoint_of_another_shape_is_refused():
    *_, groups = two_groups()
    optimizer = CoupledAdamW(groups)
    take_steps(optimizer, 0, 1)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg_sq"] = torch.ones(WIDTH + 1)
    with pytest.raises(ValueError, match="same model"):
        CoupledAdamW(two_groups()[2]).load_state_dict(state)


def test_scheduler_hooks_closure_and_added_groups_work():
    embedding, matrix, groups = two_groups()
    optimizer = CoupledAdamW(groups[1:], lr=1.0)
    optimizer.add_param_group(groups[0])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure():
        optimizer.zero_grad()
        loss = embedding.square().sum() + matrix.square().sum()
        loss.backward()
        return loss

    before = (embedding.square().sum() + matrix.square().sum()).item()
    assert optimizer.step(closure).item() == pytest.approx(before)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert calls == ["pre", "post"]
    assert optimizer.state[embedding]["exp_avg_sq"].shape == (WIDTH,)


def test_named_parameters_keep_their_names():
    layer = torch.nn.Linear(3, 4, bias=False)
    optimizer = CoupledAdamW(layer.named_parameters(), coupled=True)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight"]


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler_skips_a_step_with_infinite_gradients(fused):
    embedding, matrix, groups = two_groups()
    optimizer = CoupledAdamW(groups, lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, moved in ((float("inf"), False), (1.0, True)):
        before = parameters_of(optimizer)
        optimizer.zero_grad()
        loss = (embedding.square().sum() + matrix.square().sum()) * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        after = parameters_of(optimizer)
        assert all(torch.equal(a, b) != moved for a, b in zip(before, after, strict=True))


def test_scaled_and_unscaled_gradients_give_the_same_step():
    results = []
    for scaled in (False, True):
        embedding, _, groups = two_groups()
        optimizer = CoupledAdamW(groups[:1], lr=1e-2, fused=True)
        embedding.grad = make_gradients(1)[0] * (8.0 if scaled else 1.0)
        if scaled:
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
            scaler.scale(torch.ones(()))  # starts the scaler
            scaler.step(optimizer)
        else:
            optimizer.step()
        results.append(embedding.detach().clone())
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)


class Wrapped(torch.Tensor):
    """A subclass such as DTensor: its rows need not be the whole vocabulary."""


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.zeros(5), "needs a matrix"),
        (torch.zeros(2, 3, 4), "needs a matrix"),
        (torch.zeros(()), "needs a matrix"),
        (torch.zeros(1, 4), "fewer than two rows"),
        (torch.zeros(0, 4), "fewer than two rows"),
        (torch.zeros(4, 4, dtype=torch.complex64), "real floating-point"),
        (torch.zeros(4, 4).as_subclass(Wrapped), "plain dense tensors"),
        (torch.zeros(4, 4).to_sparse(), "make it dense"),
    ],
)
def test_what_cannot_be_coupled_is_refused(parameter, message):
    with pytest.raises(ValueError, match=message):
        CoupledAdamW([parameter.requires_grad_()], coupled=True)


def test_a_placement_that_says_nothing_of_rows_or_columns_is_refused(monkeypatch):
    """As torch's next kind of shard may be."""
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    parameter.placements = [SimpleNamespace(is_partial=lambda: False, is_replicate=lambda: False)]
    monkeypatch.setattr(sharding, "is_dtensor", lambda tensor: tensor is parameter)
    monkeypatch.setattr(sharding, "local", lambda tensor: tensor)
    with pytest.raises(ValueError, match="cannot tell whether it spreads rows or columns"):
        CoupledAdamW([parameter], coupled=True)


def test_an_empty_coupled_group_is_refused():
    with pytest.raises(ValueError, match="no parameters"):
        CoupledAdamW([{"params": [], "coupled": True}, {"params": [torch.zeros(3)]}])


def test_a_refused_group_is_not_kept():
    optimizer = CoupledAdamW([torch.zeros(3, 3)])
    with pytest.raises(ValueError, match="needs a matrix"):
        optimizer.add_param_group({"params": [torch.zeros(3)], "coupled": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("coupled", [False, True])
def test_changing_the_coupling_in_mid_run_is_refused(coupled):
    *_, groups = two_groups(coupled=coupled)
    optimizer = CoupledAdamW(groups)
    take_steps(optimizer, 0, 1)
    optimizer.param_groups[0]["coupled"] = not coupled
    with pytest.raises(RuntimeError, match="changed after its first step"):
        take_steps(optimizer, 1, 2)


@pytest.mark.parametrize(
    "options", [{"lr": -1}, {"betas": (1.0, 0.9)}, {"eps": -1}, {"weight_decay": -1}]
)
def test_hyperparameters_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="Invalid"):
        CoupledAdamW([torch.zeros(3, 3)], coupled=True, **options)
