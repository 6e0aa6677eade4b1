"""Set up ``.venv`` with the tested packages, then run the arguments with the Python in it.

``python3 tools/environment.py tools/build_book.py`` is what ``make book`` does. With ``--test`` as
first argument, what only the tests need is installed as well. Nothing is installed when ``.venv``
already fits the requirements and pyproject.toml. Uses the standard library only.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
# What is in .venv, in the order of installation: what the book needs, and what only the tests need.
SETS = {"book": "requirements.txt", "test": "requirements-test.txt"}
OLDEST = (3, 11)


def set_up(wanted: str = "book") -> None:
    """Create ``.venv`` and install into it, unless that was done with the same requirements.

    Args:
        wanted: the last of ``SETS`` that has to be there; those before it are installed too.

    Raises:
        SystemExit: if this Python is too old, or a step of the installation fails.
    """
    if sys.version_info < OLDEST:
        raise SystemExit(
            f"The book needs Python {OLDEST[0]}.{OLDEST[1]} or later, and {sys.executable} is "
            f"{sys.version.split()[0]}. Name another one: make book PYTHON=python3.12"
        )
    names = list(SETS)[: list(SETS).index(wanted) + 1]
    missing = [name for name in names if _installed(name) != _key(name)]
    if not missing:
        return
    start = time.monotonic()
    _create()
    for name in missing:
        stamp(name).unlink(missing_ok=True)
        print(f"Installing {SETS[name]} (1 to 3 minutes the first time).", flush=True)
        # With the sets before it, so that nothing of theirs is exchanged.
        needed = names[: names.index(name) + 1]
        _pip("install", *(part for one in needed for part in ("--requirement", SETS[one])))
        if name == "book":
            # The build backend is pinned among the requirements: nothing else is fetched for it.
            _pip("install", "--no-deps", "--no-build-isolation", "--editable", ".")
        stamp(name).write_text(_key(name))
    print(f"The environment is ready ({time.monotonic() - start:.0f} s).", flush=True)


def stamp(name: str) -> Path:
    """The file that says with which requirements a set was installed."""
    return VENV / f"{name}.key"


def _create() -> None:
    """Create ``.venv``, unless it is there and has the version of this Python."""
    version = _version()
    known = {_installed(name).split()[0] for name in SETS if _installed(name)}
    if PYTHON.exists() and known <= {version}:
        return
    print(f"Creating .venv with Python {version} (10 seconds).", flush=True)
    try:
        venv.create(VENV, with_pip=True, clear=True)
    except subprocess.CalledProcessError:
        raise SystemExit(
            "Python could not create .venv. On Debian and Ubuntu its venv module is a package "
            f"of its own: install python{version}-venv and try again."
        ) from None


def _installed(name: str) -> str:
    return stamp(name).read_text() if stamp(name).exists() else ""


def _key(name: str) -> str:
    names = list(SETS)[: list(SETS).index(name) + 1]
    return f"{_version()} {_hash('pyproject.toml', *(SETS[name] for name in names))}"


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _hash(*names: str) -> str:
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def _pip(*arguments: str) -> None:
    # Twice quiet: errors only.
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    # Half of the time was for bytecode, most of it of modules that nobody imports. Python writes
    # that of the others when it imports them.
    command += ["--no-compile"] if arguments[0] == "install" else []
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit("pip failed; its message is above.")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    for_tests = arguments[:1] == ["--test"]
    set_up("test" if for_tests else "book")
    if arguments[for_tests:]:
        # Windows would otherwise stumble over the first character outside its code page.
        environment = os.environ | {"PYTHONUTF8": "1"}
        command = [str(PYTHON), *arguments[for_tests:]]
        raise SystemExit(subprocess.run(command, cwd=ROOT, env=environment).returncode)
