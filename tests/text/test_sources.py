from __future__ import annotations

import bz2
import gzip
import importlib.util
import lzma
import os
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupled_adam.errors import RefusedError
from coupled_adam.text import END_OF_TEXT, TextError, load, sources, wikipedia_sample
from coupled_adam.text.sources import clean_article


def documents(corpus):
    """The documents of a corpus, decoded, as a set; those of both parts."""
    whole = corpus.decode(corpus.train) + corpus.decode(corpus.validation)
    return set(whole.split(END_OF_TEXT)[:-1])


# Wikipedia


def test_the_wikipedia_sample_has_about_105_articles(wikipedia):
    ends = (wikipedia.train == 0).sum() + (wikipedia.validation == 0).sum()
    assert 100 <= ends <= 110
    articles = documents(wikipedia)
    assert 2.8e6 < sum(map(len, articles)) < 3.1e6
    assert any(a.startswith("Anarchism\n\nAnarchism is a political philosophy") for a in articles)


def test_the_wikipedia_sample_has_no_markup_left(wikipedia):
    lines = "\n".join(documents(wikipedia)).splitlines()
    marked = [x for x in lines if x.startswith(("=", "*", "#", "{|", "|")) or "''" in x]
    assert marked == []
    assert not any(x.lower().startswith(("#redirect", "redirect ")) for x in lines)


def test_the_wikipedia_sample_is_split_and_sized(wikipedia):
    assert wikipedia.name == "Wikipedia sample"
    assert wikipedia.vocabulary_size == 4096
    assert wikipedia.train.dtype == np.uint16
    share = len(wikipedia.validation) / (len(wikipedia.train) + len(wikipedia.validation))
    assert 0.05 < share < 0.15
    assert wikipedia.train.max() < 4096


def test_the_wikipedia_sample_is_read_once(wikipedia, wikipedia_cache, monkeypatch):
    monkeypatch.setattr(sources, "wikipedia_articles", lambda: pytest.fail("built again"))
    again = wikipedia_sample(cache=wikipedia_cache)
    assert np.array_equal(again.train, wikipedia.train)
    assert again.fingerprint == wikipedia.fingerprint


def test_a_missing_gensim_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TextError, match="gensim, which is not installed: pip install"):
        wikipedia_sample(cache=tmp_path)


def test_a_missing_or_wrong_dump_is_named(tmp_path, monkeypatch):
    package = SimpleNamespace(origin=str(tmp_path / "gensim" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(TextError, match="missing from the installed gensim"):
        wikipedia_sample(cache=tmp_path)
    dump = tmp_path / "gensim" / sources.DUMP
    dump.parent.mkdir(parents=True)
    dump.write_bytes(b"another file")
    with pytest.raises(TextError, match=r"not the file that is expected: SHA-256 of .*shortened"):
        wikipedia_sample(cache=tmp_path)


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("== A heading ==\ntext here", "A heading\n\ntext here"),
        ("===Deep===", "Deep"),
        ("* one item\n** below it\n#third\n:said he", "one item\nbelow it\nthird\nsaid he"),
        ("'''Bold''' and ''slanted''; it's", "Bold and slanted; it's"),
        ("Paean (), the physician ( ; or healer) , he", "Paean, the physician (or healer), he"),
        ("File:A b.jpg|caption\n12.5\n—\nkept text\n__TOC__", "kept text"),
        ("one\n\n\n\n\ntwo\xa0 three", "one\n\ntwo three"),
    ],
)
def test_markup_is_cleaned(markup, plain):
    assert clean_article(markup) == plain


# The user's own text


@pytest.mark.parametrize("suffix", [".txt", ".txt.xz", ".txt.gz", ".txt.bz2", ".gz", ".xz", ".md"])
def test_compression_does_not_change_the_tokens(tmp_path, text, text_file, suffix):
    pack = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress}
    packed = tmp_path / f"packed{suffix}"
    packed.write_bytes(pack.get(packed.suffix, bytes)(text.encode()))
    corpus = load(packed, 300, cache=tmp_path / "cache")
    assert corpus.name == "packed"
    assert corpus.fingerprint == load(text_file, 300, cache=tmp_path / "cache").fingerprint


def test_a_file_is_split_at_separator_lines(tmp_path, text):
    lines = text.splitlines()
    parts = ["\n".join(lines[i::30]) for i in range(30)]
    parts[3] += f"\nnot {END_OF_TEXT} alone\n {END_OF_TEXT}"  # inside a line it separates nothing
    path = tmp_path / "a.txt"
    path.write_text(f"{END_OF_TEXT}\n" + f"\n{END_OF_TEXT} \n\n".join(parts), encoding="utf-8")
    corpus = load(path, 300, cache=tmp_path / "cache")
    ends = (corpus.train == 0).sum() + (corpus.validation == 0).sum()
    assert ends == len(parts)
    whole = corpus.decode(corpus.train) + corpus.decode(corpus.validation)
    assert all(part + END_OF_TEXT in whole for part in parts)


