"""The record of what embeddings are good for: evaluated runs, found again, read as they were."""

import numpy as np
import pandas as pd
import pytest
from small_run import SETTINGS
from typer.testing import CliRunner

from coupled_adam import cli
from coupled_adam.errors import RefusedError
from coupled_adam.evaluation import evaluate
from coupled_adam.experiments import downstream, recorded
from coupled_adam.experiments.sweep import run_sweep

RECORDED = downstream.recorded_points()
NUMBERS = ["value", "low", "high", "chance"]
BEST = {"adamw": 2.0, "coupled": 4.0}


@pytest.mark.parametrize("point", RECORDED, ids=lambda point: point.name)
def test_a_record_holds_every_run_of_the_report(point):
    table, about = downstream.read(point.name), recorded.provenance(f"downstream {point.name}")
    of_sweep = recorded.read(point.name).query("stage == 'report'")
    runs = ["optimizer", "multiplier", "seed"]
    assert set(table[runs].itertuples(index=False)) == set(of_sweep[runs].itertuples(index=False))
    assert about["runs"] == len(of_sweep)
    assert about["text"] == recorded.provenance(point.name)["text"]
    # They are those runs: the shape of their embeddings is that of the sweep's record.
    for name in ("relative_mean_norm", "isoscore"):
        ours = downstream.by_variant(table, name)["trained"].droplevel("set")
        theirs = of_sweep.set_index(["optimizer", "seed"])[f"geometry/{name}"]
        np.testing.assert_allclose(ours, theirs[ours.index], rtol=0.02)
    assert (table["value"].notna() | (table["note"] != "")).all()


@pytest.fixture
def tiny(monkeypatch, corpus):
    points = [
        recorded.Point("a b", "wikipedia", 192, changes=SETTINGS, report_seeds=(0, 1)),
        recorded.Point("twin", "wikipedia", 192, changes=SETTINGS, twin_of="a b"),
    ]
    monkeypatch.setattr(recorded.text, "wikipedia_sample", lambda _: corpus)
    monkeypatch.setattr(recorded, "POINTS", points)
    return points


@pytest.fixture
def made(tiny, tmp_path):
    rows = [
        {"stage": "tuning", "optimizer": name, "multiplier": multiplier, "loss/tuning": loss}
        for name, best in BEST.items()
        for multiplier, loss in ((best, 1.0), (2 * best, 2.0))
    ]
    recorded.write_table(pd.DataFrame(rows), "a b", tmp_path / "out")
    return downstream.make(tiny[0], None, tmp_path / "runs", tmp_path / "out", workers=1)


def test_the_report_s_runs_are_evaluated_and_read_back(made, tiny, tmp_path, corpus):
    assert len(made.groupby(["optimizer", "multiplier", "seed"])) == 4
    assert dict(zip(made["optimizer"], made["multiplier"], strict=True)) == BEST
    pd.testing.assert_frame_equal(made, downstream.read("a b", tmp_path / "out"))
    about = recorded.provenance("downstream a b", tmp_path / "out")
    assert about["runs"] == 4 and "commit" not in about["recorded"]
    (folder,) = (tmp_path / "runs").glob("coupled-1-*")
    of_run = evaluate(folder, corpus.spread(192)).table
    rows = made[(made["optimizer"] == "coupled") & (made["seed"] == 1)]
    assert rows["note"].tolist() == of_run["note"].tolist()
    np.testing.assert_allclose(rows[NUMBERS], of_run[NUMBERS], rtol=1e-5, atol=1e-9)


def test_what_was_evaluated_is_not_evaluated_again(made, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(downstream, "evaluate", None)
    again = downstream.make(tiny[0], None, tmp_path / "runs", tmp_path / "out", workers=1)
    pd.testing.assert_frame_equal(made, again)


def test_variants_stand_side_by_side(made):
    found = downstream.by_variant(made, "relative_mean_norm")
    assert list(found) == ["trained", "centred", "all-but-the-top", "untrained"]
    assert found.index.tolist() == [(n, "", s) for n in ("adamw", "coupled") for s in (0, 1)]
    row = made.query("optimizer == 'coupled' and seed == 1 and measure == 'relative_mean_norm'")
    values = row.set_index("variant")["value"].to_dict()
    assert found.loc["coupled", "", 1].to_dict() == values
    with pytest.raises(RefusedError, match="no run has a value of 'beauty': there is loss, "):
        downstream.by_variant(made, "beauty")
    with pytest.raises(RefusedError, match="'retrieval': too few: 0 of at least 20 documents"):
        downstream.by_variant(made, "retrieval")


def test_the_command_line_evaluates_what_has_been_made(tiny, tmp_path):
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--workers", "1"]

    def run(*names):
        return CliRunner().invoke(cli.app, ["evidence", *names, *folders])

    result = run("a b")
    assert result.exit_code == 0, result.output
    runs = sorted((tmp_path / "runs").iterdir())
    result = run("downstream a b")
    assert result.exit_code == 0, result.output
    assert sorted((tmp_path / "runs").iterdir()) == runs  # the sweep's own
    assert "downstream a b: 4 runs evaluated" in result.stdout
    assert (tmp_path / "out" / "downstream-a-b.csv").exists()
    for name in ("downstream", "downstream c", "downstream twin", "downstream same-arm"):
        result = run(name)
        assert result.exit_code == 2
        assert f"there is no setting '{name}'" in result.stderr


def test_what_cannot_be_evaluated_is_refused(tiny, tmp_path, corpus):
    with pytest.raises(RefusedError, match="there is no record of 'a b'"):
        downstream.make(tiny[0], None, tmp_path / "runs", tmp_path / "out")
    with pytest.raises(RefusedError, match="twin is a shuffled text"):
        downstream.make(tiny[1], None, tmp_path / "runs", tmp_path / "out")
    with pytest.raises(RefusedError, match="the embeddings of 'a b' have no record"):
        downstream.read("a b", tmp_path / "out")
    where = recorded.setting_of(tiny[0], None)
    with pytest.raises(RefusedError, match="give run_sweep a folder"):
        run_sweep([(where.config, where.corpus)], measure=downstream.evaluated, workers=1,
                  progress=False)  # fmt: skip
