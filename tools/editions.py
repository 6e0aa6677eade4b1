"""Write the editions of the chapters from their sources, in seconds: no chapter is executed.

``_build/editions/notebook/`` holds plain Markdown notebooks, for Colab and Jupyter. The workflow
publishes them beside the pages, and on the branch that Colab opens.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import notebooks
from jupyter_book.config import get_final_config
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.console import nocolor
from sphinx.util.docutils import docutils_namespace, patch_docutils

ON_THE_SITE = "editions/notebook"
NOTEBOOKS = notebooks.BUILD / ON_THE_SITE
# All from which the pages of the book are made, but for results.
SOURCES = ["book", "chapters", "examples", "src", "tools"]
SOURCES += ["_config.yml", "_toc.yml", "requirements.txt"]


class EditionsError(RuntimeError):
    """An edition could not be written."""


def build(target: Path = NOTEBOOKS) -> list[Path]:
    """Write the notebook edition of every chapter if anything changed; return the files in order.

    Args:
        target: the folder of the edition; what it holds besides is removed.

    Raises:
        EditionsError: if Sphinx has a warning, or a chapter holds what cannot be written plainly.
    """
    stamp = target.with_suffix(".key")
    paths = [notebooks.ROOT / name for name in SOURCES]
    key = notebooks.hash_of(path for path in paths if path.exists())
    with notebooks.lock("editions"):
        current = f"{key} {notebooks.hash_of([target])}"
        if not target.is_dir() or not stamp.exists() or stamp.read_text() != current:
            stamp.unlink(missing_ok=True)
            _write(target)
            stamp.write_text(f"{key} {notebooks.hash_of([target])}")
    return sorted(target.glob("*.ipynb"))


def _write(target: Path) -> None:
    start = time.monotonic()
    print("Writing the notebook edition of the chapters (about 15 seconds).", flush=True)
    root, options = notebooks.ROOT, {"latex_individualpages": False}
    config, _ = get_final_config(user_yaml=root / "_config.yml", cli_config=options, sourcedir=root)
    # The extension for live code adds its scripts to every page as if they were text.
    config["extensions"].remove("sphinx_thebe")
    config["extensions"].append("notebook_edition")
    config |= {"nb_execution_mode": "off", "nitpicky": True, "smartquotes": False}
    config["nb_mime_priority_overrides"] = [("notebook-edition", "text/plain", 0)]
    told = io.StringIO()
    nocolor()
    with tempfile.TemporaryDirectory(prefix="editions-") as folder, docutils_namespace():
        out = Path(folder) / "notebook"
        with patch_docutils(str(root)), warnings.catch_warnings():
            # Sphinx and its extensions complain of each other's habits; what they find in the
            # book they report by themselves.
            warnings.simplefilter("ignore")
            try:
                app = Sphinx(
                    srcdir=root,
                    confdir=None,
                    outdir=out,
                    doctreedir=Path(folder) / "doctrees",
                    buildername="notebook-edition",
                    confoverrides=config,
                    status=None,
                    warning=told,
                )
                app.build()
            except SphinxError as error:
                raise EditionsError(f"{told.getvalue()}{error}") from None
        if app._warncount:
            raise EditionsError(f"the editions have warnings:\n{told.getvalue()}")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        made = [shutil.copy(path, target) for path in sorted(out.glob("*.ipynb"))]
    print(f"{len(made)} notebooks after {time.monotonic() - start:.0f} s: {target}", flush=True)


if __name__ == "__main__":
    try:
        print(f"The notebook edition is ready: {build()[0].parent}")
    except EditionsError as error:
        raise SystemExit(str(error)) from None