def test_a_folder_is_read_recursively_in_order(tmp_path, text):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "c.txt").write_text("third\n" + text, encoding="utf-8")
    (folder / "a.txt").write_text("first\n" + text, encoding="utf-8")
    (folder / "b" / "x.txt.gz").write_bytes(gzip.compress(f"second\n{text}".encode()))
    (folder / "notes.pdf").write_bytes(b"\x00")
    (folder / ".hidden" / "x.txt").write_bytes(b"\x00")
    (folder / "empty.txt").write_bytes(b"")
    corpus = load(folder, 300, cache=tmp_path / "cache")
    found = corpus.decode(corpus.train).split(END_OF_TEXT)
    assert [d[:5] for d in found[:2]] == ["first", "secon"]
    assert "third\n" in corpus.decode(corpus.train)


def test_marks_of_other_systems_are_normalised(tmp_path, text):
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_bytes(text.encode())
    marked.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    cache = tmp_path / "cache"
    assert load(plain, 300, cache).fingerprint == load(marked, 300, cache).fingerprint


@pytest.mark.parametrize("block", [17, 64, 1 << 20])
def test_marks_of_joined_files_are_no_text(tmp_path, text, monkeypatch, block):
    """As cat makes them of files that an editor has saved; none hides a separator."""
    monkeypatch.setattr(sources, "BLOCK", block)
    mark, cache = b"\xef\xbb\xbf", tmp_path / "cache"
    half, end = text[: len(text) // 2], END_OF_TEXT.encode() + b"\n"
    pieces = [half.encode() + b"\n", end, text.encode() + b"\n", end, b"third\n"]
    (tmp_path / "plain.txt").write_bytes(b"".join(pieces))
    plain = load(tmp_path / "plain.txt", 300, cache)
    assert (plain.train == 0).sum() + (plain.validation == 0).sum() == 4  # one is cut
    for name, marked in {
        "every": [mark + piece for piece in pieces],
        "double": [mark + mark + pieces[0], *pieces[1:]],
        "windows": [mark + piece.replace(b"\n", b"\r\n") for piece in pieces],
    }.items():
        (tmp_path / f"{name}.txt").write_bytes(b"".join(marked))
        assert load(tmp_path / f"{name}.txt", 300, cache).fingerprint == plain.fingerprint


def test_a_pipe_is_refused_since_it_is_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(TextError, match="is neither a file nor a folder: save the text"):
            load(path, 300, tmp_path / "cache")


def test_a_home_folder_is_meant_by_its_sign(tmp_path, text_file, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    there = load(text_file, 300, tmp_path / "cache")
    here = load(f"~/{text_file.name}", 300, "~/cache")
    assert (here.fingerprint, here.folder) == (there.fingerprint, there.folder)
    with pytest.raises(RefusedError, match=r"~nobody_here/a\.txt: there is no home folder"):
        load("~nobody_here/a.txt", 300, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", r"empty\.txt is empty"),
        ("blank.txt", b" \n\n ", r"blank\.txt is empty"),
        ("zero.txt", b"some text\x00more", r"zero\.txt is not plain text: byte 9 .* 0x00"),
        ("bell.txt", b"\xef\xbb\xbfab\x07", r"bell\.txt is not plain text: byte 5 .* 0x07"),
        ("latin.txt", "naïve".encode("latin-1"), r"latin\.txt is not UTF-8: byte 2 .* 0xef"),
        ("bom.txt", b"\xef\xbb\xbfab\xff", r"bom\.txt is not UTF-8: byte 5 .* 0xff"),
        ("cut.txt", "naï".encode()[:-1], r"cut\.txt is not UTF-8: byte 2 "),
        ("wide.txt", "text".encode("utf-16"), r"wide\.txt is UTF-16, not UTF-8"),
        ("wide.txt", "text".encode("utf-16-be"), r"wide\.txt is UTF-16, not UTF-8"),
        ("wide.txt", "text".encode("utf-32"), r"wide\.txt is UTF-32, not UTF-8"),
        (
            "wide.txt.gz",
            gzip.compress("text".encode("utf-16-le"), mtime=0),
            r"gz is UTF-16, not UTF-8",
        ),
        ("not.txt.gz", b"plain text", r"not\.txt\.gz cannot be unpacked"),
        ("not.txt.xz", b"plain text", r"not\.txt\.xz cannot be unpacked"),
        ("not.txt.bz2", b"plain text", r"not\.txt\.bz2 cannot be unpacked"),
        ("cut.gz", gzip.compress(b"some text" * 99, mtime=0)[:-9], r"cut\.gz cannot be unpacked"),
        ("cut.xz", lzma.compress(b"some text" * 99)[:-9], r"cut\.xz cannot be unpacked"),
        ("cut.bz2", bz2.compress(b"some text" * 99)[:-9], r"cut\.bz2 cannot be unpacked"),
        (
            "bad.gz",
            gzip.compress(b"some text" * 99, mtime=0)[:-8] + bytes(8),
            r"bad\.gz cannot be unp",
        ),
        ("small.txt", b"a few words only", r"small for a vocabulary of 300.*yield only 257"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        load(tmp_path / name, 300, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.tmp")) == []


def test_the_place_of_a_bad_byte_is_counted_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 7)
    path = tmp_path / "a.txt"
    path.write_bytes("ääääääää\r\n".encode() + b"\xff")
    with pytest.raises(TextError, match="byte 18 "):
        load(path, 300, cache=tmp_path / "cache")


def test_too_little_text_for_validation_says_how_much_is_needed(tmp_path, text):
    path = tmp_path / "short.txt"
    path.write_text(text[:3000], encoding="utf-8")
    with pytest.raises(TextError, match=r"short\.txt is too small .* at least 1,024 .* give about"):
        load(path, 257, cache=tmp_path / "cache")


def test_a_missing_path_or_text_is_named(tmp_path):
    with pytest.raises(TextError, match=r"no file or folder .*nowhere\.txt"):
        load(tmp_path / "nowhere.txt", cache=tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(TextError, match=r"photos holds no text file \(\.txt"):
        load(tmp_path / "photos", cache=tmp_path)


@pytest.mark.parametrize("size", [256, 0, 1_000_001, 300.0, "300"])
def test_an_impossible_vocabulary_size_is_refused_with_its_range(text_file, tmp_path, size):
    with pytest.raises(TextError, match="from 257 to 1,000,000"):
        load(text_file, size, cache=tmp_path)
    with pytest.raises(TextError, match="from 257 to 1,000,000"):
        wikipedia_sample(size, cache=tmp_path)


def test_an_unreadable_file_is_named(text_file, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources, "digest", refuse)
    with pytest.raises(TextError, match=r"cannot read .*nonsense\.txt: Permission denied"):
        load(text_file, 300, cache=tmp_path)


# Passing text through in blocks


words = st.lists(
    st.sampled_from(["a", "bé ", "\n", "\n\n", " ", "\t", "...", END_OF_TEXT, f"\n{END_OF_TEXT}\n"])
)


@given(words, st.integers(4, 40), st.integers(2, 30) | st.just(10_000))
def test_blocks_and_passages_do_not_change_the_documents(parts, block, passage):
    text = "".join(parts)
    expected, document = [], []
    for line in [*text.split("\n"), END_OF_TEXT]:
        if line.rstrip(" \t") == END_OF_TEXT:
            expected.append("\n".join(document).strip())
            document = []
        else:
            document.append(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK", 1000)
        patch.setattr(sources, "PASSAGE", passage)
        blocks = [text[i : i + block] for i in range(0, len(text), block)]
        found = list(sources.in_passages(sources._documents(blocks)))
    assert all(p is None or len(p) <= passage for p in found)
    joined = "".join("\0" if p is None else p for p in found).split("\0")[:-1]
    if passage < len(text):  # white space longer than a passage may stay at a document's end
        joined = [d.rstrip() for d in joined]
    assert joined == [e for e in expected if e]


def test_one_long_line_passes_in_pieces(monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 50)
    monkeypatch.setattr(sources, "PASSAGE", 40)
    blocks = ["ab " * 10] * 9 + [f"end\n{END_OF_TEXT}\nnext"]
    pieces = list(sources._documents(blocks))
    assert max(len(p) for p in pieces if p is not None) <= 100
    found = list(sources.in_passages(pieces))
    assert "".join(p for p in found if p) == "ab " * 90 + "endnext"
    assert found.count(None) == 2


def test_cutting_a_document_into_passages_keeps_its_tokens(wikipedia, monkeypatch):
    article = "\n\n   \n  ".join(wikipedia.decode(wikipedia.train[:3000]).split(" "))
    monkeypatch.setattr(sources, "PASSAGE", 200)
    passages = [p for p in sources.in_passages([article, None]) if p is not None]
    assert len(passages) > 10
    assert not any(p[-1].isspace() for p in passages)
    pieces = np.concatenate([wikipedia.encode(p) for p in passages])
    assert np.array_equal(pieces, wikipedia.encode("".join(passages)))
