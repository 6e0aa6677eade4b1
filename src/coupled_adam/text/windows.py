"""Windows: the one way to cut pieces of equal length out of the tokens of a text."""

from __future__ import annotations

import numpy as np

from coupled_adam.text.corpus import TextError


def random_windows(
    tokens: np.ndarray, length: int, count: int, random: np.random.Generator
) -> np.ndarray:
    """Windows at places drawn by chance, with equal probability for every place.

    Args:
        tokens: token ids of a text, [N].
        length: predictions T in a window, from 1; a window has one token more, so that inputs and
            targets are ``window[:-1]`` and ``window[1:]``.
        count: how many.
        random: draws the places, ``count`` numbers.

    Returns:
        Token ids, [count, T + 1], int64.

    Raises:
        TextError: if the text is shorter than one window.
    """
    _check_length(tokens, length)
    return _cut(tokens, length, random.integers(0, len(tokens) - length, size=count))


def spaced_windows(tokens: np.ndarray, length: int, about: int) -> np.ndarray:
    """Windows spaced evenly over a text, the same in every call; they do not overlap.

    Neighbours may share one token: the last target of one is then the first input of the next.

    Args:
        tokens: token ids of a text, [N].
        length: predictions T in a window, from 1.
        about: how many tokens are to be predicted: as many whole windows as that makes, but at
            least one, and no more than the text has.

    Returns:
        Token ids, [windows, T + 1], int64, in the order of the text.

    Raises:
        TextError: if the text is shorter than one window.
    """
    _check_length(tokens, length)
    count = max(1, min(about, len(tokens) - 1) // length)
    return _cut(tokens, length, np.linspace(0, len(tokens) - length - 1, count).astype(np.int64))


def _check_length(tokens: np.ndarray, length: int) -> None:
    if length < 1:
        raise TextError(f"a window must have at least one prediction, not {length}")
    if len(tokens) <= length:
        raise TextError(
            f"the text has {len(tokens):,} tokens, but one window needs {length + 1:,}: use more "
            "text or a shorter context"
        )


def _cut(tokens: np.ndarray, length: int, starts: np.ndarray) -> np.ndarray:
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
