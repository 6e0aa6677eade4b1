"""Execute the chapters: each once, alone in an empty folder, with the built wheel.

The executed copies lie in ``_build/executed``; the book takes its outputs from them, and the tests
look at them. A copy is kept for as long as nothing that it depends on has changed. Several
processes may ask for the same chapter: one executes it, the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nbformat
from filelock import FileLock
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
EXECUTED = BUILD / "executed"
SECONDS_PER_CELL = 600
# What times its steps has the machine to itself, and what takes longest is begun before the rest.
TIMED = {"07-what-it-costs"}
LONGEST = {"08-a-small-gpt", "09-downstream", "12-the-alternatives"}
# Two chapters at a time, each on a share of the cores.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LANES = min(2, CORES)
# Where the libraries that compute in a kernel read how many threads they may start.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CLAIM_TYPE = "application/vnd.coupled-adam.claim+json"


class ChapterError(RuntimeError):
    """A chapter could not be executed, or its executed copy does not fit it."""


def sources() -> list[Path]:
    """The chapters of the repository, in order."""
    return sorted((ROOT / "chapters").glob("*.ipynb"))


def in_order_of_execution() -> list[Path]:
    """The chapters, those first that run alone, and then the longest."""
    return sorted(
        sources(), key=lambda path: (path.stem not in TIMED, path.stem not in LONGEST, path)
    )


def executed_copy(chapter: Path) -> Path:
    """Where the executed copy of a chapter is kept."""
    return EXECUTED / chapter.name


def execution(chapter: Path) -> dict:
    """What is known of the executed copy: ``key`` and ``seconds``; empty if there is none."""
    path = EXECUTED / f"{chapter.stem}.json"
    if not path.exists() or not executed_copy(chapter).exists():
        return {}
    return json.loads(path.read_text())


def hash_of(paths: Iterable[Path]) -> str:
    """One hash of the names and contents of files and of everything in folders."""
    files = {file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))}
    digest = hashlib.sha256()
    for file in sorted(files):
        generated = any(part == "__pycache__" or part.endswith(".egg-info") for part in file.parts)
        if file.is_file() and not generated:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def key(chapter: Path) -> str:
    """A hash of all that a chapter's outputs depend on: its code, the library, data and packages.

    Prose and cell metadata are left out: changing them executes nothing again.
    """
    shared = [ROOT / name for name in ("src", "data", "requirements.txt", "pyproject.toml")]
    code = [cell.source for cell in _code_cells(_read(chapter))]
    parts = [sys.version, hash_of(path for path in shared if path.exists()), *code]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def stale() -> list[Path]:
    """The chapters whose executed copy is missing or out of date."""
    return [chapter for chapter in sources() if execution(chapter).get("key") != key(chapter)]


def with_outputs(chapter: Path) -> NotebookNode:
    """The chapter as it is now, with the outputs of its executed copy.

    Raises:
        ChapterError: if the copy is missing or its code is not that of the chapter.
    """
    if not executed_copy(chapter).exists():
        raise ChapterError(f"{chapter.name} was not executed yet; run tools/notebooks.py")
    notebook, executed = _read(chapter), _read(executed_copy(chapter))
    cells, done = _code_cells(notebook), _code_cells(executed)
    if [cell.source for cell in cells] != [cell.source for cell in done]:
        raise ChapterError(f"{chapter.name} has changed since it was executed")
    for cell, executed_cell in zip(cells, done, strict=True):
        cell.outputs = executed_cell.outputs
        cell.execution_count = executed_cell.execution_count
    return notebook


def title(chapter: Path) -> str:
    """The chapter's first heading."""
    first = _read(chapter).cells[0].source.splitlines()[0]
    if not first.startswith("# "):
        raise ChapterError(f"{chapter.name} must begin with its title ('# ...'), not {first!r}")
    return first.removeprefix("# ").strip()


def claims(chapter: Path) -> list[dict]:
    """The claims that the executed copy made, in order.

    Raises:
        ChapterError: if two of them have the same anchor, so that no link can tell them apart.
    """
    outputs = [out for cell in _code_cells(with_outputs(chapter)) for out in cell.outputs]
    found = [dict(out.data[CLAIM_TYPE]) for out in outputs if CLAIM_TYPE in out.get("data", {})]
    anchors = [one["anchor"] for one in found]
    twice = sorted({anchor for anchor in anchors if anchors.count(anchor) > 1})
    if twice:
        raise ChapterError(f"{chapter.name} states a claim twice: {', '.join(twice)}")
    return found


