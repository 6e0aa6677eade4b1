"""One run, watched: what is kept is what the observer sees."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_run import CONFIG, STEPS, VOCABULARY

from coupled_adam import experiments
from coupled_adam.arms import MAIN
from coupled_adam.gpt import GPT
from coupled_adam.training import train

OPTIMIZERS = MAIN


@pytest.fixture(scope="module")
def trajectories(corpus):
    return {
        optimizer: experiments.watch(replace(CONFIG, optimizer=optimizer), corpus, (1, 3, 6))
        for optimizer in OPTIMIZERS
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_displacement_is_the_way_of_the_mean_from_the_start(trajectories, optimizer):
    trajectory = trajectories[optimizer]
    torch.manual_seed(CONFIG.seed)
    start = GPT(CONFIG.model).output_embedding.detach().double().mean(0).numpy()
    end = trajectory.model.output_embedding.detach().double().mean(0).numpy()
    assert trajectory.displacement.shape == (STEPS, 16)
    np.testing.assert_array_equal(trajectory.displacement[-1], end - start)
    np.testing.assert_array_equal(
        trajectory.displacement[2],
        trajectory.embeddings[3].mean(0) - trajectory.embeddings[0].mean(0),
    )


def test_snapshots_are_those_asked_for_and_are_copies(trajectories):
    snapshots = trajectories["coupled"].embeddings
    assert list(snapshots) == [0, 1, 3, 6]
    final = trajectories["coupled"].model.output_embedding.detach().double().numpy()
    np.testing.assert_array_equal(snapshots[6], final)
    assert not np.array_equal(snapshots[3], snapshots[6])


def test_a_trajectory_is_what_the_observer_sees(corpus, trajectories):
    steps = []
    config = replace(CONFIG, optimizer="coupled")
    run = train(config, corpus, observe=steps.append, progress=False)
    trajectory = trajectories["coupled"]
    pd.testing.assert_frame_equal(run.metrics, trajectory.metrics)
    for t, step in enumerate(steps):
        hidden = step.hidden_states.double()
        np.testing.assert_allclose(trajectory.mean_hidden[t], hidden.mean(0), atol=1e-6)
        np.testing.assert_allclose(trajectory.std_hidden[t], hidden.std(0), rtol=1e-5)
        assert trajectory.learning_rates[t] == config.learning_rate_at(t + 1)
        assert trajectory.absent[t] == pytest.approx(
            1 - len(set(step.targets.tolist())) / VOCABULARY
        )


def recorded_gradients(corpus, config):
    """The clipped gradients of the output embeddings; the loop leaves them behind at each step."""
    gradients = []

    def observe(step):
        gradients.append(step.model.output_embedding.grad.double().numpy().copy())

    train(config, corpus, observe=observe, progress=False)
    return np.array(gradients)


@pytest.mark.parametrize("optimizer", ["adamw", "coupled"])
def test_the_second_moment_is_the_weighted_mean_of_squared_gradients(
    corpus, trajectories, optimizer
):
    squares = recorded_gradients(corpus, replace(CONFIG, optimizer=optimizer)) ** 2
    weights = 0.95 ** np.arange(STEPS - 1, -1, -1)
    # A weighted mean is what the correction of Adam's bias makes of the running sum.
    expected = np.tensordot(weights / weights.sum(), squares, axes=1)
    if optimizer == "coupled":
        expected = expected.mean(0)
    measured = trajectories[optimizer].second_moment
    assert measured.shape == expected.shape
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-15)


def test_sgd_has_no_second_moment(trajectories):
    assert trajectories["sgd"].second_moment is None


def test_adam_moves_the_mean_and_coupled_adam_does_not(corpus):
    """Untied, since the gradients of input embeddings do not sum to zero."""
    model = replace(CONFIG.model, tied=False)
    moved = {
        optimizer: np.linalg.norm(
            experiments.watch(
                replace(CONFIG, optimizer=optimizer, model=model), corpus, ()
            ).displacement[-1]
        )
        for optimizer in ("adamw", "coupled")
    }
    assert moved["coupled"] < 1e-4 * moved["adamw"]


@pytest.mark.parametrize("bins", [1, 4, 7])
def test_shares_by_step_add_up_to_one(corpus, trajectories, bins):
    shares = experiments.shares_by_step(trajectories["adamw"], corpus.counts, bins)
    assert shares.step.unique().tolist() == [1, 3, 6]
    assert shares.groupby("step")["class"].apply(list).tolist() == [list(range(1, bins + 1))] * 3
    np.testing.assert_allclose(shares.groupby("step").share.sum(), 1)


def test_shares_by_step_are_of_the_rarest_first(trajectories):
    start = np.zeros((4, 2))
    moved = np.array([[0.0, 0], [3, 0], [1, 5], [0, -5]])
    trajectory = replace(trajectories["adamw"], embeddings={0: start, 2: moved})
    shares = experiments.shares_by_step(trajectory, np.array([9, 1, 7, 3]), bins=2)
    # Rarest: tokens 1 and 3. The mean moves along the first axis by (0 + 3 + 1 + 0) / 4.
    assert shares.share.tolist() == [0.75, 0.25]
