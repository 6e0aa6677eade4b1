"""The address of the repository: it stands in _config.yml, and the chapters take it from there.

``python tools/repository.py`` rewrites the two places in every chapter that name it: the Colab line
below the title, and the setup cell.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?:github\.com|colab\.research\.google\.com/github)/([\w.-]+)/([\w.-]+)")
# Where the workflow publishes the chapters as plain notebooks: a branch, because Colab opens
# notebooks from GitHub by branch and path. The chapters themselves hold MyST, which it shows raw.
NOTEBOOKS_BRANCH = "notebooks"
COLAB_LINE = re.compile(r"^\[Open in Colab\]\(.*\)$", flags=re.MULTILINE)
SETUP = """\
import sys

if "google.colab" in sys.modules:  # anywhere else, this cell does nothing
    %pip install -q --no-deps "coupled-adam @ git+{address}"
    %pip install -q --no-deps gensim smart_open wrapt"""


def address() -> str:
    """The repository's address, from the one place where it stands."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"].rstrip("/")


def owner_and_name() -> tuple[str, str]:
    """The two last parts of the address."""
    owner, name = address().split("/")[-2:]
    return owner, name


def site() -> str:
    """Where GitHub publishes the pages of the repository."""
    owner, name = owner_and_name()
    return f"https://{owner}.github.io/{name}/"


def colab_address(stem: str) -> str:
    """Where Colab opens the notebook edition of the chapter with this name."""
    path = f"{'/'.join(owner_and_name())}/blob/{NOTEBOOKS_BRANCH}/{stem}.ipynb"
    return f"https://colab.research.google.com/github/{path}"


def colab_line(chapter: Path) -> str:
    """The line below a chapter's title that opens it in Colab."""
    return f"[Open in Colab]({colab_address(chapter.stem)})"


def setup_source() -> str:
    """The source of each chapter's first code cell."""
    return SETUP.format(address=address())


def setup_cell(notebook: NotebookNode) -> NotebookNode:
    """The first code cell of a chapter.

    Raises:
        ValueError: if that cell does something else than setting up Colab.
    """
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if "google.colab" not in cell.source:
        raise ValueError(f"the first code cell is not the setup cell: {cell.source[:60]!r}")
    return cell


def rewrite(chapter: Path) -> None:
    """Put the address into a chapter; add the Colab line or the setup cell if they are missing."""
    notebook = nbformat.read(chapter, as_version=4)
    top = notebook.cells[0]
    if COLAB_LINE.search(top.source):
        top.source = COLAB_LINE.sub(colab_line(chapter), top.source)
    else:
        title, _, rest = top.source.partition("\n")
        top.source = f"{title}\n\n{colab_line(chapter)}\n\n{rest.strip()}".rstrip()
    try:
        cell = setup_cell(notebook)
    except (StopIteration, ValueError):
        cell = nbformat.v4.new_code_cell(metadata={"tags": ["hide-input"]})
        notebook.cells.insert(1, cell)
    cell.source = setup_source()
    nbformat.write(notebook, chapter)


if __name__ == "__main__":
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        rewrite(path)
