"""Every arm trains: its optimizers step all parameters, and the loss falls."""

import numpy as np
import pytest
import torch

from coupled_adam.arms import ARMS, make_optimizers
from coupled_adam.evaluation.shape import second_moment
from coupled_adam.gpt import GPT, GPTConfig
from coupled_adam.text import synthetic
from coupled_adam.training import TrainingConfig, load_run, train

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


@pytest.mark.parametrize("name", ARMS)
def test_a_run_is_kept_and_its_second_moment_measured(name, tmp_path):
    # Arms that kept their step as a plain number could not be measured, and with Muon on the
    # matrices its momentum was taken for the embeddings' state.
    if "muon" in name and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    corpus = synthetic(40, 10_240, 1.0)
    model = GPTConfig(corpus.vocabulary_size, context=8, layers=1, heads=2, width=16)
    config = TrainingConfig(
        model, name, steps=4, batch_size=2, warmup_steps=1, evaluate_every=4,
        evaluation_tokens=64, checkpoint_every=2, embedding_multiplier=1.0,
    )  # fmt: skip
    whole = train(config, corpus, tmp_path / "run", progress=False)
    again = load_run(tmp_path / "run")
    torch.testing.assert_close(again.model.embedding, whole.model.embedding, rtol=0, atol=0)
    kept = second_moment(tmp_path / "run")
    if name in ("sgd", "signum"):
        assert whole.second_moment is None and kept is None
    else:
        assert whole.second_moment.shape == kept.shape
        assert kept.shape[-1] == 16 and (kept > 0).all()
        # One of them is corrected for its bias, the other is not.
        (group,) = whole.optimizers[0].param_groups[:1]
        correction = 1 - group["betas"][1] ** 4
        np.testing.assert_allclose(whole.second_moment * correction, kept, rtol=1e-5)


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
        (_, of_matrices) = make_optimizers(model, "muon", **given)
        assert of_matrices.param_groups[0]["weight_decay"] == 0.3


def test_no_two_arms_look_alike():
    looks = [(one.colour, one.marker) for one in ARMS.values()]
    assert len(set(looks)) == len(looks)
    assert len({one.label for one in ARMS.values()}) == len(looks)
