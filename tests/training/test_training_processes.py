"""Training on two processes: the run of one process, a folder written once, and resuming."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import forks
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from test_loop import assert_same_run, assert_same_tree, checkpoint_of, files_of, steps_in

from coupled_adam import training
from coupled_adam.arms import MAIN
from coupled_adam.gpt import GPTConfig
from coupled_adam.text import synthetic
from coupled_adam.training import TrainingConfig, load_run, train
from coupled_adam.training.processes import Processes

OPTIMIZERS = MAIN

if sys.platform != "win32":
    import fcntl

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"
)

PROCESSES = 2
MODEL = GPTConfig(200, context=8, layers=1, heads=2, width=16)


def make_config(optimizer="coupled", **changes):
    recipe = {"steps": 20, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5}
    recipe |= {"evaluate_every": 5, "evaluation_tokens": 72, "checkpoint_every": 4}
    return TrainingConfig(MODEL, optimizer, **{**recipe, **changes})


def member(rank, meeting, answers, job, arguments):
    """One of the processes; reports what its job returns, or how it failed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=PROCESSES)
    try:
        answers.put((rank, job(rank, *arguments), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A function that runs a job in two processes that know of each other."""
    context = forks.context()
    meetings = tmp_path_factory.mktemp("meetings")

    def run(job, *arguments):
        answers = context.Queue()
        meeting = meetings / str(len(list(meetings.iterdir())))
        members = [
            context.Process(target=member, args=(rank, meeting, answers, job, arguments))
            for rank in range(PROCESSES)
        ]
        for process in members:
            process.start()
        found = sorted((answers.get(timeout=120) for _ in members), key=lambda answer: answer[0])
        for process in members:
            process.join()
        failures = [failure for *_, failure in found if failure]
        assert not failures, "\n".join(failures)
        return [result for _, result, _ in found]

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return synthetic(200, tokens=10_240, cache=tmp_path_factory.mktemp("text"))


def trained(rank, config, corpus, folder=None, interrupt_at=None):
    seen = []

    def observe(step):
        seen.append(step.targets.tolist())
        if step.number == interrupt_at:
            raise KeyboardInterrupt

    try:
        run = train(config, corpus, folder, observe=observe, progress=False)
    except KeyboardInterrupt:
        return None
    weights = {name: weight.tolist() for name, weight in run.model.state_dict().items()}
    return run.metrics.to_dict("list"), weights, seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_processes_make_the_run_of_one(together, corpus, optimizer, accumulation):
    config = make_config(optimizer, accumulation=accumulation)
    whole = []
    alone = train(
        config, corpus, progress=False, observe=lambda step: whole.append(step.targets.tolist())
    )
    results = together(trained, config, corpus)
    for metrics, weights, _ in results:
        pd.testing.assert_frame_equal(pd.DataFrame(metrics), alone.metrics, rtol=1e-5, atol=1e-6)
        for name, weight in alone.model.state_dict().items():
            torch.testing.assert_close(torch.tensor(weights[name]), weight, rtol=0, atol=1e-6)
    (metrics, weights, first), (other_metrics, other_weights, second) = results
    assert weights == other_weights
    assert str(metrics) == str(other_metrics)  # as text: NaN is not equal to itself
    # Each has its share, and together they have the batch.
    assert [one + other for one, other in zip(first, second, strict=True)] == whole


def test_a_folder_is_written_once_and_goes_on(together, corpus, tmp_path):
    config = make_config()
    together(trained, config, corpus, tmp_path / "whole")
    assert together(trained, config, corpus, tmp_path / "halted", 10) == [None, None]
    assert checkpoint_of(tmp_path / "halted")["step"] == 8
    results = together(trained, config, corpus, tmp_path / "halted")
    assert [len(seen) for *_, seen in results] == [12, 12]
    halted, whole = (load_run(tmp_path / name) for name in ("halted", "whole"))
    assert_same_run(halted, whole)
    assert_same_tree(checkpoint_of(halted.folder), checkpoint_of(whole.folder))
    assert (halted.folder / "metrics.jsonl").read_text() == (
        (whole.folder / "metrics.jsonl").read_text()
    )
    assert files_of(halted.folder) == files_of(whole.folder)
    described = json.loads((whole.folder / "config.json").read_text())
    assert described["sessions"][-1]["processes"] == PROCESSES


def test_a_run_of_two_processes_can_go_on_in_one(together, corpus, tmp_path):
    config = make_config()
    together(trained, config, corpus, tmp_path / "run", 10)
    resumed = train(config, corpus, tmp_path / "run", progress=False)
    alone = train(config, corpus, progress=False)
    pd.testing.assert_frame_equal(resumed.metrics, alone.metrics, rtol=1e-5, atol=1e-6)


def test_more_processes_than_windows_to_validate_with(together, corpus):
    config = make_config(evaluation_tokens=8, steps=5)
    alone = train(config, corpus, progress=False)
    for metrics, *_ in together(trained, config, corpus):
        pd.testing.assert_frame_equal(pd.DataFrame(metrics), alone.metrics, rtol=1e-5, atol=1e-6)


STEPS = 60
UNDER_TORCHRUN = """
import os
import sys
import time
from pathlib import Path

from coupled_adam.cli import _processes
from coupled_adam.text.corpus import open_corpus
from coupled_adam.training import train
from test_training_processes import STEPS, make_config

if __name__ == "__main__":
    Path(sys.argv[4], os.environ["RANK"]).write_text(str(os.getpid()))
    with _processes("cpu") as device:
        train(
            make_config(steps=STEPS, checkpoint_every=7),
            open_corpus(Path(sys.argv[1]), sys.argv[2]),
            sys.argv[3],
            device=device,
            observe=lambda step: time.sleep(0.1 if step.number > 20 else 0),  # to be killed
            progress=False,
        )
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_run_that_is_killed_under_torchrun_goes_on(together, corpus, tmp_path):
    """Torchrun first: its workers train on alone, so nobody else may until they are killed too."""
    folder, pids = tmp_path / "run", tmp_path / "pids"
    config = make_config(steps=STEPS, checkpoint_every=7)
    pids.mkdir()
    (tmp_path / "script.py").write_text(UNDER_TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += map(str, [tmp_path / "script.py", corpus.folder, corpus.name, folder, pids])
    paths = (Path(__file__).parent, Path(forks.__file__).parent, Path(training.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    with subprocess.Popen(command, env=environment) as torchrun:
        try:
            while torchrun.poll() is None and steps_in(folder) < 25:
                time.sleep(0.005)
            torchrun.kill()
            torchrun.wait()
            with pytest.raises(ValueError, match="workers of a torchrun that was killed"):
                train(config, corpus, folder, progress=False)
        finally:
            torchrun.kill()
            for path in pids.iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.read_text()), signal.SIGKILL)
    free_again = os.open(folder, os.O_RDONLY)
    fcntl.flock(free_again, fcntl.LOCK_EX)  # waits until they are gone
    os.close(free_again)
    whole = load_run(folder).metrics.step.tolist()
    assert whole == list(range(len(whole)))
    assert 0 < len(whole) < STEPS
    results = together(trained, config, corpus, folder)
    assert [len(seen) for *_, seen in results] == [STEPS + 1 - len(whole)] * PROCESSES
    together(trained, config, corpus, tmp_path / "unkilled")
    killed, unkilled = (load_run(where) for where in (folder, tmp_path / "unkilled"))
    assert_same_run(killed, unkilled)
    assert_same_tree(checkpoint_of(killed.folder), checkpoint_of(unkilled.folder))
    assert files_of(killed.folder) == files_of(unkilled.folder)


def refusal(rank, config, corpus):
    with pytest.raises(ValueError) as caught:
        train(config, corpus, progress=False)
    return str(caught.value)


def test_a_batch_that_cannot_be_shared_is_refused(together, corpus):
    config = make_config(batch_size=5)
    for message in together(refusal, config, corpus):
        assert "a batch of 5 sequences cannot be shared equally among 2 processes" in message


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "pieces"),
    [(96, 8, 1, 8), (96, 8, 2, 4), (96, 8, 8, 1), (96, 2, 8, 1), (96, 8, 3, 4), (6, 6, 2, 3)],
)
def test_the_processes_share_the_pieces(monkeypatch, batch_size, accumulation, processes, pieces):
    """So that what fits into the memory of one GPU does not fail on many, and stays large."""
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", processes)):
        monkeypatch.setattr(dist, name, lambda value=value: value)
    shared = Processes(batch_size, accumulation)
    assert shared.pieces == pieces
    assert batch_size / processes / pieces <= batch_size / accumulation
