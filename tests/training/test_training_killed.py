"""A run that is killed without warning, twenty times, ends where the unkilled run ends."""

import os
import random
import signal
import sys
import threading
import time

import forks
import pytest
import torch

from coupled_adam.gpt import GPTConfig
from coupled_adam.text import synthetic
from coupled_adam.training import TrainingConfig, load_run, train

KILLS = 5  # of each of four runs
MODEL = GPTConfig(200, context=8, layers=1, heads=2, width=16)
RUNS = [
    {"optimizer": "coupled", "checkpoint_every": 3},
    {"optimizer": "adamw", "checkpoint_every": 10, "accumulation": 2},
    {"optimizer": "sgd", "checkpoint_every": 1},
    {"optimizer": "coupled", "checkpoint_every": 7, "precision": "bfloat16"},
]


def make_config(changes):
    recipe = {"steps": 300, "batch_size": 4, "learning_rate": 1e-2, "evaluate_every": 20}
    return TrainingConfig(MODEL, evaluation_tokens=64, warmup_steps=10, **recipe, **changes)


def go_on(changes, corpus, folder, at_step, seconds):
    """Train in a process of its own, which kills itself the given time after a step has begun."""
    torch.set_num_threads(1)
    fuse = threading.Event()

    def kill():
        fuse.wait()
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def observe(step):
        if step.number >= at_step:
            fuse.set()

    threading.Thread(target=kill, daemon=True).start()
    if at_step == 0:
        fuse.set()  # while the folder is made or read, and before the first step
    train(make_config(changes), corpus, folder, observe=observe, progress=False)


@pytest.fixture(scope="module")
def processes():
    """Starts the processes that are to be killed."""
    if sys.platform == "win32":
        pytest.skip("SIGKILL is POSIX")
    return forks.context()


@pytest.mark.parametrize("changes", RUNS, ids=[str(run["optimizer"]) for run in RUNS])
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(
    processes, changes, tmp_path
):
    corpus = synthetic(200, tokens=10_240, cache=tmp_path / "cache")
    folder, unkilled = tmp_path / "killed", tmp_path / "unkilled"
    chance = random.Random()  # not seeded: another set of moments every time
    reached, kills = 0, 0
    while kills < KILLS:
        at_start = kills > 0 and chance.random() < 0.2
        at_step = 0 if at_start else reached + chance.randint(1, 200 // KILLS)
        moment = chance.uniform(0, 0.05 if at_start else 0.01)
        arguments = (changes, corpus, folder, at_step, moment)
        process = processes.Process(target=go_on, args=arguments)
        process.start()
        process.join()
        # At most about ten steps pass until the moment has come, so none gets to its end.
        assert process.exitcode == -signal.SIGKILL, arguments
        kills += 1
        if (folder / "checkpoint.pt").exists():
            saved = load_run(folder).metrics.step.tolist()
            assert saved == list(range(len(saved)))
            assert saved[-1] >= reached, "a checkpoint was lost"
            reached = saved[-1]
    assert 0 < reached < 300
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for where in (folder, unkilled):
            train(make_config(changes), corpus, where, progress=False)
    finally:
        torch.set_num_threads(threads)
    assert (folder / "metrics.jsonl").read_bytes() == (unkilled / "metrics.jsonl").read_bytes()
    one, other = (
        torch.load(where / "checkpoint.pt", weights_only=True) for where in (folder, unkilled)
    )
    assert one["step"] == other["step"] == 300
    assert_same_bits(one, other)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in unkilled.iterdir())


def assert_same_bits(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        for mine, theirs in zip(one, other, strict=True):
            assert_same_bits(mine, theirs)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    else:
        assert one == other
