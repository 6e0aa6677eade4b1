"""A picture in a notebook: shown once where a cell ends with it, and as it was drawn."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SOURCE = Path(__file__).parents[2] / "src"
CELLS = {
    "last expression": "plots.zipf(counts, 1.0, (1, 20))",
    "kept": "figure = plots.zipf(counts, 1.0, (1, 20))",
    "kept and drawn over": "figure.axes[0].set_title('over');",
    "displayed": "display(figure)\nx = 1",
    "of seaborn": "plots.intervals(final, {'value': 'the value'})",
    "in a loop": "for ranks in (1, 20), (2, 9):\n    plots.zipf(counts, 1.0, ranks)",
}
PREPARED = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
import numpy as np
import pandas as pd
from coupled_adam import plots
counts = 1000 // np.arange(1, 41)
final = pd.DataFrame({{"optimizer": "adamw", "seed": [0, 1], "value": [1.0, 2.0]}})
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The PNGs of each cell, by its name."""
    cells = [nbformat.v4.new_code_cell(source) for source in (PREPARED, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path_factory.mktemp("notebook")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    found = {}
    for name, cell in zip(CELLS, notebook.cells[1:], strict=True):
        pngs = [out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {})]
        found[name] = [base64.b64decode(png) for png in pngs]
    return found


def test_a_picture_is_shown_once_where_the_cell_ends_with_it_or_displays_it(pictures):
    shown = {name: len(pngs) for name, pngs in pictures.items()}
    assert shown == {
        "last expression": 1,
        "kept": 0,
        "kept and drawn over": 0,
        "displayed": 1,
        "of seaborn": 1,
        "in a loop": 0,
    }


def test_it_has_the_books_resolution(pictures):
    (png,) = pictures["last expression"]
    width, height = struct.unpack(">II", png[16:24])
    # 7 by 3.6 inches at 110 dots an inch; the notebook cuts the white border off and adds a tenth
    # of an inch.
    assert 0.95 * 770 < width < 1.05 * 770
    assert 0.95 * 396 < height < 1.05 * 396
