"""What the tests of the pictures share."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import pytest

matplotlib.use("Agg")


@pytest.fixture
def shown(monkeypatch):
    """The figures that were shown, drawn and still open."""
    figures = []

    def show():
        figures.append(plt.gcf())
        plt.gcf().canvas.draw()  # some mistakes show only when the figure is drawn

    monkeypatch.setattr(plt, "show", show)
    monkeypatch.setattr(plt, "close", lambda _: None)
    yield figures
    monkeypatch.undo()
    plt.close("all")
