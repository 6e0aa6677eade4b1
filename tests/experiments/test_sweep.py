"""Arms side by side: pairing, and runs that are found instead of made."""

from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from coupled_adam import experiments
from coupled_adam.arms import ARMS
from coupled_adam.gpt import GPTConfig
from coupled_adam.text import TextError, synthetic
from coupled_adam.training import TrainingConfig, train

OPTIMIZERS = tuple(ARMS)
VOCABULARY, STEPS = 200, 6
CONFIG = TrainingConfig(
    GPTConfig(VOCABULARY, context=8, layers=1, heads=2, width=16),
    steps=STEPS,
    batch_size=3,
    learning_rate=1e-2,
    warmup_steps=2,
    evaluate_every=4,
    evaluation_tokens=64,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return synthetic(VOCABULARY, tokens=10_240, cache=tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def comparison(corpus):
    return experiments.compare(CONFIG, corpus, seeds=(0, 5), workers=2, progress=False)


def test_there_is_one_run_per_arm_and_seed(comparison):
    runs = comparison.metrics.groupby(["optimizer", "seed"])
    assert set(runs.groups) == {(o, s) for o in OPTIMIZERS for s in (0, 5)}
    for _, run in runs:
        assert run.step.tolist() == list(range(STEPS + 1))
    assert len(comparison.final) == 6
    assert (comparison.final.step == STEPS).all()
    assert set(comparison.embeddings) == set(runs.groups)


def test_arms_of_a_seed_start_together_and_then_part(comparison):
    metrics = comparison.metrics
    for column, step in (("validation_loss", 0), ("loss", 1)):
        at = metrics[metrics.step == step].groupby("seed")[column]
        assert (at.nunique() == 1).all()
        assert metrics[metrics.step == step][column].nunique() == 2
    assert comparison.final.validation_loss.nunique() == 6


def test_the_number_of_workers_does_not_change_a_bit(corpus, comparison):
    alone = experiments.compare(
        CONFIG, corpus, optimizers=("coupled",), seeds=(5,), workers=1, progress=False
    )
    of_both = comparison.metrics.query("optimizer == 'coupled' and seed == 5")
    pd.testing.assert_frame_equal(alone.metrics, of_both.reset_index(drop=True), check_exact=True)
    arm = ("coupled", 5)
    np.testing.assert_array_equal(alone.embeddings[arm], comparison.embeddings[arm])
    np.testing.assert_array_equal(alone.second_moments[arm], comparison.second_moments[arm])


def test_a_compared_arm_is_the_run_that_train_makes(corpus, comparison):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in every process of a comparison
    try:
        run = train(replace(CONFIG, optimizer="adamw", seed=0), corpus, progress=False)
    finally:
        torch.set_num_threads(threads)
    weight = run.model.output_embedding.detach().numpy()
    np.testing.assert_array_equal(comparison.embeddings["adamw", 0], weight)
    rows = comparison.metrics.query("optimizer == 'adamw' and seed == 0")
    assert rows.loss.tolist()[1:] == run.metrics.loss.tolist()[1:]


def test_second_moments_have_the_shape_of_their_arm(comparison):
    shapes = {arm: moment.shape for arm, moment in comparison.second_moments.items()}
    assert shapes == {
        (optimizer, seed): shape
        for optimizer, shape in (("adamw", (VOCABULARY,)), ("coupled", (16,)))
        for seed in (0, 5)
    }


def test_an_unknown_arm_is_refused_before_anything_runs(corpus):
    with pytest.raises(ValueError, match="optimizer must be one of"):
        experiments.compare(CONFIG, corpus, optimizers=("adam",), progress=False)


@pytest.mark.parametrize("empty", ["optimizers", "seeds"])
def test_nothing_to_compare_is_refused(corpus, empty):
    with pytest.raises(ValueError, match="nothing to compare"):
        experiments.compare(CONFIG, corpus, **{empty: ()}, progress=False)


def test_the_error_of_a_run_comes_through(tmp_path):
    gone = synthetic(VOCABULARY, tokens=10_240, cache=tmp_path)
    (gone.folder / "meta.json").unlink()  # each process opens the text again
    with pytest.raises((TextError, BrokenProcessPool)):
        experiments.compare(
            CONFIG, gone, optimizers=("sgd",), seeds=(0, 1), workers=2, progress=False
        )