def lock(name: str) -> FileLock:
    """A lock between processes, by the name of what only one of them may make at a time."""
    folder = BUILD / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def execute_stale() -> None:
    """Execute the chapters that need it; the results of those that succeed are kept.

    Raises:
        ChapterError: if a chapter failed; its error has been printed.
    """
    old = stale()
    waiting = [chapter for chapter in in_order_of_execution() if chapter in old]
    _drop_leftovers()
    if not waiting:
        print(f"All {len(sources())} chapters are executed and up to date.", flush=True)
        return
    print(f"Executing {len(waiting)} chapters, {LANES} at a time, a minute each.", flush=True)
    with unpacked_wheel() as library:

        def done(chapter: Path) -> bool:
            try:
                print(f"  {chapter.stem}: {execute(chapter, library):.0f} s", flush=True)
            except ChapterError as error:
                print(error, flush=True)
                return False
            return True

        alone = [chapter for chapter in waiting if chapter.stem in TIMED]
        beside = [chapter for chapter in waiting if chapter.stem not in TIMED]
        fine = [done(chapter) for chapter in alone]
        with ThreadPoolExecutor(LANES) as lanes:
            fine += lanes.map(done, beside)
    failed = [chapter.name for chapter, ok in zip(alone + beside, fine, strict=True) if not ok]
    if failed:
        raise ChapterError(f"failed: {', '.join(failed)} (see above)")


def execute(chapter: Path, library: Path) -> float:
    """Run one chapter in a folder of its own and keep the copy, unless there is a current one.

    Args:
        chapter: the notebook.
        library: the folder from which the chapter is to import coupled_adam.

    Returns:
        The seconds that its execution took, now or when the copy was made.

    Raises:
        ChapterError: with the traceback, if a cell of the chapter raised an error.
    """
    with lock(chapter.stem), tempfile.TemporaryDirectory(prefix="chapter-") as name:
        wanted = key(chapter)
        if execution(chapter).get("key") == wanted:
            return execution(chapter)["seconds"]
        folder = Path(name)
        alone = folder / "alone"
        alone.mkdir()
        copy = shutil.copy(chapter, alone)
        (folder / "pytest.ini").write_text("[pytest]\n")
        command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "--no-header", "-q"]
        command += [f"--nbmake-timeout={SECONDS_PER_CELL}", "-p", "no:cacheprovider"]
        command += [f"--config-file={folder / 'pytest.ini'}", f"--rootdir={folder}", str(copy)]
        start = time.monotonic()
        done = subprocess.run(
            command,
            cwd=alone,
            env=_kernel_environment(library, folder, threads(chapter)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        seconds = round(time.monotonic() - start, 1)
        if done.returncode:
            raise ChapterError(f"{chapter.stem} failed after {seconds:.0f} s\n{done.stdout}")
        EXECUTED.mkdir(parents=True, exist_ok=True)
        json_path = EXECUTED / f"{chapter.stem}.json"
        json_path.unlink(missing_ok=True)
        shutil.copy(copy, executed_copy(chapter))
        # The record comes last and at once: without it the copy does not count.
        partial = json_path.with_suffix(".partial")
        partial.write_text(json.dumps({"key": wanted, "seconds": seconds}))
        partial.replace(json_path)
        return seconds


def threads(chapter: Path) -> dict[str, str]:
    """The variables that set a kernel's threads: the share of its lane, or nothing if alone.

    Threads of two processes that wait for each other's turn on the same cores take twice the time.
    """
    return {} if chapter.stem in TIMED else dict.fromkeys(THREADS, str(max(1, CORES // LANES)))


def _kernel_environment(library: Path, folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """The caller's environment, with the wheel first on the path and no settings of the user's."""
    ours = ("PYTEST_", "JUPYTER", "IPYTHON", "MPLBACKEND", "PYTHONPATH", *THREADS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {
        "PYTHONPATH": str(library),
        "PYTHONUTF8": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter-config"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    return environment | settings


@contextmanager
def unpacked_wheel() -> Iterator[Path]:
    """A folder with the project's wheel, built and unpacked: what chapters import.

    Raises:
        ChapterError: if a kernel would import the library from somewhere else.
    """
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        folder = Path(name)
        library = folder / "library"
        with zipfile.ZipFile(build_wheel(folder)) as archive:
            archive.extractall(library)
        look = "import importlib.util; print(importlib.util.find_spec('coupled_adam').origin)"
        origin = subprocess.run(
            [sys.executable, "-c", look],
            cwd=folder,
            env=_kernel_environment(library, folder, {}),
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.strip()
        if not Path(origin).resolve().is_relative_to(library.resolve()):
            raise ChapterError(f"the chapters would import {origin}, not the wheel's coupled_adam")
        yield library


def build_wheel(folder: Path) -> Path:
    """Build the project's wheel with the backend that is installed, and return its path."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _drop_leftovers() -> None:
    """Remove executed copies of chapters that are gone."""
    names = {chapter.stem for chapter in sources()}
    for path in EXECUTED.glob("*"):
        if path.stem not in names:
            path.unlink()


def _read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


if __name__ == "__main__":
    try:
        execute_stale()
    except ChapterError as error:
        raise SystemExit(str(error)) from None
