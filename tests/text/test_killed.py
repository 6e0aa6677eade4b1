"""A local text whose preparation is killed without warning is never half there."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from coupled_adam.text import cache, load

KILLS = 12


def load_and_die(text: Path, folder: Path, seconds: float) -> None:
    """Prepare a text in a process of its own, which kills itself after some time."""

    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    load(text, 300, cache=folder)
    time.sleep(60)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_whatever_is_there_after_a_kill_is_whole(text_file: Path, tmp_path: Path) -> None:
    """Killed at moments spread from the first file to after the last; then loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["coupled_adam.text", "pytest"])
    begun = time.perf_counter()
    expected = load(text_file, 300, cache=tmp_path / "unkilled")
    seconds = time.perf_counter() - begun
    chance = random.Random()  # not seeded: another set of moments every time
    whole = []
    for number in range(KILLS):
        folder = tmp_path / f"killed {number}"
        moment = seconds * chance.uniform(number, number + 1) / KILLS * 1.5
        process = context.Process(target=load_and_die, args=(text_file, folder, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        left = [path for path in folder.glob("*") if path.suffix not in (".tmp", ".lock")]
        assert all(cache.is_whole(path) for path in left)
        whole.append(bool(left))
        corpus = load(text_file, 300, cache=folder)
        assert corpus.fingerprint == expected.fingerprint
        assert np.array_equal(corpus.train, expected.train)
        assert not list(folder.glob("*.tmp"))
    assert not all(whole), "no process was killed before it was done"
