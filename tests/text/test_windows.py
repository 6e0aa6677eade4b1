from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupled_adam.errors import RefusedError
from coupled_adam.text.windows import random_windows, spaced_windows

lengths = st.integers(1, 40)


@given(lengths, st.integers(1, 20), st.integers(0, 300), st.integers(0, 2**32))
def test_random_windows_are_pieces_of_the_text(length, count, more, seed):
    text = np.arange(length + 1 + more, dtype=np.uint16)
    windows = random_windows(text, length, count, np.random.default_rng(seed))
    assert windows.shape == (count, length + 1)
    assert windows.dtype == np.int64
    assert (np.diff(windows) == 1).all()
    assert windows[:, 0].min() >= 0 and windows[:, -1].max() <= text[-1]


def test_every_place_can_be_drawn():
    windows = random_windows(np.arange(7), 3, 2000, np.random.default_rng(0))
    places, counts = np.unique(windows[:, 0], return_counts=True)
    assert places.tolist() == [0, 1, 2, 3]
    assert counts.min() > 400


@given(lengths, st.integers(1, 500), st.integers(1, 600))
def test_spaced_windows_cover_the_text_without_overlap(length, size, about):
    text = np.arange(length + size, dtype=np.uint16)
    windows = spaced_windows(text, length, about)
    predicted = windows[:, 1:].flatten()
    assert len(np.unique(predicted)) == len(predicted)
    assert windows.dtype == np.int64
    assert windows[0, 0] == 0
    if len(windows) > 1:
        assert windows[-1, -1] == text[-1]
    if about <= size:
        assert max(1, about // length) == len(windows)


@pytest.mark.parametrize("length", [0, 9, 10])
def test_a_text_shorter_than_a_window_is_refused(length):
    with pytest.raises(RefusedError, match="window"):
        spaced_windows(np.arange(9), length, 100)
    with pytest.raises(RefusedError, match="window"):
        random_windows(np.arange(9), length, 1, np.random.default_rng(0))
