"""A corpus: the token ids of a text, split in two, and the way back to readable words."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from coupled_adam.errors import RefusedError
from coupled_adam.text.cache import read_meta

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
COUNTS_FILE = "counts.bin"
CLASSES_FILE = "classes.bin"


class TextError(RefusedError):
    """A text that cannot be used, or a setting that does not fit it; says which and why."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of a text on disk, and the tokeniser that they come from.

    Made by :func:`wikipedia_sample`, :func:`load` and :func:`synthetic`. It can be pickled; a
    worker process opens the same files again instead of receiving a copy.

    Attributes:
        name: what the text is called in tables and figures.
        vocabulary_size: number of tokens V in the vocabulary; ids are 0 to V - 1.
        folder: the cache folder that holds the files.
        train: token ids to train on, shape [tokens], uint16 or uint32; memory-mapped, read-only.
        validation: token ids of other documents, of the same kind.
        counts: how often each token occurs in ``train``, shape [V], int64.
        fingerprint: hexadecimal number that changes if text, tokeniser or split change.
        token_classes: the word class of each token, shape [V], int64; None for real text.
    """

    name: str
    vocabulary_size: int
    folder: Path
    train: np.ndarray
    validation: np.ndarray
    counts: np.ndarray
    fingerprint: str
    token_classes: np.ndarray | None = None

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
        symbols = self._tokenizer.id_to_token(self._checked(token))
        text = bytes(_byte_of_symbol()[s] for s in symbols).decode("utf-8", "backslashreplace")
        text = text.translate({ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"})
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER_FILE))
        tokenizer.encode_special_tokens = True  # the file does not keep this
        return tokenizer

    def _checked(self, token: int) -> int:
        token = operator.index(token)
        if not 0 <= token < self.vocabulary_size:
            raise TextError(
                f"token id {token} is not in the vocabulary of {self.name}: "
                f"ids are 0 to {self.vocabulary_size - 1}"
            )
        return token

    def __reduce__(self) -> tuple:
        """Pickle the place of the files, not the data."""
        return open_corpus, (self.folder, self.name)


def open_corpus(folder: Path, name: str) -> Corpus:
    """The corpus in a cache folder that was checked when it was found.

    Raises:
        TextError: the folder has been removed since.
    """
    try:
        meta = read_meta(folder)
    except FileNotFoundError as error:
        raise TextError(
            f"the token files of {name} are gone from {folder}; load the text again"
        ) from error
    tokens = {
        part: np.memmap(folder / f"{part}.bin", dtype=meta["dtype"], mode="r")
        for part in ("train", "validation")
    }
    hashes = [meta["files"]["train.bin"], meta["files"]["validation.bin"], meta["vocabulary"]]
    classes = folder / CLASSES_FILE
    return Corpus(
        name=name,
        vocabulary_size=meta["vocabulary_size"],
        folder=folder,
        counts=np.fromfile(folder / COUNTS_FILE, dtype="<i8"),
        fingerprint=hashlib.sha256(json.dumps(hashes).encode()).hexdigest(),
        token_classes=np.fromfile(classes, dtype="<i8") if classes.exists() else None,
        **tokens,
    )


@functools.cache
def _byte_of_symbol() -> dict[str, int]:
    # The byte-level alphabet (Radford et al., 2019): a printable Latin-1 character stands for its
    # own byte, the remaining bytes take the code points from 256 on, in order.
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}
