"""Arms at equal tuning: grids that extend, pairs of fresh seeds, and what is kept of a run."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from coupled_adam.errors import RefusedError
from coupled_adam.experiments import evidence
from coupled_adam.experiments.sweep import Outcome
from coupled_adam.gpt import GPTConfig
from coupled_adam.training import train

SMALL = {
    "model": GPTConfig(200, context=8, layers=1, heads=2, width=16),
    "batch_size": 4,
    "learning_rate": 1e-2,
    "evaluation_tokens": 64,
}


@pytest.fixture(scope="module")
def where(corpus):
    return evidence.setting("small", corpus.part(320), **SMALL)


def test_a_setting_is_one_pass_over_its_text(where):
    config = where.config
    assert (config.steps, config.warmup_steps, config.evaluate_every) == (10, 1, 2)
    given = evidence.setting("small", where.corpus, **SMALL, warmup_steps=4).config
    assert (given.warmup_steps, given.evaluate_every) == (4, 2)
    assert where.columns["tokens"] == 320 == where.columns["steps"] * where.columns["step_tokens"]


def test_memory_counts_what_occurs_less_than_once():
    found = evidence.memory(np.array([0.5, 0.3, 0.15, 0.05]), step_tokens=1, beta2=0.9)
    assert found == {"rare_share": 0.25, "median_n": pytest.approx(2.25)}
    # The vocabulary of a text within the memory of one with a hundredth of the steps' tokens.
    few, many = (evidence.memory(np.full(100, 0.01), n, 0.99)["median_n"] for n in (5, 500))
    assert many == 100 * few


def test_what_is_kept_of_a_run_adds_up(where):
    run = train(where.config, where.corpus, progress=False)
    table = evidence.measures(run, where.corpus).set_index(["measure", "set"])["value"]
    of_documents = table["loss"].filter(like="document"), table["tokens"]
    mean = np.average(of_documents[0], weights=of_documents[1])
    assert table["loss", "report"] == pytest.approx(mean)
    classes = table["loss"].filter(like="class"), table["share"]
    assert table["loss", "report"] == pytest.approx((classes[0] * classes[1]).sum())
    assert table["share"].sum() == pytest.approx(1)
    assert table["geometry", "isotropy"] == pytest.approx(run.final["isotropy"])
    assert 0 <= table["stability", "clipped_steps"] <= 1
    assert table["loss", "tuning"] != table["loss", "report"]


def faked(best):
    """A sweep whose loss is a parabola of the logarithm of the multiplier."""

    def run_sweep(jobs, folder, *, measure, workers):
        outcomes = []
        for config, _ in jobs:
            off = math.log2(config.embedding_multiplier / best[config.optimizer])
            loss = 5 + off**2 + 0.01 * config.seed
            table = pd.DataFrame(
                [("loss", "tuning", loss), ("loss", "report", loss)],
                columns=["measure", "set", "value"],
            )
            outcomes.append(Outcome(config, "", pd.DataFrame(), measured=table))
        return outcomes

    return run_sweep


def test_a_winner_at_the_edge_extends_its_grid(where, monkeypatch):
    monkeypatch.setattr(evidence, "run_sweep", faked({"adamw": 2.0, "coupled": 32.0}))
    best, table = evidence.tune(where, ("adamw", "coupled"), None)
    assert best == {"adamw": 2.0, "coupled": 32.0}
    tried = table.groupby("optimizer")["multiplier"].agg(["min", "max"])
    assert tried.loc["coupled"].tolist() == [1.0, 64.0]  # a worse neighbour on either side
    assert tried.loc["adamw"].tolist() == [1.0, 4.0]
    assert set(table["seed"]) == set(evidence.TUNING_SEEDS)


def test_a_grid_that_has_no_end_is_refused(where, monkeypatch):
    monkeypatch.setattr(evidence, "run_sweep", faked({"coupled": 1e30}))
    with pytest.raises(RefusedError, match="small: no optimum inside"):
        evidence.tune(where, ("coupled",), None)


def test_the_report_is_of_fresh_pairs_at_own_and_common_multiplier(where, monkeypatch):
    monkeypatch.setattr(evidence, "run_sweep", faked({"adamw": 1.0, "coupled": 4.0}))
    table = evidence.report(where, {"adamw": 1.0, "coupled": 4.0}, None)
    counts = table.groupby(["stage", "optimizer"]).size()
    assert counts.to_dict() == {
        ("common", "coupled"): 5,
        ("report", "adamw"): 5,  # its own is the common one, which is not made twice
        ("report", "coupled"): 5,
    }
    assert not set(table["seed"]) & set(evidence.TUNING_SEEDS)


def test_runs_are_found_again_with_what_was_measured(where, tmp_path, monkeypatch):
    first = evidence.report(where, {"coupled": 2.0}, tmp_path, seeds=(0,), workers=1)
    monkeypatch.setattr("coupled_adam.experiments.sweep._measured", _from_file)
    again = evidence.report(where, {"coupled": 2.0}, tmp_path, seeds=(0,), workers=1)
    pd.testing.assert_frame_equal(first, again, rtol=1e-8)
    assert len(list(tmp_path.glob("*/measures.json"))) == len(first) == 2


def _from_file(measure, run, _corpus):
    return pd.DataFrame(json.loads((run.folder / f"{measure.__name__}.json").read_text()))


def test_a_diverged_run_is_an_infinite_loss(where):
    rows = evidence.rows_of(
        [Outcome(where.config, "", pd.DataFrame(), diverged_at=3)], where, "report"
    )
    assert rows.loc[0, "loss/report"] == math.inf
    assert rows.loc[0, "diverged_at"] == 3


def test_an_arm_against_itself_is_called_different_in_one_case_of_twenty(where, monkeypatch):
    """A thousand comparisons through the whole machinery, with the spread that was recorded."""
    random = np.random.default_rng(0)

    def run_sweep(jobs, folder, *, workers):
        assert len({config.seed for config, _ in jobs}) == len(jobs)
        columns = {"step": 1, "loss": 1.0, "validation_loss": 6.0}
        return [
            Outcome(
                config,
                "",
                pd.DataFrame([columns | {"validation_loss": 6 + 0.01 * random.normal()}]),
            )
            for config, _ in jobs
        ]

    monkeypatch.setattr(evidence, "run_sweep", run_sweep)
    table = evidence.same_arm(where, "adamw", None, comparisons=1000)
    assert 0.037 <= table["called"].mean() <= 0.064
    assert table["mean"].abs().max() < 0.05
