"""Collections of documents that are streamed over the network and prepared in shards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from coupled_adam.files import InUseError, digest, digest_of, locked, write_whole
from coupled_adam.text import cache as token_cache
from coupled_adam.text.corpus import TOKENIZER_FILE, Corpus, TextError, open_corpus, read_tokenizer
from coupled_adam.text.sources import in_passages
from coupled_adam.text.tokens import (
    MINIMUM_VALIDATION,
    Part,
    checked_vocabulary_size,
    encoded,
    sample_size,
    train_bpe,
    write_tokens,
)

SHARD = 10_000  # documents; what an interruption costs at most
_NO_CHARACTER = re.compile("[\ud800-\udfff]")
HELD_OUT = 200  # every so many documents one is for validation

# Where ``datasets`` finds them: name and configuration.
COLLECTIONS = {
    "openwebtext": ("Skylion007/openwebtext", None),
    "fineweb": ("HuggingFaceFW/fineweb", "sample-10BT"),
}


def collection(
    name: str,
    documents: int | None = None,
    vocabulary_size: int = 50_257,
    cache: str | os.PathLike[str] | None = None,
) -> Corpus:
    """OpenWebText, as the paper has it, or the 10-billion-token sample of FineWeb.

    Args:
        name: "openwebtext" or "fineweb".
        documents: how many are taken, from the first one on; None for all.
        vocabulary_size: number of BPE tokens V, from 257.
        cache: folder for the token files; None for ``$COUPLED_ADAM_CACHE`` or the user's cache.

    Returns:
        The corpus; see :func:`stream`. Once it is prepared, no network is needed.

    Raises:
        TextError: the name is unknown, ``datasets`` is not installed, the stream cannot be opened
            or breaks off; what is prepared by then is kept.
        OSError: the cache folder cannot be written.
    """
    if name not in COLLECTIONS:
        raise TextError(f"there is no collection {name!r}: choose one of {', '.join(COLLECTIONS)}")
    path, configuration = COLLECTIONS[name]

    def opened() -> tuple[Any, str]:
        try:
            import datasets
        except ImportError as error:
            raise TextError(
                f"{name} is streamed by the package datasets, which is not installed: "
                "pip install datasets"
            ) from error
        rows = datasets.load_dataset(path, configuration, split="train", streaming=True)
        return rows, datasets.__version__

    def start(number: int) -> _Rows:
        rows, version = opened()
        return _Rows(rows.skip(number) if number else rows, version, number)

    def resume(place: dict[str, Any]) -> _Rows:
        rows, version = opened()
        if place["datasets"] != version:  # what a place is like is known to its own version only
            return start(place["document"])
        rows.load_state_dict(place["state"])
        return _Rows(rows, version, place["document"])

    return stream(name, start, documents, vocabulary_size, cache, resume=resume)


class _Rows:
    """The texts of a streamed dataset, and the place in it."""

    def __init__(self, rows: Any, version: str, first: int) -> None:
        self._rows, self._version, self._number = rows, version, first

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows:
            self._number += 1
            yield row.get("text") if isinstance(row, Mapping) else row

    def place(self) -> dict[str, Any]:
        """Which file, and which row of it, is next; its files before need not be opened again."""
        state = self._rows.state_dict()
        return {"datasets": self._version, "document": self._number, "state": state}


def stream(
    name: str,
    start: Callable[[int], Iterable[str]],
    documents: int | None = None,
    vocabulary_size: int = 50_257,
    cache: str | os.PathLike[str] | None = None,
    *,
    resume: Callable[[dict[str, Any]], Iterable[str]] | None = None,
) -> Corpus:
    """Prepare a stream of documents; call again after an interruption to go on.

    The BPE is trained on the beginning, on 1,000 characters for each token and at least 8 million.
    Tokens are written in shards of 10,000 documents, each with its SHA-256; a shard that is
    missing or damaged is made (again), the others are kept. From complete shards the token files
    are assembled and the shards removed. Until then they serve any number of documents.

    Args:
        name: what the text is called; with the numbers below it is what the cache knows it by.
        start: starts the stream at a document, counted from 0; every time with the same texts.
        documents: how many are taken; None for all.
        vocabulary_size: number of BPE tokens V, from 257.
        cache: folder for the token files; None for ``$COUPLED_ADAM_CACHE`` or the user's cache.
        resume: starts the stream at a place, which is what the method ``place()`` of the iterable
            that ``start`` or ``resume`` has returned said, as JSON, after a document; where it is
            given, nothing before that place has to be read again.

    Returns:
        The corpus; every 200th document is for validation.

    Raises:
        TextError: the stream breaks off, ends before so many documents, or holds too little text
            or something that is no text; the shards that are complete are kept.
        OSError: the cache folder cannot be written.
    """
    vocabulary_size = checked_vocabulary_size(vocabulary_size)
    if documents is not None and documents < 1:
        raise TextError(f"documents must be a whole number from 1, not {documents!r}")
    of_stream = {
        "stream": name,
        "vocabulary_size": vocabulary_size,
        "sample": sample_size(vocabulary_size),
        "split": [SHARD, HELD_OUT],
    }
    parts = token_cache.cache_folder(cache) / f"{digest_of(of_stream)[:32]}.parts"
    in_use = parts.with_suffix(".lock")
    written = []

    def write(folder: Path) -> dict[str, Any]:
        with locked(in_use):
            parts.mkdir(exist_ok=True)
            source = _Source(name, start, resume, parts)
            tokenizer = _tokenizer(source, vocabulary_size)
            pieces = _pieces(_shards(source, documents, tokenizer))
            meta = write_tokens(folder, tokenizer, pieces)
        written.append(folder)
        held_out = meta["tokens"]["validation"]
        if held_out < MINIMUM_VALIDATION:
            raise TextError(
                f"{name} gives {held_out:,} tokens for validation (every {HELD_OUT}th document), "
                f"at least {MINIMUM_VALIDATION:,} are needed; take more documents"
            )
        return meta

    folder = token_cache.entry(cache, {**of_stream, "documents": documents}, write)
    if written:
        # Whoever makes another number of documents of the same shards removes them in the end.
        with contextlib.suppress(InUseError), locked(in_use, wait=False):
            shutil.rmtree(parts, ignore_errors=True)
    return open_corpus(folder, name)


class _Source(NamedTuple):
    """A stream and the folder of its shards."""

    name: str
    start: Callable[[int], Iterable[str]]
    resume: Callable[[dict[str, Any]], Iterable[str]] | None
    parts: Path

    def shard(self, number: int, wanted: int) -> Path:
        """Where a shard lies; one that was cut short is of no use for more documents."""
        cut = "" if wanted == SHARD else f"-{wanted}"
        return self.parts / f"{number:06}{cut}.npz"

    def place(self, document: int) -> Path:
        """Where it is kept how the stream begins at a document."""
        return self.parts / f"{document}.place.json"


def _tokenizer(source: _Source, vocabulary_size: int) -> Tokenizer:
    path = source.parts / TOKENIZER_FILE
    if not _is_whole(path):
        tokenizer = train_bpe(_sample(source, sample_size(vocabulary_size)), vocabulary_size)
        if tokenizer.get_vocab_size() < vocabulary_size:
            raise TextError(
                f"{source.name} is too small for a vocabulary of {vocabulary_size:,} tokens: it "
                f"yields only {tokenizer.get_vocab_size():,}; ask for that many or less"
            )
        _save(path, tokenizer.to_str().encode())
    return read_tokenizer(path)


def _sample(source: _Source, most: int) -> Iterator[str]:
    size = 0
    for text in _unbroken(source, 0):
        if size >= most:
            return
        size += len(text)
        yield text


def _shards(source: _Source, documents: int | None, tokenizer: Tokenizer) -> Iterator[Path]:
    """The files of all shards, in order, each made if it is not there and whole."""
    texts: Iterator[str] = iter(())
    position, number, wanted = -1, 0, SHARD
    total = None if documents is None else -(-documents // SHARD)
    with tqdm(desc=source.name, total=total, unit="shard", leave=False, delay=5) as progress:
        while documents is None or number * SHARD < documents:
            first = number * SHARD
            if documents is not None:
                wanted = min(SHARD, documents - first)
            path = source.shard(number, wanted)
            if not _is_whole(path) or (documents is not None and _documents_in(path) < wanted):
                if position != first:  # shards before this one were there already
                    texts = _unbroken(source, first)
                of_shard = list(islice(texts, wanted))
                position = first + len(of_shard)
                if documents is not None and len(of_shard) < wanted:
                    raise TextError(
                        f"the stream of {source.name} ended after {position:,} documents of the "
                        f"{documents:,} that were asked for: if that is all there is, ask for "
                        f"{position} or for all; if it was cut off, call again to go on. What is "
                        "prepared so far is kept"
                    )
                _save(path, _encoded_shard(of_shard, first, tokenizer))
            yield path
            if _documents_in(path) < wanted:
                return  # the stream ends here
            number += 1
            progress.update()


def _documents_in(shard: Path) -> int:
    with np.load(shard) as content:
        return int(content["documents"])


def _unbroken(source: _Source, first: int) -> Iterator[str]:
    """Documents from a given one on; whatever goes wrong with them says where, and how to go on.

    The place in the stream is kept wherever a shard ends.
    """
    number, known = first, source.place(first)
    try:
        if source.resume is not None and _is_whole(known):
            texts = source.resume(json.loads(known.read_text(encoding="utf-8")))
        else:
            texts = source.start(first)
        if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
            raise TextError(
                f"start({first}) of {source.name} must give texts one after another, not an object "
                f"of type {type(texts).__name__}: return an iterator of texts, or a list"
            )
        for text in texts:
            _check_text(source.name, number, text)
            number += 1
            if source.resume is not None and number % SHARD == 0 and hasattr(texts, "place"):
                _save(source.place(number), json.dumps(texts.place()).encode())
            yield text
    except TextError:
        raise
    except Exception as error:  # a network fails in many ways
        raise TextError(
            f"the stream of {source.name} broke off at document {number:,} "
            f"({type(error).__name__}: {error}); what is prepared so far is kept: see to the cause "
            "(the network, say) and call again to go on"
        ) from error


def _check_text(name: str, number: int, text: Any) -> None:
    wrong = None
    if not isinstance(text, str):
        wrong = f"of type {type(text).__name__}, not a text"
    elif _NO_CHARACTER.search(text):
        wrong = "a text with half of a surrogate pair, which is no character"
    if wrong:
        raise TextError(
            f"document {number:,} of {name} is {wrong}: leave such rows out of the stream, or make "
            "texts of them; what is prepared so far is kept, and the same call goes on from there"
        )


def _encoded_shard(texts: list[str], first: int, tokenizer: Tokenizer) -> bytes:
    routed: Iterator[tuple[Part, str | None]] = (
        ("validation" if number % HELD_OUT == HELD_OUT - 1 else "train", passage)
        for number, text in enumerate(texts, start=first)
        for passage in in_passages([text.replace("\r\n", "\n"), None])
    )
    tokens: dict[Part, list[np.ndarray]] = {"train": [], "validation": []}
    for part, ids in encoded(routed, tokenizer):
        tokens[part].append(ids.astype(np.uint32))
    buffer = io.BytesIO()
    joined = {part: np.concatenate([np.empty(0, np.uint32), *ids]) for part, ids in tokens.items()}
    np.savez(buffer, documents=len(texts), train=joined["train"], validation=joined["validation"])
    return buffer.getvalue()


def _pieces(shards: Iterator[Path]) -> Iterator[tuple[Part, np.ndarray]]:
    for path in shards:
        with np.load(path) as shard:
            yield "train", shard["train"]
            yield "validation", shard["validation"]


def _save(path: Path, content: bytes) -> None:
    """Write a file and its digest; without the digest it counts as not written."""
    write_whole(path, content)
    write_whole(_digest_file(path), digest_of(content).encode())


def _is_whole(path: Path) -> bool:
    try:
        return digest(path) == _digest_file(path).read_text()
    except OSError:
        return False


def _digest_file(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".sha256")
