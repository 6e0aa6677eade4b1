"""The tables and the verdict for scripts: what adds up, what is rounded, what is refused."""

import json
import math

import pandas as pd
import pytest
from tiny_plan import ADAM, COUPLED, Machine, on

from coupled_adam.errors import RefusedError
from coupled_adam.report import experiment, tables
from coupled_adam.report.advice import RULES, advise
from coupled_adam.report.steps import CostSheet


@pytest.fixture(scope="module")
def written(done):
    out, result, _ = done
    tables.write_tables(result, out, costs=CostSheet(planned_hours=100))
    return out, result


def test_every_table_is_there_and_adds_up(written):
    out, result = written
    read = {name: pd.read_csv(out / f"{name}.csv") for name in ("gains", "rates", "frequency")}
    gains = read["gains"]
    assert list(gains["seed"]) == [0, 1, 2]
    assert (gains["text"] - gains["twin"]).tolist() == pytest.approx(gains["net"], abs=1e-4)
    best = read["rates"][read["rates"]["best"]]
    assert dict(zip(best["optimizer"], best["multiplier"], strict=True)) == result.best
    # What the classes contribute is the gain on the text.
    contributions = read["frequency"].groupby("seed")["contribution"].sum()
    assert contributions.tolist() == pytest.approx(gains["text"].tolist(), abs=1e-4)
    measures = pd.read_csv(out / "measures.csv")
    assert set(measures["optimizer"]) == {ADAM, COUPLED}
    assert (measures["low"].isna() | (measures["low"] <= measures["mean"])).all()
    assert "time of a step (ms)" in set(measures["measure"])


def test_the_verdict_is_that_of_the_rules(written):
    out, result = written
    verdict = json.loads((out / tables.VERDICT_FILE).read_text())
    advice = advise(result.facts())
    assert (verdict["verdict"], verdict["call"]) == (advice.verdict, advice.call)
    assert [one["rule"] for one in verdict["rules"]] == [rule.__name__ for rule in RULES]
    assert verdict["primary"].startswith("loss on the validation documents")
    assert verdict["pairs"] == 3 and verdict["strongest_rival"] == ADAM
    assert verdict["gains"][ADAM]["net"]["mean"] == pytest.approx(
        result.facts().versus[0].net.mean(), rel=1e-5
    )
    assert verdict["next_steps"] and verdict["costs"]["introduction"] == 1280


def test_a_report_of_what_there_is_is_the_same(written, tmp_path):
    out, _ = written
    tables.write_tables(experiment.found(out), tmp_path, costs=CostSheet(planned_hours=100))
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_diverged_run_is_in_the_tables(plan, corpus, tmp_path, monkeypatch):
    machine = Machine(1.0, {ADAM: 8.0, COUPLED: 8.0}, diverging={(COUPLED, 1)})
    result = on(machine, plan, corpus, tmp_path, monkeypatch)
    facts, advice = tables.write_tables(result, tmp_path)
    assert advice.verdict == "no" and facts.diverged == {COUPLED: 1}
    gains = pd.read_csv(tmp_path / "gains.csv")
    assert gains["text"].tolist()[1] == -math.inf and math.isnan(gains["net"].tolist()[1])
    assert json.loads((tmp_path / tables.VERDICT_FILE).read_text())["verdict"] == "no"


def test_a_folder_of_something_else_is_refused(tmp_path):
    tables.check_out(tmp_path)
    tables.check_out(tmp_path / "new")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RefusedError, match="holds no comparison"):
        tables.check_out(tmp_path)
    with pytest.raises(RefusedError, match="is a file"):
        tables.check_out(tmp_path / "thesis.tex")


def test_what_is_said_in_the_end_names_the_primary_measure_first(written):
    _, result = written
    facts = result.facts()
    lines = tables.summary_lines(facts, advise(facts))
    assert lines[0].startswith("Primary measure")
    assert any("can change with size" in line for line in lines)
