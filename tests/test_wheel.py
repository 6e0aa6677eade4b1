"""What is installed: the wheel holds what the library reads, and a checkout finds the same."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import notebooks
import pytest

from coupled_adam.experiments import data_folder

SOURCE = notebooks.ROOT / "src" / "coupled_adam"
DATA = notebooks.ROOT / "data"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return notebooks.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder into which pip has installed the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", folder, wheel], check=True)
    return folder


def own_files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in found}
    return {name for name in names if "__pycache__" not in name}


def test_the_wheel_holds_every_file_of_the_library_and_the_data_and_no_other(wheel):
    wanted = {f"coupled_adam/{name}" for name in own_files(SOURCE)}
    wanted |= {f"coupled_adam/data/{name}" for name in own_files(DATA)}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == wanted
    for kind in (".js", ".css", ".c", ".json", "README.md", "py.typed"):
        assert any(name.endswith(kind) for name in held), kind


def test_the_wheel_comes_with_its_licences_and_its_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert b"coupled-adam = coupled_adam.__main__:main" in archive.read(about)
        licences = [name for name in archive.namelist() if "/licenses/" in name]
    assert {Path(name).name for name in licences} == {"LICENSE", "LICENSE-TEXT"}


def test_an_installed_library_finds_its_own_data_and_sources(installed, tmp_path):
    script = (
        "from coupled_adam import experiments, figures\n"
        "from importlib.resources import files\n"
        "print(experiments.data_folder())\n"
        "print(len(experiments.recorded_runs()))\n"
        "print((files('coupled_adam.optim') / 'step.c').is_file())\n"
        "print(len(figures.cloud().html()) > 1000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        encoding="utf-8",
    )
    assert not done.returncode, done.stderr
    folder, runs, *read = done.stdout.splitlines()
    assert Path(folder) == installed / "coupled_adam" / "data"
    assert int(runs) > 0
    assert read == ["True", "True"]


def test_a_checkout_finds_the_data_at_its_root():
    assert data_folder() == DATA


def test_an_editable_installation_is_a_path_to_the_sources_and_holds_no_copy(tmp_path):
    script = "import sys; from hatchling.build import build_editable as b; b(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=notebooks.ROOT, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        (path,) = (name for name in archive.namelist() if ".dist-info/" not in name)
        assert Path(archive.read(path).decode().strip()) == SOURCE.parent
