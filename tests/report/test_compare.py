"""``coupled-adam compare``: from a folder of text to a verdict, and a sentence for bad input."""

import json
import random
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from coupled_adam import cli
from coupled_adam.report import experiment
from coupled_adam.report import plan as planning
from coupled_adam.report.advice import GO_ON, advise
from coupled_adam.text import synthetic


@pytest.fixture(autouse=True)
def small(tiny, monkeypatch, tmp_path_factory):
    """Ten steps a run, and a cache that the tests of this file share."""
    monkeypatch.setattr(planning, "LEAST_STEPS", 10)
    monkeypatch.setattr(planning, "SIZES", ((300, 4),))
    monkeypatch.setattr(planning, "STAIRS", ((3, 1),))
    cache = tmp_path_factory.getbasetemp() / "cache-of-compare"
    monkeypatch.setenv("COUPLED_ADAM_CACHE", str(cache))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a text.txt"
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    path.write_text(" ".join(random.Random(0).choices(words, k=20_000)))
    return path


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["compare", *map(str, arguments)])


def test_from_a_text_to_a_verdict_and_again(text, tmp_path):
    labels = tmp_path / "labels.tsv"
    words = text.read_text().split()
    labels.write_text("".join(f"{k % 2}\t{' '.join(words[k : k + 5])}\n" for k in range(60)))
    out = tmp_path / "report"
    command = ("--text", text, "--labels", labels, "--minutes", 5, "--workers", 1, "--out", out)
    command += ("--plan", "tokens-per-step=64,vocabulary=300,steps=10", "--arms", "coupled,adamw")
    first = invoke(*command)
    assert first.exit_code == 0, first.output
    said = first.stdout
    assert said.index("Tuning: 3 learning rates") < said.index("Primary measure")
    assert said.index("Primary measure") < said.index("Pair 1 of 3")
    files = {path.name for path in out.iterdir()}
    assert files >= {"report.html", "verdict.json", "gains.csv", "rates.csv", "measures.csv",
                     "frequency.csv", "runs.csv"}  # fmt: skip
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["sentence"] in said and verdict["pairs"] == 3
    assert verdict["verdict"] != "go on"  # Adam alone is no rival
    assert "only_plain_adam" in {one["rule"] for one in verdict["rules"] if one["fired"]}
    assert verdict["gains"]["adamw"]["classification"] is not None
    before = {path.name: path.read_bytes() for path in out.glob("*.*")}
    for again in (command, ("--show", "--out", out)):
        result = invoke(*again)
        assert result.exit_code == 0, result.output
        for path in out.glob("*.*"):
            assert path.read_bytes() == before[path.name], path.name


def sentence(result):
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("coupled-adam: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes must be"),
        (["--minutes", "nan"], "--minutes must be"),
        (["--minutes", "0.001"], r"too few.*give --minutes \d+"),
        (["--arms", "coupled"], "two arms"),
        (["--arms", "adamw,nothing"], "no arm 'nothing'"),
        (["--plan", "much"], "--plan: 'much'"),
        (["--vocabulary-size", "100000"], "too small for a vocabulary"),
        (["--show"], "no comparison yet"),
        (["--labels", "none.tsv"], "none.tsv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence(text, tmp_path, arguments, said):
    result = invoke("--text", text, "--out", tmp_path / "out", *arguments)
    assert re.search(said, sentence(result))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("", "holds no labelled text"),
        ("no tabulator here\n", "is not a label, a tabulator"),
        ("a\tbal\n" * 30, "all texts have the label 'a'"),
        ("a\tbal\n" * 30 + "b\tbam\n", "'b' occurs 1 time"),
    ],
    ids=["empty", "not labels", "one class", "once"],
)
def test_labels_that_do_not_fit_are_one_sentence(text, tmp_path, labels, said):
    path = tmp_path / "labels.tsv"
    path.write_text(labels)
    result = invoke("--text", text, "--labels", path, "--out", tmp_path / "out")
    assert said in sentence(result)


def test_a_place_that_is_taken_is_one_sentence(text, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    assert "holds no comparison" in sentence(invoke("--text", text, "--out", tmp_path))


@pytest.mark.parametrize("kind", ["shuffled", "flat"])
def test_where_nothing_can_be_learned_it_does_not_go_on(plan, corpus, tmp_path, kind):
    if kind == "shuffled":
        made = corpus.shuffled(1)
    else:
        made = synthetic(200, 20_480, zipf_exponent=0.0, classes=1)
    result = experiment.Experiment(plan, made, tmp_path).run()
    facts = result.facts()
    advice = advise(facts)
    assert advice.verdict != GO_ON and advice.call != "better"
    assert np.isfinite(facts.versus[0].net).all()
