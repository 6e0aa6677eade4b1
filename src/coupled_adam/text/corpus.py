"""A corpus: the token ids of a text, split in two, and the way back to readable words."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from coupled_adam import files
from coupled_adam.errors import RefusedError
from coupled_adam.text.cache import read_meta

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
COUNTS_FILE = "counts.bin"
CLASSES_FILE = "classes.bin"

_AT_ONCE = 1 << 24  # tokens counted at a time


class TextError(RefusedError):
    """A text that cannot be used, or a setting that does not fit it; says which and why."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """The token ids of a text, and the tokeniser that they come from.

    Made by :func:`wikipedia_sample`, :func:`load`, :func:`synthetic` and the like; a part of one is
    made by :meth:`part`, one in random order by :meth:`shuffled`, and any other by
    ``dataclasses.replace`` with other tokens. All of these have their own counts and fingerprint,
    and can be pickled: a worker process opens files again instead of receiving a copy, also where
    the tokens are a piece of a file; tokens that are in no file travel with the pickle.

    Attributes:
        name: what the text is called in tables and figures.
        vocabulary_size: number of tokens V in the vocabulary; ids are 0 to V - 1.
        folder: the cache folder that holds the files.
        train: token ids to train on, shape [tokens], uint16 or uint32; memory-mapped, read-only.
        validation: token ids of other documents, of the same kind.
        token_classes: the word class of each token, shape [V], int64; None for real text.
    """

    name: str
    vocabulary_size: int
    folder: Path
    train: np.ndarray
    validation: np.ndarray
    token_classes: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse what are no token ids."""
        for part in ("train", "validation"):
            tokens = getattr(self, part)
            array = isinstance(tokens, np.ndarray)
            if not array or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
                raise TextError(
                    f"{part} of {self.name} must be an array of whole numbers, [tokens]"
                )
            if tokens.dtype != token_type(self.vocabulary_size) and len(tokens):
                for token in (tokens.min(), tokens.max()):
                    self._checked(token)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """How often each token occurs in ``train``, shape [V], int64."""
        if _is_whole_file(self.train, self.folder, "train"):
            return np.fromfile(self.folder / COUNTS_FILE, dtype="<i8")
        counts = np.zeros(self.vocabulary_size, np.int64)
        for start in range(0, len(self.train), _AT_ONCE):
            some = self.train[start : start + _AT_ONCE]
            self._checked(some.max())
            counts += np.bincount(some.astype(np.int64), minlength=self.vocabulary_size)
        return counts

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal number that changes if text, tokeniser or split change.

        It depends on nothing else: not on the name, nor on where the tokens come from.
        """
        meta = _meta(self.folder, self.name)
        hashes = [
            meta["files"][f"{part}.bin"]
            if _is_whole_file(tokens, self.folder, part)
            else files.digest_of(tokens.astype(token_type(self.vocabulary_size)).tobytes())
            for part, tokens in (("train", self.train), ("validation", self.validation))
        ]
        return files.digest_of([*hashes, meta["vocabulary"]])

    def part(self, tokens: int) -> Corpus:
        """The beginning of the training text, with the whole validation text.

        Args:
            tokens: how many tokens to train on, from 1 to as many as there are.

        Returns:
            A corpus of its own, with its own counts and fingerprint and a name that says how much
            of the text it is; this one if it is all of it.

        Raises:
            TextError: if there are not so many.
        """
        whole = isinstance(tokens, int | np.integer)
        if not whole or not 1 <= tokens <= len(self.train):
            raise TextError(
                f"a part of {self.name} must have from 1 to {len(self.train):,} tokens, not "
                f"{tokens!r}"
            )
        if tokens == len(self.train):
            return self
        name = f"{self.name}, first {tokens:,} tokens"
        return dataclasses.replace(self, name=name, train=self.train[:tokens])

    def spread(self, tokens: int, piece: int = 1024) -> Corpus:
        """Pieces of the training text, spaced evenly over it, with the whole validation text.

        Unlike the beginning of the text, they come from all its documents, so that corpora of
        several lengths differ in length only, and not in what they are about.

        Args:
            tokens: how many tokens to train on, from 1 to as many as there are.
            piece: tokens in a piece, from 1; the last one may be shorter.

        Returns:
            A corpus of its own, with its own counts and fingerprint. Its tokens are in memory.

        Raises:
            TextError: if there are not so many, or a piece has no token.
        """
        if piece < 1:
            raise TextError(f"a piece must have at least one token, not {piece!r}")
        if self.part(tokens) is self:
            return self
        pieces = -(-tokens // piece)
        starts = np.linspace(0, len(self.train) - piece, pieces).astype(np.int64)
        places = np.minimum(starts[:, None] + np.arange(piece), len(self.train) - 1)
        train = _read_only(self.train[places.ravel()[:tokens]])
        name = f"{self.name}, {tokens:,} tokens spread over it"
        return dataclasses.replace(self, name=name, train=train)

    def shuffled(self, seed: int) -> Corpus:
        """The same tokens in random order: counts without context.

        Args:
            seed: of the order, from 0.

        Returns:
            A corpus of its own, with the same counts in both parts. Its tokens are in memory.

        Raises:
            TextError: if the seed is negative.
        """
        if seed < 0:
            raise TextError(f"seed must not be negative, but is {seed!r}")
        random = np.random.default_rng(seed)
        train, validation = (
            _read_only(random.permutation(np.asarray(part)))
            for part in (self.train, self.validation)
        )
        name = f"{self.name}, shuffled with seed {seed}"
        return dataclasses.replace(self, name=name, train=train, validation=validation)

    @property
    def frequencies(self) -> np.ndarray:
        """Share of each token in ``train``, shape [V], float64; the sum is 1."""
        return self.counts / self.counts.sum()

    def encode(self, text: str) -> np.ndarray:
        """The token ids of a text.

        The end-of-text token stands between documents only: its spelling inside a text is
        encoded like any other characters.

        Args:
            text: any Unicode text; for a synthetic corpus, its words separated by white space.

        Returns:
            Token ids, shape [tokens], in the type of ``train``.

        Raises:
            TextError: a synthetic corpus does not have one of the words.
        """
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises nothing more specific
            raise TextError(f"cannot encode {text[:60]!r} with {self.name}: {error}") from error
        return np.array(ids, dtype=self.train.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that token ids spell; the exact inverse of :meth:`encode` for real text.

        Raises:
            TextError: an id is outside 0 to V - 1.
        """
        ids = [self._checked(token) for token in ids]
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def token_text(self, token: int) -> str:
        r"""One token in printable form.

        A space is shown as ``␣``, a line end as ``⏎``, a tabulator as ``⇥``; bytes that are only
        a part of a character, and what else cannot be printed, as ``\xNN``.

        Raises:
            TextError: the id is outside 0 to V - 1.
        """
        symbols = self._tokenizer.id_to_token(self._checked(token)) or ""
        text = bytes(_byte_of_symbol()[s] for s in symbols).decode("utf-8", "backslashreplace")
        text = text.translate({ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"})
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    @functools.cached_property
    def end_of_text(self) -> int | None:
        """The token between documents; None in a synthetic language, which has none."""
        return self._tokenizer.token_to_id(END_OF_TEXT)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.folder / TOKENIZER_FILE)

    def _checked(self, token: int) -> int:
        token = operator.index(token)
        if not 0 <= token < self.vocabulary_size:
            raise TextError(
                f"token id {token} is not in the vocabulary of {self.name}: "
                f"ids are 0 to {self.vocabulary_size - 1}"
            )
        return token

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the place of what is in the files, and what is in none of them."""
        places = [
            _place(tokens, self.folder, part) or np.array(tokens)
            for part, tokens in (("train", self.train), ("validation", self.validation))
        ]
        named = (self.name, self.vocabulary_size, self.folder)
        return _unpickled, (*named, *places, self.token_classes, self.fingerprint)


def open_corpus(folder: Path, name: str) -> Corpus:
    """The corpus in a cache folder that was checked when it was found.

    Raises:
        TextError: the folder has been removed since.
    """
    classes = folder / CLASSES_FILE
    corpus = Corpus(
        name=name,
        vocabulary_size=_meta(folder, name)["vocabulary_size"],
        folder=folder,
        train=_mapped(folder, name, "train"),
        validation=_mapped(folder, name, "validation"),
        token_classes=np.fromfile(classes, dtype="<i8") if classes.exists() else None,
    )
    for known in ("counts", "fingerprint"):  # read now, while the files are there
        getattr(corpus, known)
    return corpus


def _unpickled(
    name: str,
    vocabulary_size: int,
    folder: Path,
    train: tuple[int, int] | np.ndarray,
    validation: tuple[int, int] | np.ndarray,
    token_classes: np.ndarray | None,
    fingerprint: str,
) -> Corpus:
    tokens: dict[str, np.ndarray] = {}
    for part, place in (("train", train), ("validation", validation)):
        if isinstance(place, tuple):
            first, end = place
            of_file = _mapped(folder, name, part)
            if len(of_file) < end:
                raise TextError(f"the token files of {name} in {folder} have been cut short")
            tokens[part] = of_file[first:end]
        else:
            tokens[part] = _read_only(place)
    corpus = Corpus(
        name, vocabulary_size, folder, tokens["train"], tokens["validation"], token_classes
    )
    vars(corpus)["fingerprint"] = fingerprint  # or every worker would hash the part anew
    return corpus


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokeniser in a file, which encodes the spelling of the end of text as any other text.

    Raises:
        TextError: the file is damaged, or is no tokeniser.
        OSError: it cannot be read.
    """
    text = files.read_text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise TextError(
            f"{path} is damaged or no tokeniser ({error}): remove it, then prepare the text again, "
            "or call train again with the text and settings of the run; either writes it anew"
        ) from error
    tokenizer.encode_special_tokens = True  # the file does not keep this
    return tokenizer


def token_type(vocabulary_size: int) -> np.dtype:
    """The type of token ids on disk, which a vocabulary's size decides."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def _meta(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_meta(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TextError(
            f"the token files of {name} are gone from {folder}; load the text again"
        ) from error
    except ValueError as error:
        raise TextError(
            f"the token files of {name} in {folder} are damaged ({error}); load the text again"
        ) from error


def _mapped(folder: Path, name: str, part: str) -> np.ndarray:
    try:
        return np.memmap(folder / f"{part}.bin", dtype=_meta(folder, name)["dtype"], mode="r")
    except (FileNotFoundError, ValueError) as error:  # the latter: nothing is left in it
        raise TextError(
            f"the token files of {name} in {folder} are damaged ({error}); load the text again"
        ) from error


def _place(tokens: np.ndarray, folder: Path, part: str) -> tuple[int, int] | None:
    """Where in its file a piece of a corpus lies: its first token and its end; None if in none."""
    file = _file(tokens)
    if (
        file is None
        or Path(str(file.filename)) != (folder / f"{part}.bin").resolve()
        or tokens.dtype != file.dtype
        or not tokens.flags.c_contiguous
    ):
        return None
    first = (tokens.ctypes.data - file.ctypes.data) // tokens.itemsize
    return first, first + len(tokens)


def _is_whole_file(tokens: np.ndarray, folder: Path, part: str) -> bool:
    file = _file(tokens)
    return file is not None and _place(tokens, folder, part) == (0, len(file))


def _file(tokens: np.ndarray) -> np.memmap | None:
    """The mapped file that an array is a piece of."""
    file = tokens
    while isinstance(file.base, np.ndarray):
        file = file.base
    return file if isinstance(file, np.memmap) and file.filename is not None else None


def _read_only(tokens: np.ndarray) -> np.ndarray:
    tokens.flags.writeable = False
    return tokens


@functools.cache
def _byte_of_symbol() -> dict[str, int]:
    # The byte-level alphabet (Radford et al., 2019): a printable Latin-1 character stands for its
    # own byte, the remaining bytes take the code points from 256 on, in order.
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}
