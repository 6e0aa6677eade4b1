"""The checkers of the code find nothing: ruff in all of it, mypy in the library."""

import subprocess
import sys
from pathlib import Path

import notebooks
import pytest

SCRIPTS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    ["ruff check .", "ruff format --check .", "mypy"],
    ids=lambda line: line.split(".")[0],
)
def test_a_checker_finds_nothing(command):
    program, *arguments = command.split()
    done = subprocess.run(
        [SCRIPTS / program, *arguments], cwd=notebooks.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
