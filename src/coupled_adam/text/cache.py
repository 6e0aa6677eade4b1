"""Cache folders that are either whole or absent, also after a crash and between processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Part of every key: raise it when the layout, the cleaning of text, or the split changes.
FORMAT = 1
META = "meta.json"

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: BinaryIO) -> None:
        handle.seek(0)
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock(handle: BinaryIO) -> None:
        handle.seek(0)
        msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(handle: BinaryIO) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(handle: BinaryIO) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Where token files are kept.

    Args:
        cache: a folder; None for ``$COUPLED_ADAM_CACHE``, or else the user's cache folder
            (``~/.cache/coupled-adam``, on Windows ``%LOCALAPPDATA%\\coupled-adam``).

    Returns:
        The folder, which need not exist yet.
    """
    if cache is not None:
        return Path(cache).expanduser().absolute()
    if chosen := os.environ.get("COUPLED_ADAM_CACHE"):
        return Path(chosen).expanduser().absolute()
    variable, fallback = (
        ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", ".cache")
    )
    return Path(os.environ.get(variable) or Path.home() / fallback).absolute() / "coupled-adam"


def entry(
    cache: str | os.PathLike[str] | None,
    recipe: dict[str, Any],
    write: Callable[[Path], dict[str, Any]],
) -> Path:
    """The cache folder that a recipe leads to, written first if it is not there and whole.

    The files are written into a temporary folder, which is renamed as the last act. The writer
    holds a lock that the operating system drops when it dies; whoever comes while it is held
    waits, and a temporary folder whose lock is free belongs to a dead writer and is removed.

    Args:
        cache: see :func:`cache_folder`.
        recipe: everything that the files depend on, as JSON.
        write: writes the files into the folder it is given and returns what ``meta.json`` shall
            say about them. Every OSError that it raises is taken for trouble with the cache.

    Returns:
        A folder with the written files, each as its SHA-256 in ``meta.json`` says.

    Raises:
        OSError: the folder cannot be written, for example because the disk is full; the message
            names the folder, and nothing half-written is left behind.
    """
    root = cache_folder(cache)
    text = json.dumps({"format": FORMAT, **recipe}, sort_keys=True)
    final = root / hashlib.sha256(text.encode()).hexdigest()[:32]
    _remove_leftovers(root)
    if is_whole(final):
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(_lock_file(final)):
            if not is_whole(final):  # another process may have written it while we waited
                _write_whole(final, write)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write token files to the cache folder {root}: {error.strerror or error}; "
            "free space there, or choose another folder with cache=... or the environment "
            "variable COUPLED_ADAM_CACHE",
        ) from error
    return final


def is_whole(folder: Path) -> bool:
    """Whether a cache folder holds every file that its ``meta.json`` lists, undamaged."""
    try:
        files = read_meta(folder)["files"]
        return all(digest(folder / name) == expected for name, expected in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_meta(folder: Path) -> dict[str, Any]:
    """What ``meta.json`` of a cache folder says."""
    return json.loads((folder / META).read_text(encoding="utf-8"))


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_whole(final: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    if final.exists():  # damaged, or it would not be written again
        shutil.rmtree(final)
    temporary = _temporary_folder(final)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        meta = write(temporary)
        meta["files"] = {path.name: digest(path) for path in sorted(temporary.iterdir())}
        (temporary / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        os.rename(temporary, final)
    except BaseException:  # an interrupt must not leave anything behind either
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove_leftovers(root: Path) -> None:
    for temporary in root.glob("*.tmp"):
        # A lock that is held says that the writer lives; a read-only cache is left as it is.
        with contextlib.suppress(OSError), _locked(_lock_file(temporary), wait=False):
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary_folder(final: Path) -> Path:
    return final.with_suffix(".tmp")


def _lock_file(folder: Path) -> Path:
    return folder.with_suffix(".lock")


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    # Lock files are never removed: a process that waits for one could otherwise end up with a
    # lock on a file that nobody else sees.
    with open(path, "ab") as handle:
        while True:
            try:
                _lock(handle)
                break
            except (BlockingIOError, PermissionError):  # held by another; Windows says the latter
                if not wait:
                    raise
                time.sleep(0.05)
        try:
            yield
        finally:
            _unlock(handle)
