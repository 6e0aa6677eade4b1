"""Fixtures that cost minutes: the executed chapters and the built site, each made at most once."""

from __future__ import annotations

from pathlib import Path

import build_book
import notebooks
import pytest


@pytest.fixture(scope="session")
def executed(request):
    """Every chapter is executed and its copy is current; runs those that are not."""
    # Minutes can pass: the progress must be seen although pytest captures the output of tests.
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        notebooks.execute_stale()


@pytest.fixture(scope="session")
def site(executed, request) -> Path:
    """The folder of the built site, built anew if anything has changed."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        return build_book.build().parent


def pytest_collection_modifyitems(items):
    """Quick tests first: a broken library should not take minutes to show."""
    items.sort(key=lambda item: "site" in item.fixturenames)
    items.sort(key=lambda item: "executed" in item.fixturenames)
