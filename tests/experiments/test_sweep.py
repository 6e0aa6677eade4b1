"""Arms side by side: pairing, and runs that are found instead of made."""

import json
import math
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace

import forks
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from small_run import CONFIG, STEPS, VOCABULARY

from coupled_adam import CoupledAdamW, experiments, statistics
from coupled_adam.arms import ARMS, MAIN, Arm
from coupled_adam.errors import RefusedError
from coupled_adam.experiments import sweep
from coupled_adam.files import locked
from coupled_adam.text import TextError, synthetic
from coupled_adam.training import initial_embedding, train

OPTIMIZERS = MAIN


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


# --- runs that are found, not made -----------------------------------------------------------


def jobs_of(corpus, optimizers=("adamw", "coupled"), seeds=(0, 1), **changes):
    return [
        (replace(CONFIG, optimizer=name, seed=seed, **changes), corpus)
        for seed in seeds
        for name in optimizers
    ]


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.name == other.name and one.diverged_at == other.diverged_at
        pd.testing.assert_frame_equal(one.metrics, other.metrics, check_exact=True)
        if one.embedding is not None:
            np.testing.assert_array_equal(one.embedding, other.embedding)
        if one.second_moment is not None:
            np.testing.assert_array_equal(one.second_moment, other.second_moment)


def sessions_of(folder):
    return [
        len(json.loads(path.read_text())["sessions"])
        for path in sorted(folder.glob("*/config.json"))
    ]


def test_a_run_s_name_changes_with_all_that_it_depends_on(corpus, tmp_path, monkeypatch):
    other = synthetic(VOCABULARY, tokens=10_240, seed=1, cache=tmp_path)
    name = experiments.run_name(CONFIG, corpus)
    assert name == experiments.run_name(replace(CONFIG, accumulation=3), corpus)
    for whole in ({"gradient_clip": 1}, {"embedding_multiplier": 4}, {"embedding_betas": (0, 0.5)}):
        real = {
            key: (0.0, 0.5) if key == "embedding_betas" else float(v) for key, v in whole.items()
        }
        both = [
            experiments.run_name(replace(CONFIG, **changes), corpus) for changes in (whole, real)
        ]
        assert both[0] == both[1]
    names = {
        name,
        experiments.run_name(CONFIG, other),
        *(
            experiments.run_name(replace(CONFIG, **{key: value}), corpus)
            for key, value in (
                ("seed", 1),
                ("optimizer", "adamw"),
                ("learning_rate", 2e-2),
                ("betas", (0.9, 0.99)),
                ("model", replace(CONFIG.model, width=32)),
            )
        ),
    }
    assert len(names) == 7
    monkeypatch.setattr(sweep, "version", lambda: "99")
    assert experiments.run_name(CONFIG, corpus) not in names


def test_a_second_call_finds_every_run_and_trains_nothing(corpus, tmp_path, monkeypatch):
    jobs = jobs_of(corpus)
    made = experiments.run_sweep(jobs, tmp_path, workers=2, progress=False)
    assert sessions_of(tmp_path) == [1, 1, 1, 1]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoint.pt")}
    monkeypatch.setattr(CoupledAdamW, "step", lambda *_: pytest.fail("a step"))
    found = experiments.run_sweep(jobs, tmp_path, workers=1, progress=False)
    assert_same(made, found)
    assert sessions_of(tmp_path) == [1, 1, 1, 1]
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoint.pt")}


def test_a_sweep_in_memory_is_the_sweep_on_disk(corpus, tmp_path):
    jobs = jobs_of(corpus, seeds=(3,))
    assert_same(
        experiments.run_sweep(jobs, workers=1, progress=False),
        experiments.run_sweep(jobs, tmp_path, workers=1, progress=False),
    )


