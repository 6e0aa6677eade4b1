"""Set up ``.venv`` with the tested packages, then run the arguments with the Python in it.

``python3 tools/environment.py -m pytest`` is what ``make test`` does. Nothing is installed when
``.venv`` already fits requirements.txt and pyproject.toml. Uses the standard library only.
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
STAMP = VENV / "installed.key"
OLDEST = (3, 11)


def set_up() -> None:
    """Create ``.venv`` and install into it, unless that was done with the same requirements.

    Raises:
        SystemExit: if this Python is too old, or a step of the installation fails.
    """
    if sys.version_info < OLDEST:
        raise SystemExit(
            f"The book needs Python {OLDEST[0]}.{OLDEST[1]} or later, and {sys.executable} is "
            f"{sys.version.split()[0]}. Name another one: make book PYTHON=python3.12"
        )
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = f"{version} {_hash('requirements.txt', 'pyproject.toml')}"
    installed = STAMP.read_text() if STAMP.exists() else ""
    if installed == key:
        return
    start = time.monotonic()
    STAMP.unlink(missing_ok=True)
    other_version = installed and installed.split()[0] != version
    if other_version or not PYTHON.exists():
        print(f"Creating .venv with Python {version} (10 seconds).", flush=True)
        try:
            venv.create(VENV, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            raise SystemExit(
                "Python could not create .venv. On Debian and Ubuntu its venv module is a package "
                f"of its own: install python{version}-venv and try again."
            ) from None
    print(
        "Installing the packages of requirements.txt (1 to 5 minutes the first time).", flush=True
    )
    _pip("install", "--requirement", "requirements.txt")
    # setuptools is pinned among the requirements, so that the build needs nothing else.
    _pip("install", "--no-deps", "--no-build-isolation", "--editable", ".")
    STAMP.write_text(key)
    print(f"The environment is ready ({time.monotonic() - start:.0f} s).", flush=True)


def _hash(*names: str) -> str:
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def _pip(*arguments: str) -> None:
    # Twice quiet: errors only.
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit("pip failed; its message is above.")


if __name__ == "__main__":
    set_up()
    if sys.argv[1:]:
        # Windows would otherwise stumble over the first character outside its code page.
        environment = os.environ | {"PYTHONUTF8": "1"}
        command = [str(PYTHON), *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, cwd=ROOT, env=environment).returncode)
