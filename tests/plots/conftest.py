"""What the tests of the pictures share."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import pytest

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def none_left_open():
    """Pyplot holds no figure afterwards: a notebook would show it a second time."""
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left