def test_a_run_in_use_is_left_to_the_other_process_and_read_when_it_is_done(
    corpus, tmp_path, monkeypatch
):
    jobs = jobs_of(corpus, seeds=(0,))
    names = [experiments.run_name(*job) for job in jobs]
    (tmp_path / names[0]).mkdir()
    slept = []

    with ExitStack() as other_process:
        other_process.enter_context(locked(tmp_path / names[0] / ".lock"))

        def finished(seconds):
            slept.append(sorted(path.name for path in tmp_path.glob("*/checkpoint.pt")))
            assert (tmp_path / names[1] / "checkpoint.pt").exists()  # the next was taken meanwhile
            assert not (tmp_path / names[0] / "checkpoint.pt").exists()
            other_process.close()

        monkeypatch.setattr(sweep.time, "sleep", finished)
        outcomes = experiments.run_sweep(jobs, tmp_path, workers=1, progress=False)
    assert len(slept) == 1
    assert [outcome.name for outcome in outcomes] == names


def test_a_diverged_run_is_a_result_and_is_remembered(corpus, tmp_path, monkeypatch):
    hot = [(replace(CONFIG, optimizer="sgd", learning_rate=1e4, warmup_steps=0), corpus)]
    jobs = [*hot, *jobs_of(corpus, seeds=(0,))]
    first = experiments.run_sweep(jobs, tmp_path, workers=1, progress=False)
    assert first[0].diverged_at is not None and 1 < first[0].diverged_at <= STEPS
    assert first[0].metrics.step.tolist() == list(range(first[0].diverged_at))
    assert first[0].final["validation_loss"] == math.inf and math.isnan(first[0].final["isotropy"])
    assert [outcome.diverged_at for outcome in first[1:]] == [None, None]
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: pytest.fail("tried again"))
    assert_same(first, experiments.run_sweep(jobs, tmp_path, workers=1, progress=False))
    in_memory = experiments.run_sweep(jobs[1:], workers=1, progress=False)
    assert_same(first[1:], in_memory)


def test_a_diverged_arm_does_not_drop_out_of_a_mean(corpus):
    hot = replace(CONFIG, learning_rate=1e4, warmup_steps=0)
    table = experiments.compare(
        hot, corpus, optimizers=("sgd", "coupled"), seeds=(0, 1), workers=1, progress=False
    )
    assert {key for key in table.diverged if key[0] == "sgd"} == {("sgd", 0), ("sgd", 1)}
    assert len(table.final) == 4
    with pytest.raises(ValueError, match="inf"):
        statistics.summarise(table.final, ["validation_loss"])


def test_the_same_run_twice_is_refused(corpus):
    with pytest.raises(RefusedError, match="two runs of the sweep are the same, coupled-0-"):
        experiments.run_sweep([(CONFIG, corpus), (CONFIG, corpus)], progress=False)


def whole_sweep(text, runs, outcome):
    """Twelve runs, one at a time: workers of joblib's would take seconds to be imported."""
    corpus = synthetic(VOCABULARY, tokens=10_240, cache=text)
    jobs = jobs_of(corpus, ("sgd", "adamw", "coupled"), range(4), steps=40, checkpoint_every=7)
    outcomes = experiments.run_sweep(jobs, runs, workers=1, progress=False)
    found = [(one.name, one.final["validation_loss"]) for one in outcomes]
    outcome.write_text(json.dumps(found))


@pytest.fixture
def begin(tmp_path):
    """A function that begins with that sweep in a process; and one to its end, with its outcome."""
    synthetic(VOCABULARY, tokens=10_240, cache=tmp_path / "text")

    def begin(runs):
        outcome = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        outcome.touch()
        arguments = (tmp_path / "text", runs, outcome)
        process = forks.context().Process(target=whole_sweep, args=arguments)
        process.start()

        def result():
            process.join()
            assert process.exitcode == 0
            return json.loads(outcome.read_text())

        return process, result

    return begin


