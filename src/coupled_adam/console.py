"""The console: what the command line says, whatever becomes of whoever reads it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import torch

from coupled_adam.errors import RefusedError
from coupled_adam.extras import MissingExtraError, needs

with needs("cli"):
    import typer

    from coupled_adam.training import DivergedError

TRACEBACK = "COUPLED_ADAM_TRACEBACK"

# A pipe whose reader has ended, as head does; a terminal that was closed.
_GONE = (errno.EPIPE, errno.EIO)


class _Stream:
    """A standard stream that outlives its reader: what is written after that is dropped.

    A run of hours would otherwise die when a progress bar is drawn for ``2>&1 | head``.
    """

    def __init__(self, stream: TextIO, *, needed: bool) -> None:
        self._stream, self._needed = stream, needed
        # What a console cannot show is written out as \u2014 and the like, and is not an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropped_if_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropped_if_gone():
            self._stream.flush()

    @contextmanager
    def _dropped_if_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Python flushes once more in the end, and would complain.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if self._needed and error.errno not in _GONE:
                raise OSError(error.errno, f"could not print: {error.strerror}") from error


def guard_streams() -> None:
    """Make standard output and standard error fit for any console, and for none."""
    for descriptor in (0, 1, 2):
        # A number that is free would go to the next file, and a warning of torch's into that file.
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)
    if sys.stdout is not None:
        sys.stdout = _Stream(sys.stdout, needed=True)
    if sys.stderr is not None:
        sys.stderr = _Stream(sys.stderr, needed=False)


def say(message: str) -> None:
    """Print a result, at once."""
    print(message, flush=True)


def fail(message: str, code: int = 2, cause: BaseException | None = None) -> NoReturn:
    """Say in one line on standard error what went wrong, and end.

    Args:
        message: may hold line ends.
        code: the exit code: 2 for what is refused or cannot be done, 1 for a fault of the program.
        cause: whose traceback is shown before, if the environment asks for it.

    Raises:
        typer.Exit: always.
    """
    if cause is not None and os.environ.get(TRACEBACK) not in (None, "", "0"):
        traceback.print_exception(cause)
    print("coupled-adam:", " ".join(message.split()), file=sys.stderr, flush=True)
    raise typer.Exit(code)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What is refused or cannot be done is said on stderr in one line, with exit code 2.

    A fault of the program is one line too, with exit code 1. COUPLED_ADAM_TRACEBACK=1 shows where
    either comes from.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt as error:
        fail("interrupted", 130, error)
    except torch.OutOfMemoryError as error:
        fail(
            "out of GPU memory: the same command with a larger --accumulation goes on with the "
            "run; it changes nothing but the memory used",
            cause=error,
        )
    except (RefusedError, DivergedError, MissingExtraError) as error:
        fail(str(error), cause=error)
    except Exception as error:
        # A bare OSError without a number is not the system's, but how some library says something.
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}", cause=error)
        fail(
            f"a fault of the program, not of yours ({type(error).__name__}: {error}); "
            f"{TRACEBACK}=1 in the environment shows where",
            1,
            error,
        )
