"""State, parameter and gradient that do not belong together are refused before anything moves.

torch's fused step, given a state of fewer rows than its parameter, writes into foreign memory.
"""

import copy
import pickle

import pytest
import torch

from coupled_adam import CoupledAdamW, transfer_state
from coupled_adam.optim import memory

ROWS, WIDTH = 40, 5
# Every way through a step on a CPU; groups that are not coupled go through torch's.
WAYS = [
    {"coupled": True, "fused": True},
    {"coupled": True},
    {"coupled": True, "amsgrad": True, "fused": True},
    {"coupled": False, "fused": True},
    {"coupled": False},
    {"coupled": False, "foreach": True},
]
ways = pytest.mark.parametrize("way", WAYS, ids=str)


def made(way, rows=ROWS, width=WIDTH):
    parameter = torch.nn.Parameter(torch.ones(rows, width))
    parameter.grad = torch.ones(rows, width)
    return parameter, CoupledAdamW([parameter], **way)


def with_gradient(parameter):
    parameter.grad = torch.ones_like(parameter)


# Loading


def cut(state, name, rows):
    state["state"][0][name] = state["state"][0][name][:rows]


GROWN = r"vocabulary has 40 tokens and had 33.*[Gg]ive exp_avg 7 rows.*or start the state anew"
SHRUNK = r"vocabulary has 40 tokens and had 44.*rows of the 4 tokens that are gone"


@ways
@pytest.mark.parametrize("rows", [2, 33, 39, 44])
def test_a_state_of_another_vocabulary_is_refused_and_changes_nothing(way, rows):
    _, old = made(way, rows)
    old.step()
    parameter, new = made(way)
    new.step()
    before = copy.deepcopy(new.state_dict())
    message = {33: GROWN, 44: SHRUNK}.get(rows, f"has 40 tokens and had {rows}")
    with pytest.raises(ValueError, match=message):
        new.load_state_dict(old.state_dict())
    torch.testing.assert_close(new.state_dict(), before, rtol=0, atol=0)
    with_gradient(parameter)
    new.step()


@ways
def test_what_the_message_says_about_a_grown_vocabulary_works(way):
    _, old = made(way, 33)
    old.step()
    state = old.state_dict()
    for key, value in state["state"][0].items():
        if value.dim() == 2:
            state["state"][0][key] = torch.cat([value, torch.zeros(7, WIDTH)])
    parameter, new = made(way)
    new.load_state_dict(state)
    new.step()
    assert new.state[parameter]["step"] == 2
    _, anew = made(way)
    state["state"].pop(0)
    anew.load_state_dict(state)
    anew.step()


def to_width(state):
    state["exp_avg_sq"] = torch.ones(WIDTH + 1)


def to_number(state):
    state["exp_avg_sq"] = torch.ones(())


def to_flat(state):
    state["exp_avg"] = state["exp_avg"].flatten()


def to_rows(state):
    state["exp_avg_sq"] = torch.ones(ROWS)


def to_many_steps(state):
    state["step"] = torch.ones(ROWS)


def to_largest(state):
    state["max_exp_avg_sq"] = torch.ones(3, WIDTH)


def to_sgd(state):
    state.clear()
    state["momentum_buffer"] = torch.ones(ROWS, WIDTH)


@ways
@pytest.mark.parametrize(
    "change", [to_width, to_number, to_flat, to_rows, to_many_steps, to_largest, to_sgd]
)
def test_every_tensor_of_a_loaded_state_is_checked(way, change):
    _, old = made(way)
    old.step()
    state = copy.deepcopy(old.state_dict())
    change(state["state"][0])
    _, new = made(way)
    with pytest.raises(ValueError, match=r"has shape|has no step"):
        new.load_state_dict(state)
    assert not new.state


@ways
def test_transferring_checks_as_loading_does(way):
    parameter, old = made(way)
    old.step()
    parameter.data = torch.ones(ROWS + 8, WIDTH)
    new = CoupledAdamW([parameter], **way)
    with pytest.raises(ValueError, match="vocabulary has 48 tokens and had 40"):
        transfer_state(old, new)


@ways
@pytest.mark.parametrize("number", [3, 3.0])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_count_that_was_saved_as_a_number_loads(way, number, device):
    _, old = made(way)
    old.step()
    state = copy.deepcopy(old.state_dict())
    state["state"][0]["step"] = number
    parameter, new = made(way)
    with torch.device(device):
        new.load_state_dict(state)
        new.step()
    assert new.state[parameter]["step"] == 4


# What changes between two steps


def larger_data(parameter):
    parameter.data = torch.ones(ROWS + 24, WIDTH)


def smaller_data(parameter):
    parameter.data = torch.ones(ROWS - 7, WIDTH)


def resized(parameter):
    parameter.requires_grad_(False).resize_(ROWS + 3, WIDTH).fill_(1).requires_grad_()


def wider(parameter):
    parameter.data = torch.ones(ROWS, WIDTH + 1)


def transposed(parameter):
    parameter.data = torch.ones(WIDTH, ROWS)


COPIES = {
    "itself": lambda one: one,
    "deepcopy": copy.deepcopy,
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
}
CHANGES = [larger_data, smaller_data, resized, wider, transposed]


@ways
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_parameter_that_changed_its_shape_after_a_step_is_refused(way, change, copied):
    _, optimizer = made(way)
    optimizer.step()
    optimizer = copied(optimizer)
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = None
    change(parameter)
    with_gradient(parameter)
    before = parameter.detach().clone()
    with pytest.raises(RuntimeError, match=r"exp_avg of a parameter of shape .* has shape"):
        optimizer.step()
    assert torch.equal(parameter, before)
    optimizer.state.pop(parameter)  # as the message says
    optimizer.step()
    assert (parameter < before).all()


