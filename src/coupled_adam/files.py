"""Files: written whole or not at all, locked between processes, hashed. The one place for each."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from coupled_adam.errors import RefusedError

UNFINISHED = ".part"  # how the name of a file ends that is being written


class InUseError(RefusedError):
    """Another process holds the lock."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, with ``~`` and ``~name`` replaced.

    Raises:
        RefusedError: if there is no such home folder.
    """
    path = Path(path)
    try:
        expanded = path.expanduser()
        # An empty HOME would lead to the root of the file system, and a relative one anywhere.
        if path.parts[:1] == ("~",) and not Path(os.environ.get("HOME", "/")).is_absolute():
            raise RuntimeError
    except RuntimeError as error:  # no HOME, or nobody of that name
        raise RefusedError(
            f"{path}: there is no home folder for this name; write the path out in full"
        ) from error
    return expanded


def shown(name: str) -> str:
    r"""A name of a file as text for tables and records, also where the system's is not UTF-8.

    In a bare environment (LC_ALL=C) Python has half characters in place of what is beyond ASCII,
    which pandas refuses. What is no UTF-8 in any case is shown as ``\xNN``.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_text(path: str | os.PathLike[str]) -> str:
    """A small text file of the user's, as whatever editor has saved it.

    A byte-order mark is no part of the text, neither at its beginning nor, in a file that was
    joined from several, at the beginning of a line. Line ends become ``\\n``.

    Args:
        path: the file, in UTF-8; ``~`` is replaced.

    Returns:
        The text.

    Raises:
        RefusedError: if it is not UTF-8; the message names the file and the byte.
        OSError: if it cannot be read; the error names the file.
    """
    path = user_path(path)
    content = path.read_bytes()
    if encoding := other_unicode(content):
        raise RefusedError(f"{path} is {encoding}, not UTF-8: save it again in UTF-8")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(
            f"{path} is not UTF-8: byte {error.start:,} of it is 0x{content[error.start]:02x} "
            f"({error.reason}); save it again in UTF-8"
        ) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub("^\ufeff+", "", text, flags=re.MULTILINE)


def other_unicode(beginning: bytes) -> str | None:
    """The name of the encoding, if text begins as UTF-16 or UTF-32 do; with or without a mark."""
    # The mark of UTF-32 begins with that of UTF-16.
    if beginning.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    # Without a mark every second byte, or three of four, are zero as long as the text is ASCII.
    even, odd = beginning[:64:2], beginning[1:64:2]
    if len(beginning) >= 4 and (any(even) != any(odd)):
        return "UTF-32" if not any(beginning[1:4]) or not any(beginning[:3]) else "UTF-16"
    return None


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a binary file that appears under its name whole or not at all.

    A link stays, and the file that it leads to is replaced. What is no file, such as a terminal or
    a named pipe, and what this process has been given open, such as /dev/stdout, cannot appear at
    once: it is written through.

    Args:
        path: the final name; an existing file is replaced in one step, and its permissions stay.

    Yields:
        The open file to write into.

    Raises:
        OSError: if it cannot be written (a full disk, say); what was there is then as it was.
    """
    path = Path(path)
    try:
        through = _opened_through(path)
        if through is not None:
            with through:
                yield through
            return
        final = Path(os.path.realpath(path))
        temporary = _temporary(final)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if final.exists():
                shutil.copymode(final, temporary)
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise could_not_write(path, error) from error


def _temporary(final: Path) -> Path:
    # Not tempfile's: nobody but the owner may read what that makes.
    thread = threading.get_native_id()  # or two threads would write into one file
    return final.with_name(f".{final.name}.{os.getpid()}-{thread}{UNFINISHED}")


def _opened_through(path: Path) -> BinaryIO | None:
    """What is to be written through instead of replaced, opened; None for a file, or nothing yet.

    Replaced by a file, /dev/null would fill the disk, and a pipe would lose its reader; and what
    was printed before, or will be, would be lost with the file behind a replaced /dev/stdout.
    """
    try:
        found = os.stat(path)  # follows links, and refuses those that lead in a circle
    except FileNotFoundError:
        return None
    _refuse_odd(found)
    descriptor = _given_open(path, found)
    if descriptor is not None:
        if sys.stdout is not None:
            sys.stdout.flush()  # what was printed before comes first
        return os.fdopen(os.dup(descriptor), "wb")
    return None if stat.S_ISREG(found.st_mode) else path.open("wb")


def _refuse_odd(found: os.stat_result) -> None:
    """Raise OSError for what no result is ever written to."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; give the name of a file")
    if stat.S_ISBLK(found.st_mode):  # its file system would be gone
        raise OSError(errno.EINVAL, "it is a disk; give the name of a file")
    if stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EINVAL, "it is a socket; give the name of a file")


