"""What the command line says promises to hold whatever becomes of whoever reads it."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from coupled_adam import cli, console
from coupled_adam.errors import RefusedError
from coupled_adam.extras import MissingExtraError
from coupled_adam.training import DivergedError

BENCH = ["bench", "--shape", "16x4", "--rounds", "1", "--threads", "1"]


def stream_to(path: str | int, encoding: str = "utf-8", *, needed: bool) -> console._Stream:
    return console._Stream(open(path, "w", encoding=encoding), needed=needed)


# Streams


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("size", [1, 100_000])
def test_what_is_written_after_the_reader_has_gone_is_dropped(needed, size):
    reader, writer = os.pipe()
    stream = stream_to(writer, needed=needed)
    os.close(reader)
    for _ in range(3):
        assert stream.write("x" * size) == size
        stream.flush()
    # What is written now goes nowhere, and closing has nothing left to complain of.
    assert os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))
    stream.close()


def test_a_full_disk_is_said_of_results_and_not_of_progress():
    with stream_to("/dev/full", needed=False)._stream as progress:
        console._Stream(progress, needed=False).write("x" * 100_000)
    results = stream_to("/dev/full", needed=True)
    with pytest.raises(OSError, match="could not print: No space left") as caught:
        results.write("x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    results.close()  # and Python does not complain in the end


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", rb"W\xf6rter \u2013"), ("cp1252", "Wörter –".encode("cp1252")), ("latin-1", None)],
)
def test_what_a_console_cannot_show_is_written_out(tmp_path, encoding, shown):
    stream = stream_to(tmp_path / "console", encoding, needed=True)
    stream.write("Wörter – \udcff")
    stream.close()
    expected = shown or b"W\xf6rter \\u2013"
    assert (tmp_path / "console").read_bytes() == expected + rb" \udcff"


# Errors


def said(error: BaseException, capsys) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as ended, console.errors_in_one_line():
        raise error
    return ended.value.exit_code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RefusedError("this cannot\nbe"), "this cannot be"),
        (DivergedError(3, "loss 99", "nothing was saved", []), "training diverged at step 3"),
        (MissingExtraError("pip install it"), "pip install it"),
        (FileNotFoundError(2, "No such file", "a.txt"), "a.txt: No such file"),
        (FileNotFoundError("there is no run"), "there is no run"),
        (OSError(errno.ENOSPC, "could not write x: full"), "could not write x: full"),
        (torch.OutOfMemoryError("CUDA"), "out of GPU memory: the same command"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, says, capsys, monkeypatch):
    code, line = said(error, capsys)
    assert code == 2 and line.startswith(f"coupled-adam: {says}") and line.count("\n") == 1
    monkeypatch.setenv("COUPLED_ADAM_TRACEBACK", "1")
    code, lines = said(error, capsys)
    assert code == 2 and "Traceback (most recent call last)" in lines
    assert lines.splitlines()[-1] == line.strip()


@pytest.mark.parametrize("value", ["", "0", "1"])
@pytest.mark.parametrize(
    "error",
    [ValueError("two\nlines"), OSError("says some library"), ImportError("x"), RuntimeError()],
)
def test_a_fault_is_called_one(error, capsys, monkeypatch, value):
    monkeypatch.setenv("COUPLED_ADAM_TRACEBACK", value)
    code, lines = said(error, capsys)
    assert code == 1
    line = lines.splitlines()[-1]
    assert line.startswith("coupled-adam: a fault of the program, not of yours (")
    assert f"({type(error).__name__}: " in line and "COUPLED_ADAM_TRACEBACK=1" in line
    assert ("Traceback" in lines) == (value == "1")


def test_an_interrupt_is_one_line(capsys):
    assert said(KeyboardInterrupt(), capsys) == (130, "coupled-adam: interrupted\n")


# The program


# As python -m coupled_adam, with turns so short that what is measured says nothing: small steps
# fill a turn of the usual length by the thousand.
PROGRAM = """
import functools, runpy
from coupled_adam import benchmark
benchmark.compare_steps = functools.partial(benchmark.compare_steps, seconds=0.001)
runpy.run_module("coupled_adam", run_name="__main__", alter_sys=True)
"""


def bench(out: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM, *BENCH, "--out", str(out)]
    return subprocess.run(command, timeout=120, **options)


def test_without_any_stream_the_result_is_written(tmp_path):
    out = tmp_path / "step.json"
    command = shlex.join([sys.executable, "-c", PROGRAM, *BENCH, "--out", str(out)])
    shell = f"exec {command} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], timeout=120).returncode == 0
    assert json.loads(out.read_text())["results"]


def test_a_result_may_go_to_standard_output():
    done = bench("/dev/stdout", capture_output=True)
    assert done.returncode == 0 and b'"results"' in done.stdout


def test_a_result_is_written_where_it_cannot_be_printed_and_printed_where_it_cannot_be_written(
    tmp_path,
):
    out = tmp_path / "step.json"
    with open("/dev/full", "wb") as full:
        done = bench(out, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"coupled-adam: could not print: No space left on device\n"
    assert json.loads(out.read_text())["results"]
    done = bench("/dev/full", capture_output=True)
    assert done.returncode == 2
    assert b"CoupledAdamW" in done.stdout
    assert done.stderr.startswith(b"coupled-adam: could not write /dev/full: No space left")


def test_a_run_outlives_the_reader_of_its_progress(tmp_path):
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    (tmp_path / "text.txt").write_text(" ".join(random.Random(0).choices(words, k=20_000)))
    options = ["--vocabulary-size", "300", "--steps", "6", "--batch-size", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "coupled_adam", "train", "--text", tmp_path / "text.txt"]
    environment = {
        **os.environ,
        "COUPLED_ADAM_CACHE": str(tmp_path / "cache"),
        "TQDM_MININTERVAL": "0",
    }
    with subprocess.Popen(
        [*command, *options, "--out", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(120) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 6


# Names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/ws.tsv", "b/sim.tsv"], ["ws", "sim"]),
        (["a/ws.tsv", "b/ws.tsv"], ["a/ws.tsv", "b/ws.tsv"]),
        (["a/ws.tsv", "a/ws.txt", "b/sim.tsv"], ["ws.tsv", "ws.txt", "sim.tsv"]),
        (["x/a/ws.tsv", "y/a/ws.tsv", "a/ws.tsv"], ["x/a/ws.tsv", "y/a/ws.tsv", None]),
        (["a/ws.tsv", "b/ws.txt", "c/ws.tsv.old"], ["ws.tsv", "ws.txt", "ws.tsv.old"]),
        (["a/ws.tsv", "b/../a/ws.tsv", "a/ws.tsv"], ["ws"]),
    ],
)
def test_files_are_named_so_that_none_replaces_another(tmp_path, monkeypatch, paths, names):
    monkeypatch.chdir(tmp_path)
    found = cli._by_name([Path(path) for path in paths])
    expected = [name or f"{tmp_path.name}/a/ws.tsv" for name in names]
    assert list(found) == expected
    assert [file.resolve() for file in found.values()] == list(
        dict.fromkeys(Path(path).resolve() for path in paths)
    )


def test_a_name_that_is_no_text_is_shown_as_far_as_it_is(tmp_path):
    name = os.fsdecode("Wörter".encode() + b"-\xe9.tsv")
    (shown,) = cli._by_name([tmp_path / name])
    assert shown == r"Wörter-\xe9"
    io.StringIO().write(shown)


@pytest.mark.parametrize("out", ["pairs.tsv", "link.tsv", "./pairs.tsv", "hard.tsv"])
def test_what_is_read_is_not_replaced(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a b 1")
    (tmp_path / "link.tsv").symlink_to("pairs.tsv")
    os.link(pairs, tmp_path / "hard.tsv")
    with pytest.raises(RefusedError, match="would replace what is read"):
        cli._place(Path(out), ["none", pairs])
    assert cli._place(Path("new.json"), ["none", pairs]) == Path("new.json")
