"""One thread a process, two processes side by side; and what costs minutes, made at most once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import browser
import notebooks
import pytest
from filelock import FileLock

# Before torch is imported, and for the processes that tests start: threads that wait for each
# other's turn on the same cores took two files of tests two and three times as long.
for _name in notebooks.THREADS:
    os.environ.setdefault(_name, "1")


# The folders with the longest files of tests.
TRAINING = ("training", "experiments", "evaluation", "optim")


def pytest_report_header() -> str:
    """What may take minutes is said before it begins."""
    old = len(notebooks.stale())
    return f"chapters: {len(notebooks.sources())}, of which {old} have to be executed"


def pytest_collection_modifyitems(config, items):
    """Put the items into the order that takes least time.

    Several workers begin with the chapters, the longest first, and go on with what trains; a long
    file that came last would leave the others idle. One worker alone begins with the quick tests: a
    broken library should not take minutes to show.
    """
    chapters = notebooks.in_order_of_execution()
    several = hasattr(config, "workerinput")

    def rank(item: pytest.Item) -> tuple[int, int]:
        chapter = chapter_of(item)
        if chapter is not None:
            return (0 if several else 3), chapters.index(chapter)
        if needs_site(item):
            return (2 if several else 4), 0
        return (1 if several and item.path.parent.name in TRAINING else 2), 0

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep in one worker what shares fixtures: the tests of a chapter, and those of a file.

    The groups of pytest-xdist's own "loadgroup" are passed over by pytest 9.2 (its issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFileAndChapter(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # the order of the items is that of the work
    return ByFileAndChapter(config, log)


def group_of(nodeid: str) -> str:
    """What a test is kept together with: its chapter if it executes one, and else its file."""
    file, _, test = nodeid.partition("::")
    return f"{file}[{test.partition('[')[2]}" if test.startswith("TestExecuted") else file


def chapter_of(item: pytest.Item) -> Path | None:
    """The chapter that has to be executed for an item, if it is about one."""
    return item.callspec.params["path"] if "executed" in item.fixturenames else None


def needs_site(item: pytest.Item) -> bool:
    """Whether all chapters have to be executed for an item."""
    return "site" in item.fixturenames


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, request) -> Path:
    """A folder that the workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


@pytest.fixture(scope="session")
def library() -> Iterator[Path]:
    """The unpacked wheel that the chapters import."""
    with notebooks.unpacked_wheel() as folder:
        yield folder


@pytest.fixture(scope="session")
def failure(request, run_folder) -> Callable[[Path], str]:
    """A function that executes a chapter unless its copy is current, and returns why it failed.

    One worker executes it and the others wait; a chapter that failed is not tried again.
    """

    @cache
    def failure(chapter: Path) -> str:
        told = run_folder / f"{chapter.stem}.failed"
        with FileLock(run_folder / f"{chapter.stem}.lock"):
            if not told.exists() and chapter in notebooks.stale():
                with uncaptured(request):
                    print(f"\nexecuting {chapter.stem}")
                try:
                    notebooks.execute(chapter, request.getfixturevalue("library"))
                except notebooks.ChapterError as error:
                    told.write_text(str(error), encoding="utf-8")
            return told.read_text(encoding="utf-8") if told.exists() else ""

    return failure


@pytest.fixture(scope="session", autouse=True)
def _timed_chapters_alone(request, failure) -> None:
    """Execute what times its steps before any worker begins with anything else."""
    if not hasattr(request.config, "workerinput"):
        return
    items = request.session.items
    for chapter in notebooks.in_order_of_execution():
        wanted = any(needs_site(item) or chapter_of(item) == chapter for item in items)
        if chapter.stem in notebooks.TIMED and wanted:
            failure(chapter)


@pytest.fixture
def executed(path, failure) -> None:
    """The chapter ``path`` is executed and its copy is current."""
    if failure(path):
        pytest.fail(failure(path), pytrace=False)


@pytest.fixture(scope="session")
def site(request, failure) -> Path:
    """The folder of the built site, built anew if anything has changed."""
    failed = [path.stem for path in notebooks.in_order_of_execution() if failure(path)]
    if failed:
        pytest.fail(f"no site without {', '.join(failed)}", pytrace=False)
    import build_book  # the library is also tested where the tools that build pages are not

    with uncaptured(request):
        return build_book.build().parent


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory):
    """A page of a real browser, without a network."""
    if browser.executable() is None:
        pytest.skip("no Chromium on this machine, so the page cannot be operated")
    with browser.browse(tmp_path_factory.mktemp("profile")) as page:
        yield page


def uncaptured(request):
    """A context in which what is printed is seen at once."""
    return request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled()
