"""Synthetic languages: a Zipf exponent of one's choice, and word classes that are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from coupled_adam.text import cache as token_cache
from coupled_adam.text.corpus import CLASSES_FILE, Corpus, TextError, open_corpus
from coupled_adam.text.tokens import (
    MINIMUM_VALIDATION,
    SPLIT,
    VALIDATION_SHARE,
    Part,
    checked_vocabulary_size,
    write_tokens,
)

# How often a token is followed by one of its own class for that reason alone.
PERSISTENCE = 0.7
BLOCK = 1 << 20  # tokens drawn at a time


@dataclass(frozen=True)
class Language:
    """A Markov chain over word classes that emits words.

    With probability PERSISTENCE the next word is of the same class as the last; else its class is
    drawn anew with probability pi. So the transition matrix of the classes is

        T = (1 - a) 1 pi^T + a I,    a = PERSISTENCE,

    and pi T = pi whatever pi is. Taking the Zipf mass of each class for pi, and emitting words
    within a class in proportion to theirs, makes the distribution of single words Zipf's, exactly.

    Attributes:
        probabilities: of each word, shape [V], proportional to (id + 1) ** -exponent.
        classes: of each word, shape [V]; every class has V / classes words, up to one.
    """

    probabilities: np.ndarray
    classes: np.ndarray

    @classmethod
    def draw(cls, size: int, exponent: float, classes: int, rng: np.random.Generator) -> Language:
        """A language whose words, from the most frequent on, are put into classes by chance."""
        weights = np.arange(1, size + 1, dtype=np.float64) ** -exponent
        return cls(weights / weights.sum(), rng.permutation(np.arange(size) % classes))

    def names(self) -> list[str]:
        """``c3w12`` is the thirteenth most frequent word of class 3; both count from 0."""
        seen = [0] * (self.classes.max() + 1)
        names = []
        for k in self.classes:
            names.append(f"c{k}w{seen[k]}")
            seen[k] += 1
        return names

    def speak(self, tokens: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Token ids in blocks of at most BLOCK, ``tokens`` in all."""
        by_class = np.argsort(self.classes, kind="stable")
        # Words side by side by class: a class is an interval of [0, 1), its words parts of it.
        borders = np.cumsum(self.probabilities[by_class])
        last = np.cumsum(np.bincount(self.classes)) - 1
        first = np.concatenate([[0], last[:-1] + 1])
        ends = borders[last]
        starts = np.concatenate([[0.0], ends[:-1]])
        current = np.searchsorted(ends[:-1], rng.random(), side="right")
        for begin in range(0, tokens, BLOCK):
            length = min(BLOCK, tokens - begin)
            drawn = np.searchsorted(ends[:-1], rng.random(length), side="right")
            anew = np.where(rng.random(length) >= PERSISTENCE, np.arange(length), -1)
            source = np.maximum.accumulate(anew)  # when the class in force was drawn
            k = np.where(source >= 0, drawn[source], current)
            current = k[-1]
            point = starts[k] + (ends[k] - starts[k]) * rng.random(length)
            # Rounding must not carry a point at the border over into the next class.
            place = np.searchsorted(borders, point, side="right").clip(first[k], last[k])
            yield by_class[place]


def synthetic(
    vocabulary_size: int = 1000,
    tokens: int = 200_000,
    zipf_exponent: float = 1.0,
    classes: int = 8,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> Corpus:
    """A language with a chosen skew of the vocabulary and known word classes.

    The word of rank r (id r - 1) has probability proportional to r ** -zipf_exponent, and words
    of a class tend to stand together; see :class:`Language` for how.

    Args:
        vocabulary_size: number of words V, from 2.
        tokens: length of the text, at least 10,240; the last tenth is for validation.
        zipf_exponent: 0 for words that are all equally frequent, about 1 for natural language.
        classes: number of word classes, from 1 to V.
        seed: of the language and of the text, from 0.
        cache: folder for the token files; None for ``$COUPLED_ADAM_CACHE`` or the user's cache.

    Returns:
        The corpus, with ``token_classes``. Words are called ``c3w12``: of class 3, the thirteenth
        most frequent.

    Raises:
        TextError: an argument is outside its range.
        OSError: the cache folder cannot be written.
    """
    size = checked_vocabulary_size(vocabulary_size, minimum=2)
    minimum = round(MINIMUM_VALIDATION / VALIDATION_SHARE)
    if tokens < minimum:
        raise TextError(f"tokens must be at least {minimum:,}, not {tokens!r}")
    if not 0 <= zipf_exponent < np.inf:
        raise TextError(f"zipf_exponent must be a finite number from 0, not {zipf_exponent!r}")
    if not 1 <= classes <= size:
        raise TextError(f"classes must be from 1 to vocabulary_size = {size}, not {classes!r}")
    if seed < 0:
        raise TextError(f"seed must not be negative, but is {seed!r}")

    def write(folder: Path) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        language = Language.draw(size, zipf_exponent, classes, rng)
        vocabulary = {name: token for token, name in enumerate(language.names())}
        tokenizer = Tokenizer(models.WordLevel(vocabulary))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        (folder / CLASSES_FILE).write_bytes(language.classes.astype("<i8").tobytes())
        blocks = language.speak(tokens, rng)
        return write_tokens(folder, tokenizer, _split(blocks, int(tokens * (1 - VALIDATION_SHARE))))

    recipe = {
        "synthetic": [size, int(tokens), float(zipf_exponent), int(classes), int(seed)],
        "persistence": PERSISTENCE,
        "split": SPLIT,
    }
    name = f"synthetic, Zipf exponent {zipf_exponent:g}"
    return open_corpus(token_cache.entry(cache, recipe, write), name)


def _split(blocks: Iterator[np.ndarray], train: int) -> Iterator[tuple[Part, np.ndarray]]:
    for block in blocks:
        yield "train", block[:train]
        yield "validation", block[train:]
        train = max(0, train - len(block))
