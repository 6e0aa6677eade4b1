"""What is read off the source: ruff's checks, its format, and the types of the library."""

from __future__ import annotations

import subprocess
import sys

import notebooks
import pytest


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff"),
        pytest.param(["ruff", "format", "--check", "."], id="format"),
        pytest.param(["mypy"], id="types"),
    ],
)
def test_finds_nothing(command):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=notebooks.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert not done.returncode, done.stdout
