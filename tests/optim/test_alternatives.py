"""The alternatives: each axis of sharing as its source says, and both ends of what lies between."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_adam import CoupledAdamW, terms
from coupled_adam.errors import RefusedError
from coupled_adam.gpt import GPT, GPTConfig
from coupled_adam.optim.alternatives import SHARES, SharedAdam, shared

V, H, STEPS = 7, 3, 6
SETTINGS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def gradients(seed=0, *, zero_sum=False):
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randn(STEPS, V, H, generator=random, dtype=torch.float64)
    drawn *= torch.logspace(0, -3, V, dtype=torch.float64)[:, None]  # rows of unlike size
    return drawn - drawn.mean(dim=1, keepdim=True) if zero_sum else drawn


def stepped(make, given):
    """The table after the given gradients, from the same start."""
    torch.manual_seed(1)
    table = torch.nn.Parameter(torch.randn(V, H, dtype=torch.float64))
    optimizer = make(table)
    for gradient in given:
        table.grad = gradient.clone()
        optimizer.step()
    return table.detach()


def alternative(**options):
    return lambda table: SharedAdam([table], **{**SETTINGS, **options})


def test_shared_over_nothing_it_is_torchs_adamw():
    expected = stepped(lambda table: torch.optim.AdamW([table], **SETTINGS), gradients())
    torch.testing.assert_close(stepped(alternative(share="none"), gradients()), expected)


def test_shared_over_the_vocabulary_it_is_coupled_adam():
    group = {"coupled": True}
    expected = stepped(
        lambda table: CoupledAdamW([{"params": [table], **group}], **SETTINGS), gradients()
    )
    torch.testing.assert_close(stepped(alternative(share="vocabulary"), gradients()), expected)


def test_each_axis_by_hand():
    v = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    np.testing.assert_allclose(shared(v, "none"), v)
    np.testing.assert_allclose(shared(v, "width"), [[2.0], [6.0]])
    np.testing.assert_allclose(shared(v, "vocabulary"), [[3.0, 5.0]])
    np.testing.assert_allclose(shared(v, "all"), [[4.0]])
    np.testing.assert_allclose(shared(v, "factored"), [[1.5, 2.5], [4.5, 7.5]])
    assert (shared(torch.zeros(2, 2), "factored") == 0).all()


def test_a_moment_of_rank_one_is_factored_exactly():
    v = torch.rand(V, 1, dtype=torch.float64) * torch.rand(1, H, dtype=torch.float64)
    torch.testing.assert_close(shared(v, "factored"), v)


def test_signs_of_the_momentum():
    (first, *_) = given = gradients()[:1]
    moved = stepped(alternative(share="sign", weight_decay=0.0), given) - stepped(
        alternative(), given[:0]
    )
    torch.testing.assert_close(moved, -0.01 * first.sign())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from(SHARES))
def test_one_factor_for_all_tokens_is_what_keeps_the_sum_at_zero(seed, share):
    plain = {"weight_decay": 0.0}
    given = gradients(seed, zero_sum=True)
    moved = stepped(alternative(share=share, **plain), given) - stepped(alternative(), given[:0])
    drift = moved.mean(dim=0).norm() / moved.norm(dim=1).mean()
    if share in ("vocabulary", "all"):
        assert drift < 1e-12
    else:
        assert drift > 1e-4
    centred = stepped(alternative(share=share, centre=True, **plain), given)
    moved = centred - stepped(alternative(), given[:0])
    assert moved.mean(dim=0).norm() / moved.norm(dim=1).mean() < 1e-12


def test_between_the_shared_moment_and_the_own():
    def at(own):
        return stepped(alternative(share="vocabulary", own=own), gradients())

    torch.testing.assert_close(at(0.0), stepped(alternative(share="vocabulary"), gradients()))
    torch.testing.assert_close(at(1.0), stepped(alternative(share="none"), gradients()))
    # One step of the half: the root of both roots, by hand.
    gradient = gradients()[:1]
    v = gradient[0].square()
    expected = gradient[0] / (v * v.mean(dim=0)).pow(0.25)
    start = stepped(alternative(), gradient[:0])
    moved = stepped(alternative(share="vocabulary", own=0.5, weight_decay=0.0), gradient) - start
    torch.testing.assert_close(moved, -0.01 * expected, rtol=1e-4, atol=0)


def test_a_floor_bounds_the_steps_of_rare_tokens():
    gradient = gradients()[:1]
    start = stepped(alternative(), gradient[:0])
    v = gradient[0].square()
    for floor in (0.0, 0.1, 1.0):
        given = {"floor": floor, "eps": 0.0, "weight_decay": 0.0}
        moved = stepped(alternative(**given), gradient) - start
        used = torch.maximum(v, floor * v.mean(dim=0))
        torch.testing.assert_close(moved, -0.01 * gradient[0] / used.sqrt(), rtol=1e-4, atol=0)


def test_without_bias_correction_the_first_step_is_smaller():
    gradient = gradients()[:1]
    start = stepped(alternative(), gradient[:0])
    given = {"share": "vocabulary", "weight_decay": 0.0}
    corrected = stepped(alternative(**given), gradient) - start
    plain = stepped(alternative(bias_correction=False, **given), gradient) - start
    # (1 - 0.9) / sqrt(1 - 0.95) of it
    torch.testing.assert_close(plain, corrected * 0.1 / 0.05**0.5)


def test_a_closure_and_a_table_without_gradient():
    table = torch.nn.Parameter(torch.ones(V, H))
    idle = torch.nn.Parameter(torch.ones(V, H))
    optimizer = SharedAdam([table, idle])

    def closure():
        optimizer.zero_grad()
        loss = table.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == V * H
    assert (idle == 1).all() and (table < 1).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("betas", (0.9, 1.0)), ("eps", -1e-9), ("weight_decay", -1.0),
     ("share", "rows"), ("own", 1.5), ("floor", -0.1)],
)  # fmt: skip
def test_impossible_arguments_are_refused(name, value):
    with pytest.raises(RefusedError, match=rf"{name} must be"):
        SharedAdam([torch.nn.Parameter(torch.ones(V, H))], **{name: value})


def test_what_is_no_table_is_refused():
    with pytest.raises(RefusedError, match=r"not a parameter of shape \(3,\)"):
        SharedAdam([torch.nn.Parameter(torch.ones(3))])
    table = torch.nn.Embedding(V, H, sparse=True)
    optimizer = SharedAdam(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RefusedError, match="sparse=False"):
        optimizer.step()


def test_terms_by_hand():
    torch.manual_seed(0)
    table, logits = torch.randn(V, H, dtype=torch.float64), torch.randn(4, V, dtype=torch.float64)
    assert terms.mu_loss(logits, table) == pytest.approx(1e-4 * (table.mean(0) ** 2).sum().item())
    partition = np.log(np.exp(logits.numpy()).sum(axis=1))
    assert terms.z_loss(logits, table) == pytest.approx(1e-4 * (partition**2).mean())
    units = (table / table.norm(dim=1, keepdim=True)).numpy()
    pairs = [units[i] @ units[j] for i in range(V) for j in range(V) if i != j]
    assert terms.cosine_loss(logits, table) == pytest.approx(sum(pairs) / V**2)


def test_centring_takes_the_mean_row_out():
    model = GPT(GPTConfig(20, context=8, layers=1, heads=2, width=16))
    before = model.output_embedding.detach() + 1.0
    model.output_embedding.data.copy_(before)
    terms.centre_embeddings(model)
    torch.testing.assert_close(model.output_embedding.detach(), before - before.mean(dim=0))
