"""Where text comes from: a sample of Wikipedia that is installed already, and the user's own."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import importlib.util
import io
import itertools
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from coupled_adam.files import digest, other_unicode, shown, user_path
from coupled_adam.text import cache as token_cache
from coupled_adam.text.corpus import END_OF_TEXT, Corpus, TextError, open_corpus
from coupled_adam.text.tokens import (
    PASSAGE,
    SPLIT,
    Passages,
    checked_vocabulary_size,
    sample_size,
    write_text,
)

# The part of English Wikipedia that gensim uses in its own tests, CC BY-SA.
DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
DUMP_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"

OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
}
SUFFIXES = (".txt", *OPENERS)
BLOCK = 1 << 20  # bytes read at a time
PROGRESS_AFTER = 5  # seconds

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_MARKS_FURTHER_ON = re.compile("(?<=\n)\ufeff+")
_MARKS_EVERYWHERE = re.compile(r"\A\ufeff+|" + _MARKS_FURTHER_ON.pattern)
_SEPARATOR = re.compile(rf"^{re.escape(END_OF_TEXT)}[ \t]*\n", re.MULTILINE)


def wikipedia_sample(
    vocabulary_size: int = 4096, cache: str | os.PathLike[str] | None = None
) -> Corpus:
    """About a hundred articles of English Wikipedia, 3 million characters, with no network.

    They are the shortened dump that gensim carries in its test data, without redirects, headings'
    and lists' marks and other markup. An article begins with its title.

    Args:
        vocabulary_size: number of BPE tokens V, from 257.
        cache: folder for the token files; None for ``$COUPLED_ADAM_CACHE`` or the user's cache.

    Returns:
        The corpus; validation is about a tenth of the articles.

    Raises:
        TextError: gensim is not installed, or its file is missing or is not the known one.
        OSError: the cache folder cannot be written.
    """
    vocabulary_size = checked_vocabulary_size(vocabulary_size)

    def write(folder: Path) -> dict[str, Any]:
        articles = [part for article in wikipedia_articles() for part in (article, None)]
        return write_text(
            folder, "the Wikipedia sample", lambda _: in_passages(articles), vocabulary_size
        )

    recipe = {**_recipe(vocabulary_size), "text": DUMP_SHA256}
    return open_corpus(token_cache.entry(cache, recipe, write), "Wikipedia sample")


def load(
    path: str | os.PathLike[str],
    vocabulary_size: int = 4096,
    cache: str | os.PathLike[str] | None = None,
) -> Corpus:
    """Your own plain text, of any length, in UTF-8.

    Every file is a document; inside a file, lines with nothing but ``<|endoftext|>`` separate
    documents. White space at the edges of a document is dropped, byte-order marks at the beginning
    of lines too, and ``\\r\\n`` becomes ``\\n``.

    Args:
        path: a file, or a folder whose files ``.txt``, ``.xz``, ``.gz`` and ``.bz2`` are taken
            in the order of their names, those in folders below included; hidden ones are not.
        vocabulary_size: number of BPE tokens V, from 257.
        cache: folder for the token files; None for ``$COUPLED_ADAM_CACHE`` or the user's cache.

    Returns:
        The corpus, named after the path. Validation is about a tenth of the text (at most 8
        million characters), in whole documents spread over it; where there are too few of them,
        the end of the longest one.

    Raises:
        TextError: there is no text at the path, a file is not plain UTF-8 text or is damaged, or
            there is too little text for the vocabulary or for the validation split.
        OSError: the cache folder cannot be written.
    """
    vocabulary_size = checked_vocabulary_size(vocabulary_size)
    path = user_path(path)
    files = _text_files(path)

    def passages(word: str) -> Passages:
        size = sum(file.stat().st_size for file in files)
        with tqdm(
            desc=f"{word} {path.name}",
            total=size,
            unit="B",
            unit_scale=True,
            delay=PROGRESS_AFTER,
            mininterval=1,
            leave=False,
        ) as progress:
            for file in files:
                yield from in_passages(_documents(_decoded(file, _blocks(file, progress))))

    def write(folder: Path) -> dict[str, Any]:
        return write_text(folder, str(path), passages, vocabulary_size)

    recipe = {
        **_recipe(vocabulary_size),
        "text": [_digest(file) for file in files],
        "marks": "removed from every line",
    }
    name = shown(path.resolve().name.split(".")[0] or path.name)
    return open_corpus(token_cache.entry(cache, recipe, write), name)


def gensim_file(name: str, path: str) -> Path:
    """A file in the test data that the gensim wheel carries.

    Args:
        name: what messages call it.
        path: from the folder of the package.

    Raises:
        TextError: gensim is not installed, or has no such file.
    """
    package = importlib.util.find_spec("gensim")
    if package is None or package.origin is None:
        raise TextError(
            f"{name}: a part of gensim, which is not installed: pip install gensim, or give files "
            "of your own"
        )
    file = Path(package.origin).parent / path
    if not file.is_file():
        raise TextError(
            f"{name}: missing from the installed gensim, there is no {file}; install gensim 4 from "
            "its wheel (pip install --force-reinstall 'gensim>=4.3.3,<5'), or give files of your "
            "own"
        )
    return file


def wikipedia_articles() -> Iterator[str]:
    """The articles of the Wikipedia sample as plain text, each with its title as first line.

    Raises:
        TextError: gensim is not installed, or its file is missing or is not the known one.
    """
    dump = gensim_file("the Wikipedia sample", DUMP)
    if (found := digest(dump)) != DUMP_SHA256:
        raise TextError(
            f"the Wikipedia sample is not the file that is expected: SHA-256 of {dump} is {found}, "
            f"not {DUMP_SHA256}; pip install --force-reinstall 'gensim>=4.3.3,<5'"
        )
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki  # takes seconds to import

    with bz2.open(dump) as pages:
        for title, markup, _ in extract_pages(pages, filter_namespaces=("0",)):
            if not markup.lstrip().lower().startswith("#redirect"):
                text = clean_article(filter_wiki(markup))
                if text:
                    yield f"{title}\n\n{text}"


def clean_article(text: str) -> str:
    """Plain prose of an article from which templates, links and tables are gone already.

    Args:
        text: what ``gensim.corpora.wikicorpus.filter_wiki`` leaves.

    Returns:
        Paragraphs without the marks of headings, lists and emphasis, without what removed
        templates leave behind ("Paean (), the physician"), and without lines that hold no word:
        numbers from tables, file names of galleries.
    """
    text = re.sub(r"'{2,}|__[A-Z]+__", "", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r"^ ?(=+) ?(.*?) ?\1 ?$", r"\n\2\n", text, flags=re.MULTILINE)
    text = re.sub(r"^[ *#:;=]+", "", text, flags=re.MULTILINE)
    text = re.sub(r"\( ?[,;][ ,;]*", "(", text)
    text = re.sub(r" ?\( ?\)", "", text)
    text = re.sub(r" +([,;.)])(?=\s)", r"\1", text)
    lines = (line.strip() for line in text.split("\n"))
    kept = (line for line in lines if not line or _says_something(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _says_something(line: str) -> bool:
    picture = re.search(r"\.(?:jpe?g|png|gif|svg|tiff?)\b", line, re.IGNORECASE)
    return not picture and re.search(r"[^\W\d_]{2}", line) is not None


def _recipe(vocabulary_size: int) -> dict[str, Any]:
    return {
        "vocabulary_size": vocabulary_size,
        "sample": sample_size(vocabulary_size),
        "split": SPLIT,
    }


def _text_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        if path.exists():  # a pipe, say; the text is read several times
            raise TextError(f"{path} is neither a file nor a folder: save the text in a file")
        raise TextError(f"there is no file or folder {path}")
    files = [
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    ]
    if not files:
        raise TextError(f"the folder {path} holds no text file ({', '.join(SUFFIXES)})")
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def _digest(file: Path) -> str:
    try:
        return file.suffix.lower() + ":" + digest(file)
    except OSError as error:
        raise TextError(f"cannot read {file}: {error.strerror}") from error


def _blocks(file: Path, progress: tqdm) -> Iterator[bytes]:
    """The bytes of a file, unpacked."""
    try:
        with open(file, "rb") as raw, contextlib.ExitStack() as stack:
            opener = OPENERS.get(file.suffix.lower())
            unpacked = stack.enter_context(opener(raw)) if opener else raw
            read = 0
            while block := unpacked.read(BLOCK):
                yield block
                progress.update(raw.tell() - read)
                read = raw.tell()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise TextError(f"cannot read {file}: {error.strerror}") from error
        raise TextError(
            f"{file} cannot be unpacked: it is cut short, damaged, or not compressed as its name "
            f"says ({error}); get or compress it again"
        ) from error


def _decoded(file: Path, blocks: Iterable[bytes]) -> Iterator[str]:
    """Text with ``\\n`` as line end and without byte-order marks, from bytes that must be UTF-8."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    rest, offset = b"", 0  # bytes not decoded yet, and where they begin in the file
    at_line_begin = True
    for block in itertools.chain(blocks, [b""]):
        final = not block
        block = rest + block
        if offset == 0:
            if len(block) < 4 and not final:
                rest = block
                continue
            if encoding := other_unicode(block):
                raise TextError(f"{file} is {encoding}, not UTF-8: save it again in UTF-8")
        if control := _CONTROL.search(block):
            raise TextError(
                f"{file} is not plain text: byte {offset + control.start():,} of it is the control "
                f"character 0x{control.group()[0]:02x}"
            )
        try:
            text, used = codecs.utf_8_decode(block, "strict", final)
        except UnicodeDecodeError as error:
            raise TextError(
                f"{file} is not UTF-8: byte {offset + error.start:,} of it is "
                f"0x{block[error.start]:02x} ({error.reason}); save it again in UTF-8"
            ) from error
        rest, offset = block[used:], offset + used
        # The marks of files that were joined, too: one before <|endoftext|> would hide it.
        marks = _MARKS_EVERYWHERE if at_line_begin else _MARKS_FURTHER_ON
        text = marks.sub("", newlines.decode(text, final=final))
        if text:
            at_line_begin = text.endswith("\n")
            yield text