def _given_open(path: Path, found: os.stat_result) -> int | None:
    """The descriptor that this process was started with and that a path stands for, if any."""
    numbered = path.name.isdecimal() and str(path.parent) in ("/dev/fd", "/proc/self/fd")
    for descriptor in (1, 2, *([int(path.name)] if numbered else [])):
        with contextlib.suppress(OSError):  # it is closed
            if os.path.samestat(os.fstat(descriptor), found):
                return descriptor
    return None


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a place for a result before hours are spent on the result.

    Args:
        path: where a file shall be written by :func:`whole_file`.

    Raises:
        RefusedError: if it is known already that this will fail: there is a folder, a socket or a
            disk of this name, or the folder around it does not exist or cannot be written.
    """
    path = Path(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(path)
            _refuse_odd(found)
            if _given_open(path, found) is not None:
                return
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not stat.S_ISREG(found.st_mode):
                return  # not opened to see: that would end what the reader of a pipe waits for
        final = Path(os.path.realpath(path))
        if not final.parent.is_dir():
            raise RefusedError(
                f"{path} cannot be written: there is no folder {final.parent}; make it first, or "
                "choose another place"
            )
        # The only sure way to know: rights, quotas and read-only disks are not for us to judge.
        probe = _temporary(final)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be written ({error.strerror or error}): choose another place"
        ) from error


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write bytes as a file that appears whole or not at all; see :func:`whole_file`."""
    with whole_file(path) as file:
        file.write(content)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON as a file that appears whole or not at all; NaN and infinity are refused.

    Raises:
        OSError: if it cannot be written.
        ValueError: if a number is not finite.
    """
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def remove_unfinished(folder: Path, *names: str) -> None:
    """Remove what killed processes have left of files with these names."""
    for name in names:
        for unfinished in folder.glob(f".{name}.*{UNFINISHED}"):
            unfinished.unlink(missing_ok=True)


def could_not_write(path: str | os.PathLike[str], error: OSError) -> OSError:
    """An error that says which file could not be written, why, and what to do."""
    reason = f"could not write {path}: {error.strerror or error}"
    return OSError(error.errno, f"{reason}; free space or choose another place, then call again")


@contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[None]:
    """Hold a lock between processes, and between machines on one file system.

    The operating system lets go of it when its holder dies. The lock file itself is never removed:
    a process that waits for it could otherwise lock a file that nobody else sees.

    Args:
        path: the lock file; made if needed.
        wait: until another process lets go.

    Raises:
        InUseError: if another process holds it and ``wait`` is False.
        OSError: if the lock file cannot be made.
    """
    # Not at the top: reading a record needs no lock, and the optimizer needs none of this.
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise InUseError(f"{path} is locked by another process") from None
    try:
        yield
    finally:
        lock.release()


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: Any) -> str:
    """SHA-256 of bytes, of text as UTF-8, or of anything else as JSON with sorted keys."""
    if not isinstance(content, bytes):
        text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
        content = text.encode()
    return hashlib.sha256(content).hexdigest()
