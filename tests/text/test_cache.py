from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from coupled_adam import files
from coupled_adam.errors import RefusedError
from coupled_adam.text import Corpus, TextError, cache, load, sources, tokens
from coupled_adam.text.corpus import open_corpus

# Writes a text to a cache; stops for good in the middle of the tokens if asked to.
WRITER = """
import sys, time
from coupled_adam.text import load, tokens

append = tokens._append

def stuck(file, ids):
    append(file, ids)
    file.flush()
    print("writing", flush=True)
    time.sleep(60)

if sys.argv[3] == "stuck":
    tokens._append = stuck
print(load(sys.argv[1], 300, cache=sys.argv[2]).fingerprint)
"""


def start_writer(text_file: Path, folder: Path, how: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(text_file), str(folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def contents(entry: Path) -> dict[str, bytes]:
    """What an entry holds, apart from the note of when its files were looked at."""
    return {p.name: p.read_bytes() for p in entry.iterdir() if p.name != "checked.json"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def corpus(text_file, folder) -> Corpus:
    return load(text_file, 300, cache=folder)


def test_a_text_is_encoded_only_once(corpus, text_file, folder, monkeypatch):
    monkeypatch.setattr(sources, "write_text", lambda *_: pytest.fail("built again"))
    again = load(text_file, 300, cache=folder)
    assert np.array_equal(again.train, corpus.train)
    assert np.array_equal(again.validation, corpus.validation)
    assert again.fingerprint == corpus.fingerprint


def test_an_entry_says_what_it_holds(corpus):
    meta = json.loads((corpus.folder / "meta.json").read_text())
    assert meta["tokens"] == {"train": len(corpus.train), "validation": len(corpus.validation)}
    assert meta["dtype"] == "<u2"
    others = {"meta.json", "checked.json"}
    assert set(meta["files"]) | others == {p.name for p in corpus.folder.iterdir()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing_behind(text_file, folder, monkeypatch, error):
    def interrupted(file, ids):
        file.write(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_append", interrupted)
        with pytest.raises(error):
            load(text_file, 300, cache=folder)
    assert entries(folder) == []
    assert len(load(text_file, 300, cache=folder).train) > 1000


def test_a_full_disk_is_named_and_leaves_nothing_behind(text_file, folder, monkeypatch):
    def full(file, ids):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tokens, "_append", full)
    with pytest.raises(OSError, match="No space left") as caught:
        load(text_file, 300, cache=folder)
    assert caught.value.errno == errno.ENOSPC
    assert str(folder) in str(caught.value)
    assert "COUPLED_ADAM_CACHE" in str(caught.value)
    assert entries(folder) == []


def test_a_cache_folder_that_cannot_be_made_is_named(text_file, tmp_path):
    with pytest.raises(OSError, match=r"cannot write token files .*nonsense\.txt"):
        load(text_file, 300, cache=text_file / "cache")


def test_a_killed_writer_is_cleaned_up_after(text_file, folder):
    writer = start_writer(text_file, folder, "stuck")
    assert writer.stdout.readline() == "writing\n"
    assert [Path(name).suffix for name in entries(folder)] == [".tmp"]
    writer.kill()
    writer.wait()
    writer.stdout.close()
    load(text_file, 301, cache=folder)  # another entry: the next start of any kind cleans up
    assert len(entries(folder)) == 1
    corpus = load(text_file, 300, cache=folder)
    assert corpus.counts.sum() == len(corpus.train)


def test_a_living_writer_is_left_alone(text_file, folder):
    writer = start_writer(text_file, folder, "stuck")
    try:
        assert writer.stdout.readline() == "writing\n"
        before = entries(folder)
        load(text_file, 301, cache=folder)
        assert set(before) < set(entries(folder))
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def test_two_processes_can_build_the_same_text_at_once(text_file, folder):
    writers = [start_writer(text_file, folder, "once") for _ in range(2)]
    answers = [writer.communicate(timeout=60)[0].strip() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert answers[0] == answers[1] == load(text_file, 300, cache=folder).fingerprint
    assert len(entries(folder)) == 1


def test_who_comes_second_waits_and_does_not_build(folder):
    def write(temporary):
        pytest.fail("built although another had just done so")

    other_writes, second_asked = threading.Event(), threading.Event()
    built = []

    def slow(temporary):
        (temporary / "file").write_text("content")
        other_writes.set()
        second_asked.wait(20)
        time.sleep(0.2)
        built.append(temporary)
        return {}

    with ThreadPoolExecutor() as pool:
        first = pool.submit(cache.entry, folder, {}, slow)
        assert other_writes.wait(20)
        second = pool.submit(lambda: second_asked.set() or cache.entry(folder, {}, write))
        assert first.result(20) == second.result(20)
    assert len(built) == 1


def truncated(folder):
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])


def altered(folder):
    path = folder / "validation.bin"
    path.write_bytes(bytes(path.stat().st_size))


def without_meta(folder):
    (folder / "meta.json").unlink()


def with_half_a_meta(folder):
    path = folder / "meta.json"
    path.write_text(path.read_text()[:50])


def with_an_odd_meta(folder):
    (folder / "meta.json").write_text("[]")


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [truncated, altered, without_meta, with_half_a_meta, with_an_odd_meta, without_tokenizer],
)
def test_a_damaged_entry_is_built_again(text_file, folder, damage):
    load(text_file, 300, cache=folder)
    (entry,) = entries(folder)
    before = contents(folder / entry)
    damage(folder / entry)
    load(text_file, 300, cache=folder)
    assert contents(folder / entry) == before


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of the files of the cache that are hashed from here on."""
    names, digest = [], files.digest

    def noted(path):
        names.append(Path(path).name)
        return digest(path)

    monkeypatch.setattr(files, "digest", noted)
    return names


ALL = ["counts.bin", "tokenizer.json", "train.bin", "validation.bin"]


def test_token_files_are_hashed_once(corpus, text_file, folder, hashed):
    for _ in range(3):
        assert load(text_file, 300, cache=folder).fingerprint == corpus.fingerprint
    assert hashed == []  # they were when they were written


def test_token_files_that_were_copied_here_are_hashed_once(corpus, text_file, tmp_path, hashed):
    copied = tmp_path / "copied"
    shutil.copytree(corpus.folder.parent, copied)
    assert load(text_file, 300, cache=copied).fingerprint == corpus.fingerprint
    assert sorted(hashed) == ALL
    load(text_file, 300, cache=copied)
    assert sorted(hashed) == ALL


@pytest.mark.parametrize(
    "note", [None, b"", b"{}", b"[]", b"{", b"null", b'{"train.bin": 1}', b"\xff\xff"]
)
def test_without_the_note_that_they_are_whole_they_are_hashed(
    corpus, text_file, folder, hashed, note
):
    path = corpus.folder / "checked.json"
    path.unlink() if note is None else path.write_bytes(note)
    load(text_file, 300, cache=folder)
    load(text_file, 300, cache=folder)
    assert sorted(hashed) == ALL


def same_size_and_time(folder):
    path = folder / "train.bin"
    times = path.stat()
    path.rename(folder.parent / "old.lock")  # so that the inode is not given again
    path.write_bytes(bytes(times.st_size))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def same_size(folder):
    path = folder / "counts.bin"
    path.write_bytes(bytes(path.stat().st_size))


def longer(folder):
    with (folder / "train.bin").open("ab") as file:
        file.write(b"xx")


def another_hash(folder):
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    meta["files"]["train.bin"] = meta["files"]["validation.bin"]
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", [same_size_and_time, same_size, longer, another_hash, truncated])
def test_damage_is_noticed_although_the_files_were_whole_before(corpus, text_file, folder, damage):
    before = contents(corpus.folder)
    damage(corpus.folder)
    load(text_file, 300, cache=folder)
    assert contents(corpus.folder) == before


def test_a_cache_that_cannot_be_written_is_read(corpus, text_file, folder, monkeypatch, hashed):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "locked", refuse)
    monkeypatch.setattr(files, "write_json", refuse)
    assert load(text_file, 300, cache=folder).fingerprint == corpus.fingerprint
    (corpus.folder / "checked.json").unlink()
    assert load(text_file, 300, cache=folder).fingerprint == corpus.fingerprint
    with pytest.raises(OSError, match=r"cannot write token files .*: Permission denied; choose"):
        load(text_file, 301, cache=folder)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("{file}", "File exists; choose another folder"),
        ("{file}/below", "Not a directory; choose another folder"),
        ("/dev/null", "choose another folder"),
        ("/proc/cache", "No such file or directory; choose another folder"),
        ("{circle}", "choose another folder"),
    ],
)
def test_a_cache_that_is_no_folder_is_named(text_file, tmp_path, monkeypatch, chosen, says):
    (tmp_path / "circle").symlink_to("circle")
    chosen = chosen.format(file=text_file, circle=tmp_path / "circle")
    monkeypatch.setenv("COUPLED_ADAM_CACHE", chosen)
    with pytest.raises(OSError, match=rf"cannot write token files .* {chosen}: .*{says}"):
        load(text_file, 300)
    assert text_file.is_file()


def test_a_folder_that_is_gone_is_named(corpus):
    folder = corpus.folder
    shutil.rmtree(folder)
    with pytest.raises(TextError, match=r"token files of nonsense are gone .* load the text again"):
        open_corpus(folder, corpus.name)


def test_the_cache_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("COUPLED_ADAM_CACHE", str(tmp_path / "chosen"))
    assert cache.cache_folder() == tmp_path / "chosen"
    assert cache.cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("COUPLED_ADAM_CACHE")
    monkeypatch.setenv("COUPLED_ADAM_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "coupled-adam"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder().is_relative_to(Path.home())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COUPLED_ADAM_CACHE", "~/chosen")
    assert cache.cache_folder() == tmp_path / "chosen"


@pytest.mark.parametrize("home", [None, "", "relative"])
@pytest.mark.parametrize("chosen", [None, "~/cache", "~nobody_here/cache"])
def test_without_a_home_folder_it_says_how_to_choose_one(monkeypatch, tmp_path, home, chosen):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # as in a container: of no known user
    monkeypatch.delenv("COUPLED_ADAM_CACHE", raising=False)
    if chosen:
        monkeypatch.setenv("COUPLED_ADAM_CACHE", chosen)
    with pytest.raises(RefusedError, match=r"no folder to keep token files .* COUPLED_ADAM_CACHE"):
        cache.cache_folder()
    assert cache.cache_folder(tmp_path / "given") == tmp_path / "given"
