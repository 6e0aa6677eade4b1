"""Cache folders that are either whole or absent, also after a crash and between processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from coupled_adam import files
from coupled_adam.errors import RefusedError

# Part of every key: raise it when the layout, the cleaning of text, or the split changes.
FORMAT = 1
META = "meta.json"
# What the files were like when they were last compared with their hashes; see is_whole.
CHECKED = "checked.json"

_CHOOSE = "choose another folder with cache=... or the environment variable COUPLED_ADAM_CACHE"
_REASONS = {
    errno.ENOSPC: f"free space there, or {_CHOOSE}",
    errno.EDQUOT: f"free space there, or {_CHOOSE}",
}


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Where token files are kept.

    Args:
        cache: a folder; None for ``$COUPLED_ADAM_CACHE``, or else the user's cache folder as the
            system has it (``~/.cache/coupled-adam`` on Linux).

    Returns:
        The folder, which need not exist yet.

    Raises:
        RefusedError: if it lies in a home folder that does not exist.
    """
    chosen = cache if cache is not None else os.environ.get("COUPLED_ADAM_CACHE")
    try:
        if not chosen:
            # Without a home folder platformdirs says so, or leaves the ~ in the path.
            chosen = user_cache_path("coupled-adam", appauthor=False)
        return files.user_path(chosen).absolute()
    except (RefusedError, RuntimeError) as error:
        raise RefusedError(
            f"there is no folder to keep token files in: {error}; {_CHOOSE}"
        ) from error


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
        RefusedError: if there is no home folder to keep a cache in.
        OSError: the folder cannot be written, for example because the disk is full; the message
            names the folder, and nothing half-written is left behind.
    """
    root = cache_folder(cache)
    text = json.dumps({"format": FORMAT, **recipe}, sort_keys=True)
    final = root / files.digest_of(text)[:32]
    _remove_leftovers(root)
    if _is_known_whole(final):
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        with files.locked(_lock_file(final)):
            if not is_whole(final):  # another process may have written it while we waited
                _write_whole(final, write)
    except OSError as error:
        if is_whole(final):  # a cache that was copied here and cannot be written
            return final
        what_to_do = _REASONS.get(error.errno or 0, _CHOOSE)
        raise OSError(
            error.errno,
            f"cannot write token files to the cache folder {root}: {error.strerror or error}; "
            f"{what_to_do}",
        ) from error
    return final


def is_whole(folder: Path) -> bool:
    """Whether a cache folder holds every file that its ``meta.json`` lists, undamaged.

    Files are hashed once. What was whole then is taken for whole as long as sizes, times of the
    last change and inodes are the same: every process of a run opens the text, and 18 GB of
    OpenWebText take each of them half a minute to hash.
    """
    if _is_known_whole(folder):
        return True
    try:
        hashes = read_meta(folder)["files"]
        stamps = _stamps(folder, hashes)  # before: what changes while it is hashed is not known
        if not all(files.digest(folder / name) == known for name, known in hashes.items()):
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    with contextlib.suppress(OSError):  # a cache that cannot be written is hashed every time
        files.write_json(folder / CHECKED, stamps)
    return True


def _is_known_whole(folder: Path) -> bool:
    try:
        known = json.loads((folder / CHECKED).read_text(encoding="utf-8"))
        return bool(known) and known == _stamps(folder, read_meta(folder)["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _stamps(folder: Path, names: dict[str, str]) -> dict[str, list[Any]]:
    """What changes when a file does, and when it is copied; and its hash in ``meta.json``."""
    stamps = {}
    for name, expected in names.items():
        found = os.stat(folder / name)
        stamps[name] = [expected, found.st_size, found.st_mtime_ns, found.st_ino]
    return stamps


def read_meta(folder: Path) -> dict[str, Any]:
    """What ``meta.json`` of a cache folder says."""
    return json.loads((folder / META).read_text(encoding="utf-8"))


def _write_whole(final: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    if final.exists():  # damaged, or it would not be written again
        shutil.rmtree(final)
    temporary = _temporary_folder(final)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        meta = write(temporary)
        paths = sorted(temporary.iterdir())
        meta["files"] = {path.name: files.digest(path) for path in paths}
        (temporary / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        stamps = _stamps(temporary, meta["files"])
        (temporary / CHECKED).write_text(json.dumps(stamps), encoding="utf-8")
        os.rename(temporary, final)
    except BaseException:  # an interrupt must not leave anything behind either
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove_leftovers(root: Path) -> None:
    for temporary in root.glob("*.tmp"):
        # A lock that is held says that the writer lives; a read-only cache is left as it is.
        with (
            contextlib.suppress(OSError, files.InUseError),
            files.locked(_lock_file(temporary), wait=False),
        ):
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary_folder(final: Path) -> Path:
    return final.with_suffix(".tmp")


def _lock_file(folder: Path) -> Path:
    return folder.with_suffix(".lock")
