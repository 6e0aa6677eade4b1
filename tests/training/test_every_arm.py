"""Every arm trains: its optimizers step all parameters, and the loss falls."""

import pytest
import torch

from coupled_adam.arms import ARMS, make_optimizers
from coupled_adam.gpt import GPT, GPTConfig

GIVEN = {"learning_rate": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ARMS)
def test_an_arm_steps_every_parameter_once(name, tied):
    if "muon" in name and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    torch.manual_seed(0)
    model = GPT(GPTConfig(40, context=8, layers=1, heads=2, width=16, tied=tied))
    multiplier = 1.0 if name == "sgd" else None  # its 300 is for other sizes
    optimizers = make_optimizers(model, name, multiplier=multiplier, **GIVEN)
    stepped = [p for one in optimizers for group in one.param_groups for p in group["params"]]
    assert len(stepped) == len(set(map(id, stepped))) == len(list(model.parameters()))
    assert all("lr_multiplier" in group for one in optimizers for group in one.param_groups)
    before = [p.detach().clone() for p in model.parameters()]
    tokens = torch.randint(40, (4, 9), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(20):
        model.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        term = ARMS[name].loss_term
        extra = 0.0
        if term is not None:
            logits = model.head(model.hidden_states(tokens[:, :-1])).flatten(0, 1)
            extra = term(logits, model.output_embedding)
        (loss + extra).backward()
        for optimizer in optimizers:
            optimizer.step()
        repair = ARMS[name].repair
        if repair is not None:
            repair(model)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_recipe_reaches_the_alternatives_and_muon():
    model = GPT(GPTConfig(40, context=8, layers=1, heads=2, width=16))
    given = GIVEN | {"betas": (0.8, 0.7), "eps": 1e-5, "weight_decay": 0.3}
    (of_table, _) = make_optimizers(model, "adam-factored", **given)
    (group,) = of_table.param_groups
    assert (group["betas"], group["eps"], group["share"]) == ((0.8, 0.7), 1e-5, "factored")
    (of_table, _) = make_optimizers(model, "ember", embedding={"eps": 1e-3, "betas": None}, **given)
    (group,) = of_table.param_groups
    assert (group["betas"], group["eps"]) == ((0.0, 0.999), 1e-3)  # the arm's own, and the run's
    if hasattr(torch.optim, "Muon"):
        (of_matrices, _) = make_optimizers(model, "muon", **given)
        assert of_matrices.param_groups[0]["weight_decay"] == 0.3


def test_no_two_arms_look_alike():
    looks = [(one.colour, one.marker) for one in ARMS.values()]
    assert len(set(looks)) == len(looks)
    assert len({one.label for one in ARMS.values()}) == len(looks)
