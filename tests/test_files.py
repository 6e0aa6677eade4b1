"""What ``files`` promises: text as it is meant, files whole or absent, nothing replaced unasked."""

from __future__ import annotations

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
