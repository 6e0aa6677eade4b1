"""Matrices that are stored as [width, tokens]: the mean is taken over the tokens all the same."""

import copy
import pickle

import backends
import pytest
import torch
from backends import TOLERANCES, trials

from coupled_adam import CoupledAdamW, transfer_state

TOKENS, WIDTH = 12, 5


@trials()
def test_a_transposed_matrix_is_stepped_like_the_matrix(trial):
    found, optimizer = trial.run(coupled=True, transposed=True)
    expected = backends.expected(trial.variant, trial.dtype, trial.shape, trial.steps)
    tolerance = TOLERANCES[trial.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    (state,) = optimizer.state.values()
    assert state["exp_avg"].shape == trial.shape[::-1]
    assert state["exp_avg_sq"].shape == trial.shape[1:]


def gradients(steps, shape=(WIDTH, TOKENS), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, *shape, generator=generator, dtype=torch.float64)


def head(shape=(WIDTH, TOKENS)):
    return torch.nn.Parameter(gradients(1, shape, seed=9)[0])


def train(optimizer, steps):
    for group in optimizer.param_groups:
        for number, parameter in enumerate(group["params"]):
            parameter.all_gradients = gradients(steps, tuple(parameter.shape), number)
    for step in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.all_gradients[step]
        optimizer.step()


@pytest.mark.parametrize("fused", [None, True])
def test_a_group_says_it_for_itself(fused):
    table, output = head((TOKENS, WIDTH)), head()
    groups = [
        {"params": [table], "coupled": True},
        {"params": [output], "coupled": True, "vocabulary_dim": 1},
        {"params": [head((3, 4))]},
    ]
    optimizer = CoupledAdamW(groups, fused=fused)
    train(optimizer, 2)
    assert [group["vocabulary_dim"] for group in optimizer.param_groups] == [0, 1, 0]
    assert optimizer.state[table]["exp_avg_sq"].shape == (WIDTH,)
    assert optimizer.state[output]["exp_avg_sq"].shape == (WIDTH,)


def test_the_updates_of_all_tokens_sum_to_zero_when_gradients_do():
    output = head()
    optimizer = CoupledAdamW([output], lr=1e-2, weight_decay=0, coupled=True, vocabulary_dim=1)
    before = output.detach().clone()
    for gradient in gradients(5):
        output.grad = gradient - gradient.mean(1, keepdim=True)
        optimizer.step()
    assert (output - before).abs().max() > 1e-2
    assert (output - before).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("vocabulary_dim", [2, -1, "columns"])
def test_another_dimension_is_refused(vocabulary_dim):
    with pytest.raises(ValueError, match=r"vocabulary_dim=.* has to be 0, .* or 1"):
        CoupledAdamW([head()], coupled=True, vocabulary_dim=vocabulary_dim)
    with pytest.raises(ValueError, match=r"vocabulary_dim=.* has to be 0, .* or 1"):
        CoupledAdamW([{"params": [head()], "coupled": True, "vocabulary_dim": vocabulary_dim}])


@pytest.mark.parametrize(
    ("shape", "vocabulary_dim", "right"),
    [((1, 4), 1, True), ((4, 1), 1, False), ((0, 4), 1, False)],
)
def test_there_have_to_be_two_tokens_and_a_width(shape, vocabulary_dim, right):
    options = {"coupled": True, "vocabulary_dim": vocabulary_dim}
    parameter = torch.nn.Parameter(torch.zeros(shape))
    if right:
        CoupledAdamW([parameter], **options)
        return
    with pytest.raises(ValueError, match="fewer than two"):
        CoupledAdamW([parameter], **options)


def test_sparse_gradients_have_rows_and_are_refused():
    output = head()
    optimizer = CoupledAdamW([output], weight_decay=0, coupled=True, vocabulary_dim=1)
    output.grad = gradients(1)[0].to_sparse(1)
    before = output.detach().clone()
    with pytest.raises(RuntimeError, match=r"sparse gradient .*vocabulary_dim=1"):
        optimizer.step()
    assert torch.equal(output, before)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_a_copy_goes_on_bit_for_bit(way):
    optimizer = CoupledAdamW([head()], coupled=True, vocabulary_dim=1, amsgrad=True)
    train(optimizer, 3)
    if way == "deepcopy":
        other = copy.deepcopy(optimizer)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(optimizer))
    else:
        clone = torch.nn.Parameter(optimizer.param_groups[0]["params"][0].detach().clone())
        other = CoupledAdamW([clone], coupled=True, vocabulary_dim=1, amsgrad=True)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["vocabulary_dim"] == other.defaults["vocabulary_dim"] == 1
    train(optimizer, 2)
    train(other, 2)
    ours, theirs = (one.param_groups[0]["params"][0] for one in (optimizer, other))
    assert torch.equal(ours, theirs)


