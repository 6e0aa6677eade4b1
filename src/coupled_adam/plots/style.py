"""One look for all pictures, and the one way to make one; how arms look is in ``palette``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from coupled_adam import palette

Series = TypeVar("Series")
Style = TypeVar("Style")

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 12,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


@contextmanager
def panels(
    columns: int = 1, rows: int = 1, *, width: float = 7.0, height: float = 3.6, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure in the book's style. A notebook shows it where it is a cell's last expression.

    When the block ends pyplot forgets the figure: a notebook would else show it a second time, and
    a loop over many pictures would keep them all.

    Args:
        columns: panels side by side.
        rows: panels above each other.
        width: of the whole figure, in inches.
        height: of the whole figure, in inches.
        options: passed on to ``plt.subplots``, for example ``sharey=True``.

    Yields:
        The figure, and its panels row by row.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options
        )
        for ax in axes.flat:
            # Ticks are made when the figure is drawn, which is after this style has ended.
            ax.tick_params(which="both", labelsize=12, grid_color=_STYLE["grid.color"])
        try:
            yield figure, list(axes.flat)
        finally:
            plt.close(figure)


def look(name: str) -> dict[str, Any]:
    """Matplotlib's keywords for an arm: colour, marker and label.

    Raises:
        RefusedError: if there is no such arm.
    """
    return {
        "color": palette.colour(name),
        "marker": palette.marker(name),
        "label": palette.label(name),
    }


def dots(name: str) -> dict[str, Any]:
    """Matplotlib's keywords for an arm's small dots, one a token.

    Raises:
        RefusedError: if there is no such arm.
    """
    # A marker without a face, such as a cross, is all edge.
    edge = 0.0 if MarkerStyle(palette.marker(name)).is_filled() else 0.7
    return look(name) | {"linestyle": "none", "markersize": 3, "markeredgewidth": edge}


def told_apart(
    series: Mapping[str, Series], styles: Sequence[Style]
) -> list[tuple[str, Series, Style]]:
    """Names, series and a style for each.

    Raises:
        ValueError: if there are more series than styles, so that none is left out of a picture.
    """
    if len(series) > len(styles):
        raise ValueError(
            f"at most {len(styles)} series can be told apart in this picture, got {len(series)}: "
            f"{', '.join(series)}"
        )
    return [(name, one, style) for (name, one), style in zip(series.items(), styles, strict=False)]
