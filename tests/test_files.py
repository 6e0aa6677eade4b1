"""What ``files`` promises: text as it is meant, files whole or absent, nothing replaced unasked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from coupled_adam import files
from coupled_adam.errors import RefusedError

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "content",
    [
        b"tiger cat\nbook paper\n",
        MARK + b"tiger cat\nbook paper\n",
        MARK + MARK + b"tiger cat\r\nbook paper\r\n",
        MARK + b"tiger cat\n" + MARK + b"book paper\n",  # two files, joined
        b"tiger cat\rbook paper\r",
    ],
)
def test_marks_and_line_ends_of_an_editor_are_no_text(tmp_path, content):
    (tmp_path / "pairs.tsv").write_bytes(content)
    assert files.read_text(tmp_path / "pairs.tsv") == "tiger cat\nbook paper\n"


def test_a_mark_inside_a_line_is_text(tmp_path):
    (tmp_path / "pairs.tsv").write_text("tiger\ufeffcat", encoding="utf-8")
    assert files.read_text(tmp_path / "pairs.tsv") == "tiger\ufeffcat"


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16-LE", "UTF-16-BE", "UTF-32", "UTF-32-LE"])
@pytest.mark.parametrize("text", ["tiger cat 7.35", "ab"])
def test_another_unicode_is_named(tmp_path, encoding, text):
    (tmp_path / "pairs.tsv").write_bytes(text.encode(encoding))
    with pytest.raises(RefusedError, match=rf"pairs\.tsv is {encoding[:6]}, not UTF-8: save"):
        files.read_text(tmp_path / "pairs.tsv")


def test_what_is_not_utf_8_is_named_with_its_byte(tmp_path):
    (tmp_path / "pairs.tsv").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(RefusedError, match=r"pairs\.tsv is not UTF-8: byte 2 of it is 0xef"):
        files.read_text(tmp_path / "pairs.tsv")


def test_a_home_folder_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pairs.tsv").write_text("tiger cat")
    assert files.read_text("~/pairs.tsv") == "tiger cat"


# Whole files


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left")])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, error):
    (tmp_path / "result").write_bytes(b"old")
    with (
        pytest.raises((RuntimeError, KeyboardInterrupt, OSError)),
        files.whole_file(tmp_path / "result") as file,
    ):
        file.write(b"new")
        raise error
    assert (tmp_path / "result").read_bytes() == b"old"
    assert left(tmp_path) == ["result"]


def test_a_failed_write_says_which_file_and_what_to_do(tmp_path):
    with pytest.raises(OSError, match=r"could not write .*none/result: No such file.*free space"):
        files.write_whole(tmp_path / "none" / "result", b"")


def test_permissions_of_a_file_stay(tmp_path):
    (tmp_path / "result").write_bytes(b"old")
    (tmp_path / "result").chmod(0o640)
    files.write_whole(tmp_path / "result", b"new")
    assert (tmp_path / "result").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_leads_to_the_new_content(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "result", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("elsewhere/result")
    files.check_writable(link)
    files.write_whole(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert left(tmp_path) == ["elsewhere", "link"] and left(target.parent) == ["result"]


def test_a_link_in_a_circle_stays(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(RefusedError, match=r"cannot be written .*symbolic links"):
        files.check_writable(tmp_path / "a")
    with pytest.raises(OSError, match=r"could not write .*symbolic links"):
        files.write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "b").is_symlink()


def test_a_device_is_written_through():
    files.check_writable("/dev/null")
    files.write_whole("/dev/null", b"new")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="could not write /dev/full: No space left"):
        files.write_whole("/dev/full", b"new")


def test_a_named_pipe_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        files.check_writable(tmp_path / "pipe")  # and the reader waits on
        files.write_whole(tmp_path / "pipe", b"new")
        assert reader.stdout.read() == b"new"
    assert (tmp_path / "pipe").is_fifo()


PRINTER = """
import sys
from coupled_adam import files
print("before")
files.check_writable(sys.argv[1])
files.write_whole(sys.argv[1], b"result\\n")
print("after")
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "itself"])
def test_a_result_on_stdout_stands_between_what_is_printed(tmp_path, name):
    path = tmp_path / "printed"
    with path.open("wb") as stdout:
        arguments = [str(path) if name == "itself" else name]
        subprocess.run([sys.executable, "-c", PRINTER, *arguments], stdout=stdout, check=True)
    assert path.read_text() == "before\nresult\nafter\n"


def test_another_descriptor_is_written_through(tmp_path):
    with (tmp_path / "given").open("wb") as given:
        given.write(b"mine\n")
        given.flush()
        descriptor = given.fileno()
        command = [sys.executable, "-c", PRINTER, f"/dev/fd/{descriptor}"]
        subprocess.run(command, pass_fds=[descriptor], stdout=subprocess.DEVNULL, check=True)
        given.write(b"mine again\n")
    assert (tmp_path / "given").read_text() == "mine\nresult\nmine again\n"


def test_where_nothing_can_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    for path, why in {
        tmp_path: "it is a folder",
        tmp_path / "none" / "result": f"there is no folder {tmp_path / 'none'}",
        tmp_path / "file" / "result": "Not a directory",
        tmp_path / "socket": "it is a socket",
        tmp_path / ("x" * 300): "File name too long",
        "/proc/result": "No such file",
    }.items():
        with pytest.raises(RefusedError, match=why):
            files.check_writable(path)
    listening.close()
    assert left(tmp_path) == ["file", "socket"]


def test_what_is_write_protected_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything
    with pytest.raises(RefusedError, match="Permission denied"):
        files.check_writable(tmp_path / "file")


def test_looking_leaves_nothing(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    files.check_writable(tmp_path / "new")
    files.check_writable(tmp_path / "old")
    assert left(tmp_path) == ["old"] and (tmp_path / "old").read_bytes() == b"old"


# Names as a user writes them


@pytest.mark.parametrize("path", ["~nobody_here", "~nobody_here/x", "~nobody_here/~/x"])
def test_an_unknown_home_is_named(path):
    with pytest.raises(RefusedError, match=f"{path}: there is no home folder"):
        files.user_path(path)


def test_no_home_at_all_is_named(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # as in a container: of no known user
    for path in ("~", "~/x", "~/a/b"):
        with pytest.raises(RefusedError, match="there is no home folder"):
            files.user_path(path)


# Locks


def test_a_lock_is_held_against_other_processes(tmp_path):
    code = (
        "import sys; from coupled_adam import files\n"
        "with files.locked(sys.argv[1], wait=False): pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.lock")]
    with files.locked(tmp_path / "x.lock"):
        refused = subprocess.run(command, capture_output=True, text=True)
    assert "InUseError" in refused.stderr and "x.lock is locked by another" in refused.stderr
    subprocess.run(command, check=True)


def test_a_whole_file_appears_with_its_last_byte(tmp_path):
    path = tmp_path / "x"
    with files.whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_whole_file_takes_the_place_of_the_old_one_at_once(tmp_path):
    """Renamed, not copied over: whoever has the old file open still has all of it."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with files.whole_file(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
