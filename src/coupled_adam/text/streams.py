"""Collections of documents that are streamed over the network and prepared in shards."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from coupled_adam.files import digest, digest_of, write_whole
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

    def start(number: int) -> Iterator[str]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise TextError(
                f"{name} is streamed by the package datasets, which is not installed: "
                "pip install datasets"
            ) from error
        rows = load_dataset(path, configuration, split="train", streaming=True)
        return (row["text"] for row in rows.skip(number))

    return stream(name, start, documents, vocabulary_size, cache)


def stream(
    name: str,
    start: Callable[[int], Iterable[str]],
    documents: int | None = None,
    vocabulary_size: int = 50_257,
    cache: str | os.PathLike[str] | None = None,
) -> Corpus:
    """Prepare a stream of documents; call again after an interruption to go on.

    The BPE is trained on the beginning, on 1,000 characters for each token and at least 8 million.
    Tokens are written in shards of 10,000 documents, each with its SHA-256; a shard that is
    missing or damaged is made (again), the others are kept. From complete shards the token files
    are assembled and the shards removed.

    Args:
        name: what the text is called; with the numbers below it is what the cache knows it by.
        start: starts the stream at a document, counted from 0; every time with the same texts.
        documents: how many are taken; None for all.
        vocabulary_size: number of BPE tokens V, from 257.
        cache: folder for the token files; None for ``$COUPLED_ADAM_CACHE`` or the user's cache.

    Returns:
        The corpus; every 200th document is for validation.

    Raises:
        TextError: the stream breaks off, or holds too little text.
        OSError: the cache folder cannot be written.
    """
    vocabulary_size = checked_vocabulary_size(vocabulary_size)
    if documents is not None and documents < 1:
        raise TextError(f"documents must be a whole number from 1, not {documents!r}")
    parts: list[Path] = []

    def write(folder: Path) -> dict:
        parts.append(folder.with_suffix(".parts"))
        parts[0].mkdir(exist_ok=True)
        tokenizer = _tokenizer(parts[0], name, start, vocabulary_size)
        pieces = _pieces(_shards(parts[0], name, start, documents, tokenizer))
        meta = write_tokens(folder, tokenizer, pieces)
        held_out = meta["tokens"]["validation"]
        if held_out < MINIMUM_VALIDATION:
            raise TextError(
                f"{name} gives {held_out:,} tokens for validation (every {HELD_OUT}th document), "
                f"at least {MINIMUM_VALIDATION:,} are needed; take more documents"
            )
        return meta

    recipe = {
        "stream": name,
        "documents": documents,
        "vocabulary_size": vocabulary_size,
        "sample": sample_size(vocabulary_size),
        "split": [SHARD, HELD_OUT],
    }
    folder = token_cache.entry(cache, recipe, write)
    for folder_of_shards in parts:
        shutil.rmtree(folder_of_shards, ignore_errors=True)
    return open_corpus(folder, name)


def _tokenizer(
    parts: Path, name: str, start: Callable[[int], Iterable[str]], vocabulary_size: int
) -> Tokenizer:
    path = parts / TOKENIZER_FILE
    if not _is_whole(path):
        tokenizer = train_bpe(_sample(name, start, sample_size(vocabulary_size)), vocabulary_size)
        if tokenizer.get_vocab_size() < vocabulary_size:
            raise TextError(
                f"{name} is too small for a vocabulary of {vocabulary_size:,} tokens: it yields "
                f"only {tokenizer.get_vocab_size():,}; ask for that many or less"
            )
        _save(path, tokenizer.to_str().encode())
    return read_tokenizer(path)


def _sample(name: str, start: Callable[[int], Iterable[str]], most: int) -> Iterator[str]:
    size = 0
    for text in _unbroken(name, start, 0):
        if size >= most:
            return
        size += len(text)
        yield text


def _shards(
    parts: Path,
    name: str,
    start: Callable[[int], Iterable[str]],
    documents: int | None,
    tokenizer: Tokenizer,
) -> Iterator[Path]:
    """The files of all shards, in order, each made if it is not there and whole."""
    texts, position, number, wanted = iter(()), -1, 0, SHARD
    total = None if documents is None else -(-documents // SHARD)
    with tqdm(desc=name, total=total, unit="shard", leave=False, delay=5) as progress:
        while documents is None or number * SHARD < documents:
            path, first = parts / f"{number:06}.npz", number * SHARD
            if documents is not None:
                wanted = min(SHARD, documents - first)
            if not _is_whole(path):
                if position != first:  # shards before this one were there already
                    texts = _unbroken(name, start, first)
                of_shard = list(islice(texts, wanted))
                position = first + len(of_shard)
                _save(path, _encoded_shard(of_shard, first, tokenizer))
            yield path
            with np.load(path) as shard:
                if shard["documents"] < wanted:
                    return  # the stream ends here
            number += 1
            progress.update()


def _unbroken(name: str, start: Callable[[int], Iterable[str]], first: int) -> Iterator[str]:
    """Documents from a given one on; whatever goes wrong with them says where, and how to go on."""
    number = first
    try:
        for text in start(first):
            yield text
            number += 1
    except TextError:
        raise
    except Exception as error:  # a network fails in many ways
        raise TextError(
            f"the stream of {name} broke off at document {number:,} "
            f"({type(error).__name__}: {error}); what is prepared so far is kept: see to the "
            "network and call again to go on"
        ) from error


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
    np.savez(buffer, documents=len(texts), **joined)
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