def _documents(texts: Iterable[str]) -> Iterator[str | None]:
    """Text in pieces of any length, and None at the end of each document of a file."""
    line, line_begun = "", False  # the line that is not complete, and whether some of it is out
    for text in texts:
        complete, newline, line_end = text.rpartition("\n")
        if not newline:
            line += text
            if len(line) > BLOCK:  # too long for a separator: no need to keep it
                yield line
                line, line_begun = "", True
            continue
        complete, line = line + complete + newline, line_end
        if line_begun:
            first, newline, complete = complete.partition("\n")
            yield first + newline
            line_begun = False
        first, *others = _SEPARATOR.split(complete)
        yield first
        for other in others:
            yield None
            yield other
    if line_begun or line.rstrip(" \t") != END_OF_TEXT:
        yield line
    yield None


def in_passages(texts: Iterable[str | None]) -> Passages:
    """Documents in passages of bounded length; those without a word are left out.

    A passage ends before white space that follows a character: there the pre-tokeniser cuts in
    any case, so that the tokens are those of the whole document.
    """
    pending, begun = "", False
    for text in texts:
        if text is None:
            if pending := pending.rstrip():
                yield pending
            if pending or begun:
                yield None
            pending, begun = "", False
            continue
        pending += text
        if not begun:
            pending = pending.lstrip()
        start = 0
        while len(pending) - start > PASSAGE:
            end = _passage_end(pending, start)
            yield pending[start:end]
            start, begun = end, True
        pending = pending[start:]


def _passage_end(text: str, start: int) -> int:
    for space in ("\n", " ", "\t"):
        end = text.rfind(space, start + 1, start + PASSAGE + 1)
        while end > start and text[end - 1].isspace():
            end -= 1
        if end > start:
            return end
    return start + PASSAGE
