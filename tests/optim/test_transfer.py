"""From AdamW to CoupledAdamW in the middle of a run, and back."""

import copy

import numpy as np
import pytest
import torch

from coupled_adam import CoupledAdamW, geometry, param_groups, text, transfer_state
from coupled_adam.gpt import GPT, GPTConfig

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95)}


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False))
    model.append(torch.nn.LayerNorm(7))
    return model.to(dtype)


def adamw(model, **options):
    """In groups of its own, as another code base would make them."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
    ]
    return torch.optim.AdamW(groups, **{**SETTINGS, **options})


def coupled(model, **options):
    return CoupledAdamW(param_groups(model), **{**SETTINGS, **options})


def train(model, optimizer, steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = noise.to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_coupled_group_gets_the_column_mean_and_everything_else_a_copy(dtype):
    model = make_model(dtype)
    old, new = adamw(model, amsgrad=True), coupled(model, amsgrad=True)
    train(model, old)
    transfer_state(old, new)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for group in new.param_groups:
        for parameter in group["params"]:
            theirs, ours = old.state[parameter], new.state[parameter]
            assert ours["step"] == theirs["step"] == 5
            assert torch.equal(ours["exp_avg"], theirs["exp_avg"])
            assert ours["exp_avg"].data_ptr() != theirs["exp_avg"].data_ptr()
            for key in ("exp_avg_sq", "max_exp_avg_sq"):
                expected = theirs[key].to(exact).mean(0) if group["coupled"] else theirs[key]
                assert torch.equal(ours[key], expected) and ours[key].dtype == expected.dtype
                assert ours[key].data_ptr() != theirs[key].data_ptr()


def test_it_agrees_with_loading_a_checkpoint_where_the_groups_agree():
    model = make_model()
    groups = [{"params": group["params"]} for group in param_groups(model)]
    old = torch.optim.AdamW(groups, **SETTINGS)
    train(model, old)
    loaded, transferred = coupled(model), coupled(model)
    loaded.load_state_dict(copy.deepcopy(old.state_dict()))
    transfer_state(old, transferred)
    for parameter in model.parameters():
        for key, value in transferred.state[parameter].items():
            assert torch.equal(value, loaded.state[parameter][key])


def test_back_in_adamw_every_row_has_the_shared_moment_and_training_goes_on():
    model = make_model()
    ours, theirs = coupled(model), adamw(model)
    train(model, ours)
    transfer_state(ours, theirs)
    # The checkpoint that torch's own class reads, without knowing of this library.
    fresh = adamw(model)
    fresh.load_state_dict(theirs.state_dict())
    embedding = model[0].weight
    shared = ours.state[embedding]["exp_avg_sq"]
    assert torch.equal(fresh.state[embedding]["exp_avg_sq"], shared.expand(7, 4))
    before = embedding.detach().clone()
    first = fresh.state[embedding]["exp_avg"].clone()
    train(model, fresh, steps=1)
    m = first + 0.1 * (embedding.grad - first)
    v = 0.95 * shared + 0.05 * embedding.grad**2
    step = 1e-2 * m / (1 - 0.9**6) / ((v / (1 - 0.95**6)).sqrt() + 1e-8)
    torch.testing.assert_close(embedding.detach(), before * (1 - 1e-2 * 0.1) - step)


@pytest.mark.parametrize("make", [adamw, coupled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_between_two_of_a_kind_training_continues_bit_for_bit(make, dtype):
    model = make_model(dtype)
    one = make(model)
    train(model, one)
    other_model = copy.deepcopy(model)
    two = make(model)
    transfer_state(one, two)
    twin = make(other_model)
    twin.load_state_dict(copy.deepcopy(one.state_dict()))
    train(model, two, seed=1)
    train(other_model, twin, seed=1)
    for ours, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_target_with_amsgrad_starts_from_the_present_moment():
    model = make_model()
    old, new = adamw(model), coupled(model, amsgrad=True)
    train(model, old)
    transfer_state(old, new)
    state = new.state[model[0].weight]
    assert torch.equal(state["max_exp_avg_sq"], state["exp_avg_sq"])
    train(model, new)


def test_the_targets_options_stay_its_own():
    model = make_model()
    old, new = adamw(model, lr=0.5), coupled(model, lr=0.25)
    train(model, old, steps=1)
    transfer_state(old, new)
    assert {group["lr"] for group in new.param_groups} == {0.25}


def test_a_parameter_without_state_starts_anew():
    model = make_model()
    old, new = adamw(model), coupled(model)
    train(model, new, steps=1)
    transfer_state(old, new)
    assert not new.state


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), TypeError, "not SGD"),
        (lambda model: adamw(make_model()), ValueError, "same parameter tensors"),
        (
            lambda model: adamw(model[:1]),
            ValueError,
            r"3 only in the target",
        ),
    ],
    ids=["another kind", "another model", "a part of the model"],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(source, error, message):
    model = make_model()
    target = coupled(model)
    train(model, target, steps=1)
    before = copy.deepcopy(target.state_dict()["state"])
    with pytest.raises(error, match=message):
        transfer_state(source(model), target)
    torch.testing.assert_close(target.state_dict()["state"], before, rtol=0, atol=0)


def test_a_training_goes_over_and_back_in_mid_run():
    """Loss and geometry of one run: AdamW, then Coupled Adam, then AdamW again."""
    corpus = text.synthetic(vocabulary_size=300, tokens=60_000, classes=4)
    torch.manual_seed(0)
    shape = GPTConfig(vocabulary_size=300, context=32, width=32, layers=1, heads=2, tied=False)
    model = GPT(shape)
    random = np.random.default_rng(0)

    def phase(optimizer, steps=60):
        before = model.output_embedding.detach().double().mean(0)
        losses = []
        for _ in range(steps):
            starts = random.integers(0, len(corpus.train) - 32, 16)
            windows = corpus.train[starts[:, None] + np.arange(33)].astype(np.int64)
            windows = torch.from_numpy(windows)
            loss = model(windows[:, :-1], windows[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        moved = model.output_embedding.detach().double().mean(0) - before
        return np.mean(losses[-10:]), moved.norm().item()

    def old():
        return torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)

    first, second, third = old(), coupled(model, lr=3e-3), old()
    loss_1, moved_1 = phase(first)
    norm_1 = geometry.relative_mean_norm(model.output_embedding.detach())
    transfer_state(first, second)
    loss_2, moved_2 = phase(second)
    norm_2 = geometry.relative_mean_norm(model.output_embedding.detach())
    transfer_state(second, third)
    loss_3, moved_3 = phase(third)

    assert np.log(300) > loss_1 > loss_2 > loss_3
    # The first moment that AdamW leaves behind sums to zero as well, so the mean stands still at
    # once; it moves again as soon as AdamW is back.
    assert moved_2 < 1e-5 < 1e-2 < min(moved_1, moved_3)
    assert norm_2 < norm_1
