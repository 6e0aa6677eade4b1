"""Open the chapters in JupyterLab: copies of the notebook edition, in the folder ``lab``.

The copies are the reader's to change. One that was changed is never written over; the others follow
the book.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import editions
import nbformat
import notebooks

LAB = notebooks.ROOT / "lab"


def refresh(edition: Path, folder: Path) -> list[Path]:
    """Bring the notebooks of an edition into a folder, except over those that were changed there.

    Running cells is no change: only what they say counts.

    Args:
        edition: the folder with the notebooks as the book has them.
        folder: where the reader works; made if it is missing.

    Returns:
        The notebooks that were kept as they are and no longer follow the book.
    """
    folder.mkdir(exist_ok=True)
    record = folder / ".written.json"  # what the cells said when they were brought
    written = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    kept = []
    for source in sorted(edition.glob("*.ipynb")):
        copy, new = folder / source.name, _cells(source)
        if copy.exists():
            there = _cells(copy)
            if there == new:
                continue
            if there != written.get(source.name):
                kept.append(copy)
                continue
        shutil.copy(source, copy)
        written[source.name] = new
    record.write_text(json.dumps(written), encoding="utf-8")
    return kept


def _cells(path: Path) -> list[list[str]]:
    notebook = nbformat.read(path, as_version=4)
    return [[cell.cell_type, cell.source] for cell in notebook.cells]


def main() -> int:
    """Write the edition, bring it into the folder, and run JupyterLab there until it is stopped."""
    editions.build()
    for path in refresh(editions.NOTEBOOKS, LAB):
        print(f"{path} has your changes and stays; delete it to get it as the book has it.")
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={LAB}", *sys.argv[1:]]
    running = subprocess.Popen(command, cwd=LAB)
    while True:
        try:
            return running.wait()
        except KeyboardInterrupt:
            # JupyterLab has got it as well, and asks whether to stop or is stopping its kernels.
            continue


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except editions.EditionsError as error:
        raise SystemExit(str(error)) from None