def loaded(old, new):
    new.load_state_dict(old.state_dict())


@pytest.mark.parametrize("take_over", [loaded, transfer_state])
# A square matrix, where shapes say nothing of the axis, too.
@pytest.mark.parametrize("shape", [(WIDTH, TOKENS), (4, 4)])
def test_adamws_state_becomes_the_mean_over_the_tokens_and_back(take_over, shape):
    output = head(shape)
    adamw = torch.optim.AdamW([output], amsgrad=True)
    train(adamw, 3)
    coupled = CoupledAdamW([output], coupled=True, vocabulary_dim=1, amsgrad=True)
    take_over(adamw, coupled)
    for key in ("exp_avg_sq", "max_exp_avg_sq"):
        expected = adamw.state[output][key].mean(1)
        torch.testing.assert_close(coupled.state[output][key], expected)
    back = CoupledAdamW([output], amsgrad=True)
    take_over(coupled, back)
    shared = coupled.state[output]["exp_avg_sq"]
    assert torch.equal(back.state[output]["exp_avg_sq"], shared[:, None].expand(shape))


@pytest.mark.parametrize("take_over", [loaded, transfer_state])
@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
def test_a_mean_over_the_other_axis_is_refused(take_over, before, after):
    output = head((4, 4))
    old = CoupledAdamW([output], coupled=True, vocabulary_dim=before)
    train(old, 1)
    new = CoupledAdamW([output], coupled=True, vocabulary_dim=after)
    with pytest.raises(ValueError, match=f"mean over dimension {before}.*vocabulary_dim={after}"):
        take_over(old, new)
    assert not new.state


def test_a_checkpoint_without_the_key_is_one_of_rows():
    """As saved before there was the key."""
    table = head((4, 4))
    old = CoupledAdamW([table], coupled=True)
    train(old, 1)
    state = old.state_dict()
    for group in state["param_groups"]:
        del group["vocabulary_dim"]
    new = CoupledAdamW([table], coupled=True)
    new.load_state_dict(state)
    assert new.param_groups[0]["vocabulary_dim"] == 0
    train(new, 1)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"weight_decay": 0.1}], ids=str)
def test_a_differentiable_step_has_the_right_derivatives(options):
    start, *steps = gradients(3)
    lr = torch.tensor(0.1, dtype=torch.float64)

    def after_two_steps(start, lr, *steps):
        parameter = start.clone()
        optimizer = CoupledAdamW(
            [parameter], lr=lr, coupled=True, differentiable=True, vocabulary_dim=1, **options
        )
        for gradient in steps:
            parameter.grad = gradient
            optimizer.step()
        return parameter

    inputs = [one.requires_grad_() for one in (start, lr, *steps)]
    assert torch.autograd.gradcheck(after_two_steps, inputs)
    plain = torch.nn.Parameter(start.detach().T.contiguous())
    rows = CoupledAdamW([plain], lr=0.1, coupled=True, **options)
    for gradient in steps:
        plain.grad = gradient.detach().T.contiguous()
        rows.step()
    torch.testing.assert_close(after_two_steps(*inputs).detach(), plain.detach().T)


@pytest.mark.parametrize("shape", [(8, 100), (2, 3), (768, 50_304)])
def test_a_matrix_that_may_be_transposed_is_pointed_out_once_and_only_where_nothing_is_said(
    shape, caplog
):
    wide, tall = (
        torch.nn.Parameter(torch.empty(one, device="meta")) for one in (shape, shape[::-1])
    )
    CoupledAdamW([{"params": [wide], "coupled": True}])
    CoupledAdamW([wide], coupled=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert f"{shape[0]} rows" in caplog.text and "vocabulary_dim=1" in caplog.text
    caplog.clear()
    for dim in (0, 1):
        CoupledAdamW([{"params": [wide], "coupled": True, "vocabulary_dim": dim}])
        CoupledAdamW([wide], coupled=True, vocabulary_dim=dim)
    CoupledAdamW([tall], coupled=True)
    CoupledAdamW([wide])
    assert not caplog.records
