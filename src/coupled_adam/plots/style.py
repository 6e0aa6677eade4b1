"""One look for all pictures: the colours of the optimizers, the size, the grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from coupled_adam.arms import ARMS

__all__ = ["ACCENT", "COLOURS", "MARKERS", "NAMES", "NEUTRAL", "panels"]

COLOURS = {arm.name: arm.colour for arm in ARMS.values()}
NAMES = {arm.name: arm.label for arm in ARMS.values()}
MARKERS = {arm.name: arm.marker for arm in ARMS.values()}

# For what is not an optimizer; a third one is black.
NEUTRAL, ACCENT = "#4d4d4d", "#CC79A7"

_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 12,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


@contextmanager
def panels(
    columns: int = 1, rows: int = 1, *, width: float = 7.0, height: float = 3.6, **options: object
) -> Iterator[list[Axes]]:
    """Open a figure in the book's style, and show it when the block ends.

    Args:
        columns: panels side by side.
        rows: panels above each other.
        width: of the whole figure, in inches.
        height: of the whole figure, in inches.
        options: passed on to ``plt.subplots``, for example ``sharey=True``.

    Yields:
        The panels, row by row.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options
        )
        yield list(axes.flat)
        plt.show()
        plt.close(figure)
