"""A shared library from C source by the machine's own compiler, or a reason why there is none."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# What a compiler, or the trial of what it made, may take before it counts as hanging.
_SECONDS = 60.0
# In another process, as what a compiler has made can end the one that loads it.
_TRIAL = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).works() != 1)"


def shared_library(source: Path, flags: Sequence[str] = ()) -> tuple[ctypes.CDLL | None, str]:
    """Compile for this processor and load; what was compiled is kept nowhere.

    The compiler is what the environment variable CC says, arguments included, else ``cc``, ``gcc``
    or ``clang``. Whatever goes wrong with it is no error.

    Args:
        source: a C file with a function ``int works(void)`` that returns 1 if what was made of the
            file is right.
        flags: for the compiler, besides those for a shared library.

    Returns:
        The library; or None and why it cannot be had.
    """
    if sys.platform == "win32":
        return None, "no compiler is looked for on Windows"
    try:
        asked = os.environ.get("CC", "").strip()
        compiler = [asked] if shutil.which(asked) else shlex.split(asked)
        if not compiler:
            compiler = [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path][:1]
        if not compiler:
            return None, "there is no C compiler"
        folder = tempfile.mkdtemp(prefix="coupled-adam-")
        try:
            wrong = ""
            # Not every compiler knows the processor that it runs on by this name.
            for native in (["-march=native"], []):
                # The last flag in case that CC asks for OpenMP, which would bring a runtime along.
                options = ["-O3", "-shared", "-fPIC", *flags, *native, "-fno-openmp"]
                library, wrong = _made([*compiler, *options], source, Path(folder))
                if library is not None:
                    return library, ""
            return None, wrong
        finally:
            # It may be gone, or refuse to go; on Python 3.11 TemporaryDirectory then calls itself
            # until the stack is full.
            shutil.rmtree(folder, ignore_errors=True)
    # OSError: no such compiler, one that hangs, no folder to write to or to load a library from.
    # ValueError: CC with an open quotation mark. RuntimeError: no new processes are started while
    # the interpreter shuts down.
    except (OSError, ValueError, RuntimeError) as error:
        return None, str(error)


def _made(command: list[str], source: Path, folder: Path) -> tuple[ctypes.CDLL | None, str]:
    # Another name each time: a file under which a library was loaded is not written to again.
    made = folder / f"{len(list(folder.iterdir()))}.so"
    wrong = _run([*command, str(source), "-o", str(made)], folder)
    if wrong:
        return None, wrong
    if not made.is_file():
        return None, f"{command[0]} made nothing"
    # A program that embeds Python may be no Python, and would start once more.
    if sys.executable and Path(sys.executable).name.lower().startswith(("python", "pypy")):
        wrong = _run([sys.executable, "-I", "-S", "-c", _TRIAL, str(made)], folder)
        if wrong:
            return None, f"what {command[0]} made cannot be used: {wrong}"
    library = ctypes.CDLL(str(made))
    # Again: where SIGCHLD is ignored, the exit codes above are lost and read as 0.
    if not hasattr(library, "works") or library.works() != 1:
        return None, f"what {command[0]} made computes something else"
    return library, ""


def _run(command: list[str], folder: Path) -> str:
    """Run a program to its end; what it complained about if it failed, else nothing."""
    path = folder / "complaint"
    with path.open("wb") as complaint:
        # In a group of its own, to be ended with all that it started, and what it writes in a file:
        # a grandchild that stayed would keep a pipe open, and us waiting.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=complaint,
            stderr=complaint,
            start_new_session=True,
        )
        try:
            code = process.wait(_SECONDS)
        except BaseException as error:
            # Nobody else has waited for it, so that its number still is its own.
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{command[0]} took more than {_SECONDS:g} seconds") from None
            raise
    if code == 0:
        return ""
    if code < 0:
        return f"{command[0]} was ended by signal {-code}"
    lines = path.read_text(errors="replace").splitlines()
    # A compiler says what is wrong where it says "error", a traceback of Python in its last line.
    chosen = [line for line in lines if "error" in line.lower()] or lines[-1:]
    return chosen[0].strip()[:300] if chosen else f"{command[0]} failed with exit code {code}"