@ways
@pytest.mark.parametrize("change", CHANGES)
def test_a_gradient_of_before_the_change_is_refused(way, change):
    parameter, optimizer = made(way)
    change(parameter)
    with pytest.raises(RuntimeError, match=r"gradient of shape .*zero_grad\(\)"):
        optimizer.step()
    assert (parameter[:WIDTH, :WIDTH] == 1).all()


@ways
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_a_state_on_another_device_is_refused(way, name):
    parameter, optimizer = made(way)
    optimizer.step()
    optimizer.state[parameter][name] = optimizer.state[parameter][name].to("meta")
    with pytest.raises(RuntimeError, match=f"its {name} on meta.*load_state_dict"):
        optimizer.step()


@pytest.mark.parametrize("coupled", [True, False])
def test_an_option_that_came_later_is_refused(coupled):
    _, optimizer = made({"coupled": coupled})
    optimizer.step()
    (group,) = optimizer.param_groups
    group["amsgrad"] = True
    with pytest.raises(RuntimeError, match=r"has no max_exp_avg_sq.*amsgrad was set after"):
        optimizer.step()


def test_nothing_moves_where_a_later_group_is_refused():
    table, other = (torch.nn.Parameter(torch.ones(ROWS, WIDTH)) for _ in range(2))
    groups = [{"params": [other]}, {"params": [table], "coupled": True}]
    optimizer = CoupledAdamW(groups, fused=True)
    for parameter in (table, other):
        with_gradient(parameter)
    optimizer.step()
    before = other.detach().clone()
    table.data = torch.ones(ROWS + 1, WIDTH)
    with pytest.raises(RuntimeError, match="gradient of shape"):
        optimizer.step()
    assert torch.equal(other, before)


@ways
def test_memory_that_was_freed_is_refused(way):
    """torch's operations end the process there, as where a wrapper frees gathered parameters."""
    parameter, optimizer = made(way)
    optimizer.step()
    if not way.get("coupled") and not way.get("fused"):
        pytest.skip("torch's own operations: as torch has it")
    for size in (0, 4 * ROWS * WIDTH - 4):
        parameter.untyped_storage().resize_(size)
        with pytest.raises(RuntimeError, match="freed or cut down"):
            optimizer.step()


def padded(shape):
    return torch.ones(shape[0], shape[1] + 3)[:, : shape[1]]


def column_major(shape):
    return torch.ones(shape[::-1]).T


@pytest.mark.parametrize("parameter_lies", [torch.ones, padded, column_major])
@pytest.mark.parametrize("gradient_lies", [torch.ones, padded, column_major])
def test_torchs_fused_step_is_not_given_what_it_would_walk_wrongly(parameter_lies, gradient_lies):
    """It takes every tensor for one without gaps, in the order of the parameter."""
    data = parameter_lies((ROWS, WIDTH))
    whole = data._base if data._base is not None else data
    parameter = torch.nn.Parameter(data)
    plain = torch.nn.Parameter(torch.ones(ROWS, WIDTH))
    parameter.grad = gradient_lies((ROWS, WIDTH))
    parameter.grad.copy_(torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH) - 50)
    plain.grad = parameter.grad.contiguous()
    ours = CoupledAdamW([parameter], fused=True)
    theirs = torch.optim.AdamW([plain], fused=True)
    for _ in range(2):
        ours.step()
        theirs.step()
    torch.testing.assert_close(parameter, plain)
    if parameter_lies is padded:
        assert (whole[:, WIDTH:] == 1).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, True),
        (lambda x: x[:3], False),
        (lambda x: x.T.contiguous().T, False),
        (lambda x: x[:1].expand(4, 3), False),
        (lambda x: torch.complex(x, x).conj().imag, False),
    ],
)
def test_what_may_be_walked_element_by_element(change, expected):
    tensors = [torch.ones(4, 3) for _ in range(3)]
    assert memory.elements_lie_alike(change(tensors[0]), *tensors[1:]) == expected
    assert memory.elements_lie_alike(*tensors[1:], change(tensors[0])) == expected
    turned = [one.T.contiguous().T for one in tensors]
    assert memory.elements_lie_alike(*turned)


# A default device


@ways
@pytest.mark.parametrize("options", [{}, {"differentiable": True}, {"lr": torch.tensor(1e-3)}])
def test_a_default_device_does_no_harm(way, options):
    """ "cuda" is the everyday case; "meta" shows it without a GPU."""
    if (way.get("fused") and "differentiable" in options) or way.get("foreach"):
        pytest.skip("torch refuses the two together")
    results = []
    for device in ("cpu", "meta"):
        parameter = torch.ones(ROWS, WIDTH, requires_grad=True)
        if "differentiable" in options:
            parameter = parameter.clone()
        optimizer = CoupledAdamW([parameter], **way, **options)
        parameter.grad = torch.ones(ROWS, WIDTH)
        with torch.device(device):
            for _ in range(2):
                optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            copied = CoupledAdamW([parameter], **way, **options)
            transfer_state(optimizer, copied)
            copied.step()
        (state,) = copied.state.values()
        assert {value.device.type for value in state.values()} == {"cpu"}
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_a_sparse_step_under_a_default_device():
    parameter = torch.nn.Parameter(torch.ones(ROWS, WIDTH))
    optimizer = CoupledAdamW([parameter], coupled=True, weight_decay=0)
    parameter.grad = torch.ones(ROWS, WIDTH).to_sparse(1)
    with torch.device("meta"):
        optimizer.step()
    assert (parameter < 1).all()
