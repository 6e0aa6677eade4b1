"""A tiny language and a tiny model, on which a whole comparison takes seconds."""

import pytest

from coupled_adam.report import plan
from coupled_adam.text import synthetic

SHAPE = {"layers": 1, "heads": 2, "width": 16, "context": 8}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return synthetic(200, tokens=20_480, cache=tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session", autouse=True)
def short_evaluations():
    """Losses on the way that nobody reads take most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan, "EVALUATION_TOKENS", 64)
        yield


@pytest.fixture
def tiny(monkeypatch):
    """The small GPT made tiny, so that short texts are long enough."""
    monkeypatch.setattr(plan, "SHAPE", SHAPE)
    monkeypatch.setattr(plan, "SIZES", ((300, 4), (280, 1)))
