"""Recorded runs: what is written is what is read, and says what it depends on."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from small_run import CONFIG, VOCABULARY

from coupled_adam import evaluation, experiments
from coupled_adam.experiments import records
from coupled_adam.training import train


@pytest.fixture(scope="module")
def measured(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(replace(CONFIG, optimizer="adamw", seed=4), corpus, folder, progress=False)
    return evaluation.evaluate(folder, corpus)


@pytest.fixture
def written(measured, tmp_path):
    path = tmp_path / "a-run.json"
    experiments.write_record(
        measured, path, description="a language of 200 words", command="coupled-adam train"
    )
    return path


def test_a_record_gives_back_what_was_measured(measured, corpus, written):
    record = experiments.read_record(written)
    assert record.config == measured.run.config and record.name == "a-run"
    assert record.command == "coupled-adam train"
    assert record.text["description"] == "a language of 200 words"
    assert record.text["fingerprint"] == corpus.fingerprint
    assert record.text["vocabulary_size"] == VOCABULARY
    assert record.text["training_tokens"] == len(corpus.train)
    assert record.final == pytest.approx(measured.row, nan_ok=True)
    assert record.drift == measured.drift
    evaluated = measured.run.metrics.dropna(subset="validation_loss").reset_index(drop=True)
    pd.testing.assert_frame_equal(record.metrics, evaluated, check_dtype=False)
    for name in ("by_frequency", "word_pairs", "table"):
        found, expected = getattr(record, name), getattr(measured, name)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_a_record_says_what_it_depends_on_and_nothing_of_this_machine_s_folders(measured, written):
    record = experiments.read_record(written)
    assert record.environment["torch"] == record.evaluated["torch"] == torch.__version__
    assert {"device", "python", "threads", "processes", "started", "commit"} <= set(
        record.environment
    )
    assert {"device", "python", "threads", "written", "commit"} <= set(record.evaluated)
    assert str(measured.run.folder.parent) not in written.read_text()


def test_a_record_from_before_there_was_a_table_is_read(written):
    content = json.loads(written.read_text())
    del content["table"]
    written.write_text(json.dumps(content))
    record = experiments.read_record(written)
    assert record.table.empty and list(record.table) == list(evaluation.Measure._fields)


def test_a_record_is_json_without_nan(measured, written):
    assert math.isnan(measured.row["r"])  # no English word in this language

    def refuse(name):
        pytest.fail(f"{name} is no JSON")

    assert json.loads(written.read_text(), parse_constant=refuse)["final"]["r"] is None


def test_a_record_that_cannot_be_written_leaves_the_old_one(measured, written, monkeypatch):
    before = written.read_bytes()
    unfit = {"started": "", "commit": object()}  # no JSON
    monkeypatch.setattr(records, "environment", lambda _: unfit)
    with pytest.raises(TypeError):
        experiments.write_record(measured, written)
    assert written.read_bytes() == before and len(list(written.parent.iterdir())) == 1


def test_recorded_runs_are_sorted_and_other_files_passed_over(written):
    content = json.loads(written.read_text())
    for name, layers, optimizer, seed in [("z", 1, "adamw", 1), ("y", 3, "adamw", 0),
                                          ("x", 1, "coupled", 0)]:  # fmt: skip
        content["config"] |= {"optimizer": optimizer, "seed": seed}
        content["config"]["model"]["layers"] = layers
        (written.parent / f"{name}.json").write_text(json.dumps(content))
    (written.parent / "other.json").write_text('{"results": []}')
    (written.parent / "README.md").write_text("no record")
    records = experiments.recorded_runs(written.parent)
    assert [record.name for record in records] == ["z", "a-run", "x", "y"]


def test_without_records_there_are_none(tmp_path):
    assert experiments.recorded_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("config"), "'config'"),
        (lambda c: c["config"].update(optimizer="adam"), "optimizer must be one of"),
        (lambda c: c["config"].update(colour="red"), "has the unknown colour"),
        (lambda c: (c["config"].pop("steps"), c["config"].pop("seed")), "lacks steps, seed"),
        (lambda c: c.update(kind="something"), "its kind is 'something'"),
        (lambda c: c["final"].update(r="many"), "many"),
        (lambda c: c["drift"].pop("shares"), "shares"),
        (lambda c: c["table"].append(c["table"][0]), "two rows of the table"),
    ],
)
def test_a_damaged_record_is_named(written, change, says):
    content = json.loads(written.read_text())
    change(content)
    written.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"a-run\.json is not the record of a training run"
    ) as error:
        experiments.read_record(written)
    assert says in str(error.value)


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "half.json").write_text('{"kind": ')
    with pytest.raises(ValueError, match=r"half\.json is not the record of a training run"):
        experiments.recorded_runs(tmp_path)


def test_what_is_outstanding_is_what_no_record_holds(written):
    folder, content = written.parent, json.loads(written.read_text())
    everything = experiments.outstanding(folder, "a.txt")  # 144 tokens: none of those wanted
    assert len(everything) == len(experiments.WANTED) + 2
    assert "--text a.txt --preset gpt2-124m --optimizer adamw --seed 1" in everything.command[0]
    content["config"] |= {"optimizer": "coupled", "seed": 1}
    content["config"]["model"]["layers"] = 24
    for tokens, gone in ((98_304_000 - 1, set()), (98_304_000, {"gpt2-355m, coupled, seed 1"})):
        content["final"]["tokens"] = tokens
        (folder / "full.json").write_text(json.dumps(content))
        left = set(experiments.outstanding(folder, "a.txt").what)
        assert left == set(everything.what) - {f"tiny test, {name}" for name in gone}


def test_a_benchmark_is_outstanding_until_it_was_made_on_a_gpu(tmp_path):
    def left():
        return [what for what in experiments.outstanding(tmp_path).what if "tiny" not in what]

    for name, column in (("step", "candidate"), ("speed", "tokens_per_second")):
        results = {"environment": {"device": "cpu (x)"}, "results": [{column: 1}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    assert left() == ["time of the optimizer's step", "throughput beside nanoGPT"]
    results["environment"]["device"] = "cuda (some GPU)"
    (tmp_path / "speed.json").write_text(json.dumps(results))
    assert left() == ["time of the optimizer's step"]


def test_when_nothing_is_outstanding_the_table_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "WANTED", ())
    monkeypatch.setattr(records, "_BENCHMARKS", {})
    assert list(experiments.outstanding(tmp_path)) == ["what", "command"]
    assert experiments.outstanding(tmp_path).empty


def test_every_record_that_comes_with_the_library_is_whole():
    for record in experiments.recorded_runs():
        assert record.metrics["step"].iloc[0] == 0
        assert record.metrics["step"].iloc[-1] == record.final["step"] == record.config.steps
        assert record.text["description"] and record.command
        assert "/" not in record.command
        assert (record.by_frequency["share"] * record.by_frequency["loss"]).sum() == (
            pytest.approx(record.final["validation_loss"])
        )
