"""A tiny language and a tiny model, on which a whole comparison takes seconds."""

import pytest
from tiny_plan import ADAM, COUPLED, SHAPE

from coupled_adam.report import plan as planning
from coupled_adam.report.experiment import Experiment
from coupled_adam.report.plan import Plan
from coupled_adam.text import synthetic


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return synthetic(200, tokens=20_480, cache=tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session", autouse=True)
def short_evaluations():
    """Losses on the way that nobody reads take most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planning, "EVALUATION_TOKENS", 64)
        yield


@pytest.fixture
def tiny(monkeypatch):
    """The small GPT made tiny, so that short texts are long enough."""
    monkeypatch.setattr(planning, "SHAPE", SHAPE)
    monkeypatch.setattr(planning, "SIZES", ((300, 4), (280, 1)))


@pytest.fixture(scope="session")
def plan(corpus):
    rates = (4.0, 8.0, 16.0)
    return Plan(
        arms=(ADAM, COUPLED), vocabulary=200, batch_size=4, beta2=0.95, tokens=320, pairs=3,
        tuning_seeds=(100,), rates={ADAM: rates, COUPLED: rates}, minutes=5.0, seconds=100.0,
        workers=1, step_seconds={ADAM: (0.2, 0.1), COUPLED: (0.1, 0.1)}, run_seconds=0.1,
        target=None, shape=SHAPE, fingerprint=corpus.fingerprint,
    )  # fmt: skip


@pytest.fixture(scope="session")
def done(plan, corpus, tmp_path_factory, short_evaluations):
    """A whole comparison: its folder, its result, and what was said."""
    out, said = tmp_path_factory.mktemp("done"), []
    return out, Experiment(plan, corpus, out, say=said.append).run(), said