def test_a_sweep_that_was_killed_three_times_ends_as_the_undisturbed_one(begin, tmp_path):
    def rows(folder):
        return sum(len(path.read_text().splitlines()) for path in folder.glob("*/metrics.jsonl"))

    killed = tmp_path / "killed"
    random = np.random.default_rng(7)
    for number in range(1, 4):
        both = [begin(killed)[0] for _ in range(2)]
        # 12 runs of 41 rows; somewhere in each quarter of the work.
        wanted = int((number - random.random()) * 41 * 12 / 4)
        deadline = time.monotonic() + 120
        while rows(killed) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        for process in both:
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    assert 0 < rows(killed) < 41 * 12
    last = begin(killed)[1]()
    whole = begin(tmp_path / "whole")[1]()
    assert last == whole
    assert sessions_of(tmp_path / "whole") == [1] * 12
    assert sum(sessions_of(killed)) > 12  # some of them had begun, and went on
    sessions = sum(sessions_of(killed))
    assert begin(killed)[1]() == last
    assert sum(sessions_of(killed)) == sessions


def test_two_processes_work_on_one_sweep(begin, tmp_path):
    both = [begin(tmp_path / "runs")[1] for _ in range(2)]
    one, other = [result() for result in both]
    assert one == other and len(one) == 12
    assert sessions_of(tmp_path / "runs") == [1] * 12  # none was made twice


def test_a_dask_cluster_makes_the_runs(corpus, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    jobs = jobs_of(corpus)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask"),
    ):
        by_cluster = experiments.run_sweep(jobs, tmp_path, progress=False)
        assert len(client.scheduler_info()["workers"]) == 2
    assert_same(by_cluster, experiments.run_sweep(jobs, workers=1, progress=False))


# --- one more arm ----------------------------------------------------------------------------


class SignDescent(torch.optim.Optimizer):
    def __init__(self, embeddings, learning_rate):
        super().__init__(embeddings, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


def test_an_arm_that_is_added_is_trained_in_the_workers_too(corpus, monkeypatch):
    sign = Arm("sign", "sign descent", "#E69F00", "^", optimizer=SignDescent)
    monkeypatch.setitem(ARMS, "sign", sign)
    model = replace(CONFIG.model, tied=False)
    compared = experiments.compare(
        replace(CONFIG, model=model), corpus, optimizers=("sign", "adamw"), seeds=(0,), workers=2,
        progress=False,
    )  # fmt: skip
    assert set(compared.final.optimizer) == {"sign", "adamw"}
    before = initial_embedding(replace(CONFIG, model=model)).numpy()
    moved = compared.embeddings["sign", 0] - before
    rates = sum(CONFIG.learning_rate_at(step) for step in range(1, STEPS + 1))
    # Sign descent counts heads: every coordinate takes whole steps, so none goes further.
    assert np.abs(moved).max() == pytest.approx(rates, rel=1e-4)


def test_what_an_arm_adds_to_the_loss_and_repairs_after_the_step(corpus, monkeypatch):
    def centre(model):
        with torch.no_grad():
            model.output_embedding.sub_(model.output_embedding.mean(0))

    def z_loss(logits, embedding):
        return 0.1 * logits.logsumexp(-1).square().mean()

    monkeypatch.setitem(ARMS, "centred", Arm("centred", "centred", "#000000", "x", repair=centre))
    monkeypatch.setitem(ARMS, "z", Arm("z", "z-loss", "#000000", "x", loss_term=z_loss))
    config = replace(CONFIG, model=replace(CONFIG.model, tied=False))
    runs = {
        name: train(replace(config, optimizer=name), corpus, progress=False)
        for name in ("adamw", "centred", "z")
    }
    assert runs["centred"].model.output_embedding.mean(0).abs().max() < 1e-7
    assert runs["adamw"].model.output_embedding.mean(0).abs().max() > 1e-3
    # What is reported is the cross-entropy: at the first step the same as without the term.
    first = {name: run.metrics.loss[1] for name, run in runs.items()}
    assert first["z"] == pytest.approx(first["adamw"])
    gradients = {name: run.metrics.gradient_norm[1] for name, run in runs.items()}
    assert gradients["z"] != pytest.approx(gradients["adamw"], rel=1e-3)
