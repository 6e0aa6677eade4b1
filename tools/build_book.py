"""Build the site in ``_build/html`` from the executed chapters, with warnings as errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import editions
import notebooks
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

SITE = notebooks.BUILD / "html"
CACHE = notebooks.BUILD / ".jupyter_cache"
STAMP = notebooks.BUILD / "html.key"
PAGES = [*editions.SOURCES, "data"]


class BookError(RuntimeError):
    """The site could not be built."""


def build() -> Path:
    """Execute what is stale, build the site if anything changed, and return its first page.

    Raises:
        notebooks.ChapterError: if a chapter fails.
        BookError: if the build has a warning, or executed a chapter on its own account.
        editions.EditionsError: if a chapter cannot be written as a plain notebook.
    """
    start = time.monotonic()
    notebooks.execute_stale()
    with notebooks.lock("html"):
        return _build_pages(start)


def _build_pages(start: float) -> Path:
    index = SITE / "index.html"
    paths = [notebooks.ROOT / name for name in PAGES]
    key = notebooks.hash_of([path for path in paths if path.exists()] + [notebooks.EXECUTED])
    if STAMP.exists() and STAMP.read_text() == key and index.exists():
        print(f"The site is up to date: {index}", flush=True)
        return index
    print("Building the site (about half a minute).", flush=True)
    STAMP.unlink(missing_ok=True)
    # All of it anew: Sphinx does not see that the outputs of a page have changed.
    for name in ("html", ".jupyter_cache", ".doctrees", "jupyter_execute"):
        shutil.rmtree(notebooks.BUILD / name, ignore_errors=True)
    _fill_cache()
    filled = _cached()
    with ThreadPoolExecutor(1) as pool:
        pages = pool.submit(_run_jupyter_book)  # a process of its own, beside which there is time
        editions.build()
        pages.result()
    # The pages offer them for download, and the workflow publishes them with the pages.
    shutil.copytree(editions.NOTEBOOKS, SITE / editions.ON_THE_SITE)
    if _cached() != filled:
        raise BookError(
            "the build executed a chapter instead of taking its outputs from _build/executed: "
            "the notebook that it read is not the one that was put into its cache"
        )
    STAMP.write_text(key)
    print(f"The site is ready after {time.monotonic() - start:.0f} s: {index}", flush=True)
    return index


def _fill_cache() -> None:
    """Hand the outputs of the executed chapters to the book, through its own execution cache."""
    cache = get_cache(str(CACHE))
    for chapter in notebooks.sources():
        notebook = notebooks.with_outputs(chapter)
        for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
            # For the ledger, which reads it elsewhere; Sphinx would warn that it cannot show it.
            output.get("data", {}).pop(notebooks.CLAIM_TYPE, None)
        bundle = CacheBundleIn(
            nb=notebook,
            uri=str(chapter),
            data={"execution_seconds": notebooks.execution(chapter)["seconds"]},
        )
        cache.cache_notebook_bundle(bundle, check_validity=True, overwrite=True)


def _cached() -> list[str]:
    return sorted(record.hashkey for record in get_cache(str(CACHE)).list_cache_records())


def _run_jupyter_book() -> None:
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(notebooks.ROOT)]
    command += ["-W", "-n", "--keep-going", "--all"]
    done = subprocess.run(
        command,
        cwd=notebooks.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    (notebooks.BUILD / "build.log").write_text(done.stdout, encoding="utf-8")
    if done.returncode:
        print(done.stdout, flush=True)
        raise BookError("the site has warnings; see above, or _build/build.log")


if __name__ == "__main__":
    try:
        build()
    except (BookError, editions.EditionsError, notebooks.ChapterError) as error:
        raise SystemExit(str(error)) from None
