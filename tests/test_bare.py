"""With torch and numpy alone the optimizer works, and everything else says what to install."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
import tomllib
from importlib import metadata

import notebooks
import pytest
import repository
from packaging.requirements import Requirement

import coupled_adam
from coupled_adam import extras

PROJECT = tomllib.loads((notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What torch asks for itself is there wherever the optimizer is.
OF_TORCH = {Requirement(need).name for need in metadata.requires("torch") or []}
# A stand-in for an environment without the extras: the packages of this one are not found.
BARE = """
import importlib.machinery
import sys

class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in {absent!r}
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Installed
"""
TRAIN = """
import torch
from coupled_adam import CoupledAdamW, param_groups

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(11, 4), torch.nn.Linear(4, 11))
optimizer = CoupledAdamW(param_groups(model, embeddings=[model[0].weight]), lr=0.1)
tokens = torch.arange(11)
for _ in range(30):
    loss = torch.nn.functional.cross_entropy(model(tokens), tokens)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert loss < 1, loss
print("trained")
"""


def modules_of_the_extras() -> set[str]:
    """The importable names of all packages that an extra asks for."""
    needs = [need for extra in PROJECT["optional-dependencies"].values() for need in extra]
    wanted = {Requirement(need).name.lower() for need in needs} - OF_TORCH
    found = metadata.packages_distributions().items()
    return {module for module, names in found if wanted & {name.lower() for name in names}}


def bare(library, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python with the wheel's library where the given modules cannot be imported."""
    (library.parent / "sitecustomize.py").write_text(BARE.format(absent=modules_of_the_extras()))
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(library), str(library.parent)])},
        cwd=library.parent,
        capture_output=True,
        encoding="utf-8",
    )


def rooms() -> list[str]:
    """Every module of the library, as it would be imported."""
    found = pkgutil.walk_packages(coupled_adam.__path__, "coupled_adam.")
    return sorted(module.name for module in found if not module.name.endswith("__main__"))


def test_what_is_absent_here_is_what_the_extras_bring():
    assert {"pandas", "scipy", "sklearn", "tokenizers", "typer"} <= modules_of_the_extras()
    assert not {"torch", "numpy", "filelock"} & modules_of_the_extras()


def test_the_optimizer_trains_with_torch_and_numpy_alone(library):
    done = bare(library, "-c", TRAIN)
    assert done.stdout == "trained\n", done.stderr


@pytest.fixture(scope="module")
def refused(library) -> dict[str, str]:
    """The modules that cannot be imported without the extras, and the error that each raises."""
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception as error:\n"
        "        print(name, type(error).__name__, error)\n"
    )
    done = bare(library, "-c", script, *rooms())
    assert not done.returncode, done.stderr
    return dict(line.split(" ", maxsplit=1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", rooms())
def test_a_module_works_or_says_what_to_install(refused, name):
    assert refused.get(name, "MissingExtraError").startswith("MissingExtraError"), (
        "its imports of what an extra brings belong below `with needs(...)`"
    )


@pytest.mark.parametrize("name", ["claims", "extras", "figures", "geometry", "gpt", "theory"])
def test_the_ground_needs_no_extra(refused, name):
    assert f"coupled_adam.{name}" not in refused


def test_the_optimizer_needs_no_extra(refused):
    assert not [name for name in refused if name.startswith("coupled_adam.optim")]


@pytest.mark.parametrize("line", ["from coupled_adam import text", "import coupled_adam.cli"])
def test_a_part_that_needs_more_names_the_extra(library, line):
    done = bare(library, "-c", line)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("coupled_adam.extras.MissingExtraError: This part of Coupled Adam needs")
    assert 'pip install "coupled-adam[cli] @ git+' in said


@pytest.mark.parametrize("arguments", [["--help"], ["train", "run", "--text", "x"]])
def test_the_command_says_in_one_line_what_to_install(library, arguments):
    done = bare(library, "-m", "coupled_adam", *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("coupled-adam: ") and "coupled-adam[cli]" in line


def test_the_command_that_is_installed_is_the_one_that_is_tested():
    assert PROJECT["scripts"] == {"coupled-adam": "coupled_adam.__main__:main"}


def test_the_sentence_names_an_extra_and_the_address_that_exist():
    with pytest.raises(extras.MissingExtraError) as caught, extras.needs("cli"):
        __import__("nothing_of_that_name.part")
    assert caught.value.name == "nothing_of_that_name"
    assert "needs nothing_of_that_name, which is not installed" in str(caught.value)
    assert f"[cli] @ git+{repository.address()}" in str(caught.value)
    assert {"cli", "book", "streams"} <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("name", ["coupled_adam.gone", "torch.gone", "numpy.gone"])
def test_what_no_extra_brings_stays_the_error_that_it_is(name):
    with pytest.raises(ModuleNotFoundError, match=name), extras.needs("cli"):
        __import__(name)
