"""Documents to token files: byte-level BPE, the split, and writing in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from coupled_adam import files
from coupled_adam.text.corpus import (
    COUNTS_FILE,
    END_OF_TEXT,
    TOKENIZER_FILE,
    TextError,
    token_type,
)

# Documents travel as a stream of passages, each at most PASSAGE characters long; None ends a
# document. So a document of any length passes in bounded memory.
Passages = Iterator[str | None]
Part = Literal["train", "validation"]

PASSAGE = 1 << 13  # characters; the encoder is slower on longer ones
BATCH = 256  # passages encoded at a time; the encoder spreads them over the cores
# Characters that the BPE is trained on, at most. The books of 200 million characters gave a
# vocabulary of 40,516 from 8 million of them, and one of 50,257 from 50 million.
SAMPLE, SAMPLE_PER_TOKEN = 8_000_000, 1_000

MINIMUM_VOCABULARY = 257  # every byte, and the end of text
MAXIMUM_VOCABULARY = 1_000_000

VALIDATION_SHARE = 0.1  # of the characters
MINIMUM_VALIDATION = 1024  # tokens: a loss over fewer says little
MAXIMUM_VALIDATION = 8_000_000  # characters: a loss over more is hardly more certain

SPLIT = [VALIDATION_SHARE, MINIMUM_VALIDATION, MAXIMUM_VALIDATION]  # part of the cache's key


@dataclass(frozen=True)
class Split:
    """Which documents are held out for validation.

    Attributes:
        validation: numbers of the documents that are held out whole.
        cut: a document whose end is held out instead, and between which two characters its end
            begins: (document, earliest, latest). None if documents stay whole.
    """

    validation: frozenset[int]
    cut: tuple[int, int, int] | None = None


def checked_vocabulary_size(vocabulary_size: int, minimum: int = MINIMUM_VOCABULARY) -> int:
    """The vocabulary size, if it is a possible one.

    Raises:
        TextError: it is not a whole number in the range that the message states.
    """
    whole = isinstance(vocabulary_size, int | np.integer)
    if not whole or not minimum <= vocabulary_size <= MAXIMUM_VOCABULARY:
        raise TextError(
            f"vocabulary_size must be a whole number from {minimum:,} to {MAXIMUM_VOCABULARY:,}, "
            f"not {vocabulary_size!r}"
        )
    return int(vocabulary_size)


def write_text(
    folder: Path, name: str, passages: Callable[[str], Passages], vocabulary_size: int
) -> dict[str, Any]:
    """Train a tokeniser on documents and write it and their tokens.

    The tokeniser sees a sample of all documents, those held out for validation included.

    Args:
        folder: an empty folder.
        name: what messages call the text.
        passages: starts the stream of documents from the beginning, once to survey and once to
            encode it; the argument is the word for a progress bar.
        vocabulary_size: number of tokens V, all bytes and the end of text included.

    Returns:
        What ``meta.json`` shall say.

    Raises:
        TextError: there is too little text for the vocabulary or for a validation split.
    """
    lengths, sample = survey(passages("reading"), sample_size(vocabulary_size))
    if not lengths:
        raise TextError(f"{name} is empty: it holds nothing but white space")
    tokenizer = train_bpe(sample, vocabulary_size)
    reached = tokenizer.get_vocab_size()
    if reached < vocabulary_size:
        raise TextError(
            f"{name} is too small for a vocabulary of {vocabulary_size:,} tokens: its "
            f"{sum(lengths):,} characters yield only {reached:,}; give more text, or ask for "
            f"vocabulary_size={reached} or less"
        )
    routed = route(passages("encoding"), split_documents(lengths))
    meta = write_tokens(folder, tokenizer, encoded(routed, tokenizer))
    held_out = meta["tokens"]["validation"]
    if held_out < MINIMUM_VALIDATION:
        needed = sum(lengths) * MINIMUM_VALIDATION / max(held_out, 1)
        raise TextError(
            f"{name} is too small for a validation split: {held_out:,} tokens are held out of its "
            f"{sum(lengths):,} characters, at least {MINIMUM_VALIDATION:,} are needed; give about "
            f"{needed:,.0f} characters of text"
        )
    return meta


def sample_size(vocabulary_size: int) -> int:
    """How many characters of a text a BPE is trained on, at most."""
    return max(SAMPLE, SAMPLE_PER_TOKEN * vocabulary_size)


def survey(passages: Passages, most: int) -> tuple[list[int], list[str]]:
    """Measure documents, and take a sample of passages spread evenly over them.

    Args:
        passages: the documents.
        most: characters of the sample.

    Returns:
        The length of each document in characters, and passages with at most that many characters
        in all; all of them if they are not more.
    """
    lengths, sample, length, seen, sampled, stride = [], [], 0, 0, 0, 1
    for passage in passages:
        if passage is None:
            lengths.append(length)
            length = 0
            continue
        length += len(passage)
        if seen % stride == 0:
            sample.append(passage)
            sampled += len(passage)
        seen += 1
        while sampled > most:  # from here on, take only half as many
            sample = sample[::2]
            sampled = sum(map(len, sample))
            stride *= 2
    return lengths, sample


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Byte-level byte-pair encoding as in GPT-2 (Radford et al., 2019); id 0 ends a text.

    Args:
        texts: what the merges are learnt from; the result depends on nothing else.
        vocabulary_size: number of tokens to stop at.

    Returns:
        A tokeniser that can encode any Unicode text; with a smaller vocabulary if the texts do
        not hold enough pairs that occur twice.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # its spelling inside a text does not end the text
    return tokenizer


def split_documents(lengths: list[int]) -> Split:
    """Hold out a tenth of the text: every tenth document, whatever its length.

    Of a text larger than ten times MAXIMUM_VALIDATION it is every k-th document, so that about
    that much is held out. Counting starts where the share comes closest to what is wanted. Where
    that is still less than half or more than twice of it, because documents are few or unequal,
    the end of the longest one is held out instead.

    Args:
        lengths: characters of each document.
    """
    total = sum(lengths)
    wanted = min(total * VALIDATION_SHARE, MAXIMUM_VALIDATION)
    stride = round(total / wanted)
    shares = np.bincount(np.arange(len(lengths)) % stride, weights=lengths, minlength=stride)
    start = int(np.argmin(np.abs(shares - wanted)))
    if wanted / 2 <= shares[start] <= wanted * 2:
        return Split(frozenset(range(start, len(lengths), stride)))
    longest = int(np.argmax(lengths))
    latest = int(max(lengths[longest] - wanted, lengths[longest] / 2))
    return Split(frozenset(), (longest, max(0, int(latest - wanted / 2)), latest))


def route(passages: Passages, split: Split) -> Iterator[tuple[Part, str | None]]:
    """Say of each passage, and of each end of a document (None), which part it belongs to."""
    cut_document, earliest, latest = split.cut or (-1, 0, 0)
    document, position = 0, 0
    part: Part | None = None
    for passage in passages:
        if part is None:  # a document begins
            part = "validation" if document in split.validation else "train"
        if passage is None:
            yield part, None
            document, position, part = document + 1, 0, None
            continue
        end = position + len(passage)
        if document == cut_document and position <= latest < end:
            border = _border(passage, max(0, earliest - position), latest - position)
            yield "train", passage[:border]
            yield "train", None
            part, passage = "validation", passage[border:].lstrip()
        yield part, passage
        position = end


def _border(text: str, earliest: int, latest: int) -> int:
    for character in ("\n", " "):
        found = text.rfind(character, earliest, latest + 1)
        if found >= 0:
            return found
    return latest


def encoded(
    routed: Iterator[tuple[Part, str | None]], tokenizer: Tokenizer
) -> Iterator[tuple[Part, np.ndarray]]:
    """Token ids of passages and ends of documents, in order, each with its part."""
    end_of_text = np.array([tokenizer.token_to_id(END_OF_TEXT)])
    while batch := list(islice(routed, BATCH)):
        texts = [passage for _, passage in batch if passage is not None]
        ids = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
        for part, passage in batch:
            yield part, end_of_text if passage is None else np.array(next(ids).ids, dtype=np.int64)


def write_tokens(
    folder: Path, tokenizer: Tokenizer, tokens: Iterable[tuple[Part, np.ndarray]]
) -> dict[str, Any]:
    """Write token files as the tokens come, their counts, and the tokeniser.

    Args:
        folder: an empty folder.
        tokenizer: the tokeniser, whose vocabulary size V decides the type on disk.
        tokens: pieces of the two parts, ids 0 to V - 1.

    Returns:
        What ``meta.json`` shall say.
    """
    size = tokenizer.get_vocab_size()
    dtype = token_type(size)
    counts = np.zeros(size, dtype="<i8")
    written = {"train": 0, "validation": 0}
    with open(folder / "train.bin", "wb") as train, open(folder / "validation.bin", "wb") as rest:
        for part, ids in tokens:
            _append(train if part == "train" else rest, ids.astype(dtype))
            written[part] += len(ids)
            if part == "train":
                counts += np.bincount(ids, minlength=size)
    (folder / COUNTS_FILE).write_bytes(counts.tobytes())
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    words = "\n".join(tokenizer.id_to_token(token) or "" for token in range(size))
    return {
        "vocabulary_size": size,
        "vocabulary": files.digest_of(words),
        "dtype": dtype.str,
        "tokens": written,
    }


def _append(file: BinaryIO, ids: np.ndarray) -> None:
    file.write(ids.tobytes())
