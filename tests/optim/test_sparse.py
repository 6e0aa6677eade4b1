"""Sparse gradients: the lazy step of SparseAdam, with the coupled second moment."""

import pytest
import torch

from coupled_adam import CoupledAdamW

ROWS, WIDTH, STEPS = 9, 4, 30
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.0}


def batches(seed=0, everyone=False):
    """For each step the rows that occur, some of them twice, and a gradient for each occurrence."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        # Row 0 occurs nearly always, the last one hardly ever.
        occurs = torch.rand(ROWS, generator=generator) < 1 / torch.arange(1, ROWS + 1)
        rows = torch.arange(ROWS) if everyone else occurs.nonzero()[:, 0]
        rows = torch.cat([rows, rows[:1]])
        yield rows, torch.randn(len(rows), WIDTH, generator=generator, dtype=torch.float64)


def dense_of(rows, values):
    return torch.zeros(ROWS, WIDTH, dtype=values.dtype).index_add_(0, rows, values)


def sparse_of(rows, values):
    return torch.sparse_coo_tensor(rows[None], values, (ROWS, WIDTH), check_invariants=True)


def start():
    return 0.1 * torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def run(steps, dtype=torch.float64, sparse=True, optimizer_class=CoupledAdamW, **options):
    parameter = torch.nn.Parameter(start().to(dtype))
    optimizer = optimizer_class([parameter], **{**OPTIONS, **options})
    for rows, values in steps:
        values = values.to(dtype)
        parameter.grad = sparse_of(rows, values) if sparse else dense_of(rows, values)
        optimizer.step()
    return parameter.detach(), optimizer


def written_out(steps, lr, betas, eps=1e-8, amsgrad=False, maximize=False):
    """The lazy step as plain loops over rows."""
    e, m = start(), torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    v = largest = torch.zeros(WIDTH, dtype=torch.float64)
    for t, (rows, values) in enumerate(steps, start=1):
        g = dense_of(rows, values) * (-1 if maximize else 1)
        v = betas[1] * v + (1 - betas[1]) * (g**2).sum(0) / ROWS
        largest = torch.maximum(largest, v)
        v_hat = (largest if amsgrad else v) / (1 - betas[1] ** t)
        for i in set(rows.tolist()):
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g[i]
            e[i] -= lr * m[i] / (1 - betas[0] ** t) / (v_hat.sqrt() + eps)
    return e


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_lazy_step_is_what_the_loops_say(options, dtype, tolerance):
    found, _ = run(batches(), dtype, coupled=True, **options)
    expected = written_out(batches(), OPTIONS["lr"], OPTIONS["betas"], **options)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_without_first_moment_lazy_and_dense_are_the_same():
    """Rows that are absent have nothing to go on with then, so that nothing is put off."""
    options = {"coupled": True, "betas": (0.0, 0.95)}
    lazy, _ = run(batches(), **options)
    dense, _ = run(batches(), sparse=False, **options)
    torch.testing.assert_close(lazy, dense, rtol=0, atol=1e-14)


def test_when_every_row_occurs_lazy_and_dense_are_the_same():
    lazy, _ = run(batches(everyone=True), coupled=True)
    dense, _ = run(batches(everyone=True), sparse=False, coupled=True)
    torch.testing.assert_close(lazy, dense, rtol=0, atol=1e-14)
    partly, _ = run(batches(), coupled=True)
    partly_dense, _ = run(batches(), sparse=False, coupled=True)
    assert (partly - partly_dense).abs().max() > 1e-3


def test_the_coupled_lazy_step_is_not_sparse_adams():
    coupled, _ = run(batches(), coupled=True)
    options = {key: value for key, value in OPTIONS.items() if key != "weight_decay"}
    parameter = torch.nn.Parameter(start())
    optimizer = torch.optim.SparseAdam([parameter], **options)
    for rows, values in batches():
        parameter.grad = sparse_of(rows, values)
        optimizer.step()
    assert (coupled - parameter.detach()).abs().max() > 1e-2


def test_an_absent_row_waits_while_the_shared_moment_decays():
    table = torch.nn.Embedding(4, 3, sparse=True)
    optimizer = CoupledAdamW(table.parameters(), coupled=True, **OPTIONS)
    table(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    (state,) = optimizer.state.values()
    weight, first, second = (
        x.detach().clone() for x in (table.weight, state["exp_avg"], state["exp_avg_sq"])
    )
    optimizer.zero_grad()
    empty = torch.empty(0, dtype=torch.long)
    table.weight.grad = torch.sparse_coo_tensor(
        empty[None], torch.empty(0, 3), (4, 3), check_invariants=True
    )
    optimizer.step()
    assert torch.equal(table.weight, weight)
    assert torch.equal(state["exp_avg"], first)
    torch.testing.assert_close(state["exp_avg_sq"], 0.95 * second)
    assert (second > 0).all()
    assert state["step"] == 2


def test_dense_and_sparse_gradients_may_take_turns():
    parameter = torch.nn.Parameter(start())
    optimizer = CoupledAdamW([parameter], coupled=True, **OPTIONS)
    for k, (rows, values) in enumerate(batches(everyone=True)):
        sparse = sparse_of(rows, values)
        parameter.grad = sparse if k % 2 else sparse.to_dense()
        optimizer.step()
    expected, _ = run(batches(everyone=True), sparse=False, coupled=True)
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-14)


def test_the_gradient_is_left_alone():
    _, optimizer = run(list(batches())[:1], coupled=True)
    parameter = optimizer.param_groups[0]["params"][0]
    before = parameter.grad.to_dense().clone()
    optimizer.step()
    assert torch.equal(parameter.grad.to_dense(), before)


@pytest.mark.parametrize(
    ("options", "both", "message"),
    [
        ({"coupled": False}, False, "only coupled groups"),
        ({"coupled": True, "weight_decay": 0.1}, False, r"weight_decay=0\.0"),
        ({"coupled": True}, True, "sparse in both dimensions"),
    ],
)
def test_what_a_lazy_step_cannot_do_is_refused(options, both, message):
    parameter = torch.nn.Parameter(start())
    optimizer = CoupledAdamW([parameter], **{**OPTIONS, **options})
    gradient = torch.ones(ROWS, WIDTH, dtype=torch.float64)
    parameter.grad = gradient.to_sparse(2 if both else 1)
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert torch.equal(parameter, start())
