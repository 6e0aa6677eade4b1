"""The experiment: what it trains and in which order; its budget; an end that no kill changes."""

import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from tiny_plan import ADAM, COUPLED, SHAPE, Machine, on

from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.downstream import LabelledTexts
from coupled_adam.experiments import evidence
from coupled_adam.report import experiment, facts
from coupled_adam.report.experiment import Experiment, Measures
from coupled_adam.training import DivergedError


def assert_same(one, other):
    """The results are equal but for the time that was spent."""
    pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)
    assert replace(one, table=None, seconds=0) == replace(other, table=None, seconds=0)


def test_every_arm_is_tuned_and_then_trained_with_the_same_fresh_seeds(done, plan):
    _, result, _ = done
    table = result.table
    stages = table.groupby(["stage", "optimizer"])["seed"].agg(list)
    for name in plan.arms:
        assert sorted(stages["report", name]) == sorted(stages["shuffled", name]) == [0, 1, 2]
    tuning = table[table["stage"] == "tuning"]
    assert (tuning.groupby("optimizer")["multiplier"].nunique() >= 3).all()
    assert set(tuning["seed"]) == {100}
    assert (result.pairs, result.stopped) == (3, "")
    if result.best[ADAM] != result.best[COUPLED]:
        common = table[table["stage"] == "common"]
        assert (common["multiplier"] == result.best[ADAM]).all()
        assert set(common["optimizer"]) == {COUPLED}


def test_the_arms_take_turns(done):
    _, result, _ = done
    for stage in ("report", "shuffled"):
        rows = result.table[result.table["stage"] == stage]
        order = [list(part["optimizer"]) for _, part in rows.groupby("seed", sort=False)]
        assert order == [[ADAM, COUPLED], [COUPLED, ADAM], [ADAM, COUPLED]]


def test_what_is_known_so_far_is_said(done):
    _, _, said = done
    assert "Best rates" in said[0]
    assert [line.split(",")[0] for line in said[1:]] == [f"Pair {k} of 3" for k in (1, 2, 3)]
    assert "(" not in said[1].partition("net gain")[2]  # one pair has no interval
    assert "to" in said[3].partition("net gain")[2]


def test_the_facts_are_those_of_the_runs(done):
    _, result, _ = done
    found = result.facts()
    (one,) = found.versus
    own = result.table[result.table["stage"] == "report"].pivot(
        index="seed", columns="optimizer", values="loss/report"
    )
    assert one.gains == pytest.approx(tuple(own[ADAM] - own[COUPLED]))
    assert len(one.net) == 3 and one.step_ratio == pytest.approx(1.5)
    assert len(one.speed_up) == 3 and all(math.isfinite(value) for value in one.speed_up)
    held = result.table.groupby("optimizer")[facts.MEMORY].mean()
    # The shared moment is a row of 16 numbers, where Adam keeps 200 of them.
    assert held[ADAM] - held[COUPLED] == pytest.approx(199 * 16 * 4 / 2**20, rel=1e-3)
    assert found.tokens == 320 and found.parameters == result.plan.parameters


def test_the_run_folders_are_those_that_evaluate_takes(done):
    from coupled_adam.training import load_run

    out, result, _ = done
    folders = list((out / "runs").iterdir())
    assert len(folders) == len(result.table)
    assert load_run(folders[0]).config.steps == result.plan.steps


def test_nothing_is_repeated(done, plan, corpus, tmp_path, monkeypatch):
    out, result, _ = done
    again = tmp_path / "again"
    shutil.copytree(out, again)

    def refuse(*_args, **_options):
        raise AssertionError("trained again")

    monkeypatch.setattr("coupled_adam.training.loop._backward", refuse)
    assert_same(Experiment(plan, corpus, again).run(), result)
    assert_same(experiment.found(again), result)


@pytest.mark.parametrize("runs", [0, 9])
@pytest.mark.parametrize("how", [KeyboardInterrupt, MemoryError], ids=["Ctrl-C", "killed"])
def test_stopped_at_any_moment_it_ends_with_the_same_result(
    done, plan, corpus, tmp_path, monkeypatch, runs, how
):
    out, result, _ = done
    # What is there when it stops: the first runs, and one in the middle of its steps.
    made = sorted((out / "runs").iterdir(), key=lambda path: (path / "config.json").stat().st_mtime)
    place = tmp_path / "stopped"
    (place / "runs").mkdir(parents=True)
    for folder in made[:runs]:
        shutil.copytree(folder, place / "runs" / folder.name)
    steps = []
    real = experiment.evidence.measures
    from coupled_adam.training import loop

    backward = loop._backward

    def stopping(*arguments, **options):
        steps.append(1)
        if len(steps) > 7:
            raise how
        return backward(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_backward", stopping)
        if how is KeyboardInterrupt:
            early = Experiment(plan, corpus, place).run()
            assert early.stopped == "interrupted" and early.pairs < 3
        else:
            with pytest.raises(MemoryError):
                Experiment(plan, corpus, place).run()
    assert experiment.evidence.measures is real
    assert_same(Experiment(plan, corpus, place).run(), result)


def test_an_interrupted_comparison_can_be_shown(done, plan, corpus, tmp_path):
    out, result, _ = done
    (tmp_path / "x").mkdir()
    for name in (experiment.RUNS_FILE, experiment.STATE_FILE):
        shutil.copy(out / name, tmp_path / "x")
    part = result.table[(result.table["seed"] < 2) | (result.table["stage"] == "tuning")]
    (tmp_path / "x" / experiment.RUNS_FILE).write_text(part.to_csv(index=False))
    found = experiment.found(tmp_path / "x")
    assert (found.pairs, found.stopped) == (2, "interrupted")
    with pytest.raises(RefusedError, match="no comparison yet"):
        experiment.found(tmp_path / "y")
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "x" / experiment.STATE_FILE).write_text(damaged)
        with pytest.raises(RefusedError, match="damaged"):
            experiment.found(tmp_path / "x")


def test_an_edge_extends_the_grid(plan, corpus, tmp_path, monkeypatch):
    machine = Machine(1.0, {ADAM: 8.0, COUPLED: 2.0})
    result = on(machine, plan, corpus, tmp_path, monkeypatch)
    assert result.best == {ADAM: 8.0, COUPLED: 2.0} and all(result.tuned.values())
    tuning = result.table[result.table["stage"] == "tuning"]
    assert sorted(tuning[tuning["optimizer"] == COUPLED]["multiplier"]) == [1, 2, 4, 8, 16]
    assert sorted(tuning[tuning["optimizer"] == ADAM]["multiplier"]) == [4, 8, 16]


def test_an_arm_without_an_optimum_is_not_tuned(plan, corpus, tmp_path, monkeypatch):
    machine = Machine(0.1, {ADAM: 8.0, COUPLED: 1e9})
    result = on(machine, plan, corpus, tmp_path, monkeypatch)
    assert result.tuned == {ADAM: True, COUPLED: False}
    tried = result.table[result.table["stage"] == "tuning"]["multiplier"].max()
    assert tried == 16 * 2**experiment._EXTENSIONS


@pytest.mark.parametrize("seconds", [1.0, 15.0, 18.0, 22.0, 40.0])
def test_the_budget_is_kept_within_a_tenth(plan, corpus, tmp_path, monkeypatch, seconds):
    machine = Machine(seconds, {ADAM: 8.0, COUPLED: 4.0})
    result = on(machine, plan, corpus, tmp_path, monkeypatch)
    tuning = 7 if result.tuned[COUPLED] else 6  # an edge is not followed where pairs would be lost
    whole = seconds * (tuning + 3 * 5)
    assert result.seconds == machine.now
    if whole <= 1.08 * 300:
        assert (result.pairs, result.stopped) == (3, "")
    else:
        assert result.stopped == "time"
    assert machine.now <= max(1.08 * 300, seconds * tuning)  # tuning is not cut in two


def test_a_budget_that_was_used_up_stays_used_up(plan, corpus, tmp_path, monkeypatch):
    machine = Machine(20.0, {ADAM: 8.0, COUPLED: 8.0})
    first = on(machine, plan, corpus, tmp_path, monkeypatch)
    assert first.stopped == "time" and first.pairs == 2
    faster = Machine(0.0, machine.best)
    second = on(faster, plan, corpus, tmp_path, monkeypatch)
    assert (second.stopped, second.pairs) == ("time", 2)
    more = on(faster, replace(plan, minutes=60.0), corpus, tmp_path, monkeypatch)
    assert (more.stopped, more.pairs) == ("", 3)


def test_a_diverged_run_is_a_result(plan, corpus, tmp_path, monkeypatch):
    machine = Machine(1.0, {ADAM: 8.0, COUPLED: 8.0}, diverging={(COUPLED, 1)})
    result = on(machine, plan, corpus, tmp_path, monkeypatch)
    found = result.facts()
    assert found.diverged == {COUPLED: 1} and found.pairs == 3
    assert found.versus[0].gains[1] == -math.inf
    again = experiment.found(tmp_path)
    assert again.facts() == found


def test_a_real_run_that_diverges_is_a_result(plan, corpus, tmp_path, monkeypatch):
    from coupled_adam.training import loop

    backward = loop._backward

    def diverging(trained, batch, config, *rest):
        if config.seed == 1 and config.optimizer == COUPLED:
            raise DivergedError(3, "loss nan", "nothing", [])
        return backward(trained, batch, config, *rest)

    monkeypatch.setattr(loop, "_backward", diverging)
    result = Experiment(replace(plan, pairs=2), corpus, tmp_path).run()
    assert result.facts().diverged == {COUPLED: 1}


def test_a_run_is_measured_with_labels_and_documents(corpus, plan, tmp_path):
    words = [corpus.decode([k]) for k in range(100)]
    labelled = LabelledTexts(
        [" ".join(words[k % 50 + 50 * (k % 2)] for _ in range(3)) for k in range(40)],
        ["even" if k % 2 == 0 else "odd" for k in range(40)],
    )
    experiment.check_labels(labelled, corpus, "labels")
    measure = Measures(corpus, labelled)
    assert measure.__name__ == Measures(corpus, labelled).__name__ != Measures(corpus).__name__
    from coupled_adam.training import train

    run = train(plan.setting(corpus).config, corpus, progress=False)
    table = measure(run, corpus)
    names = {f"{m}/{s}" for m, s in zip(table["measure"], table["set"], strict=True)}
    assert facts.CLASSIFICATION in names and facts.LOSS in names
    assert facts.RETRIEVAL not in names  # a synthetic language has no documents
    curve = table[table["measure"] == "curve"]
    assert len(curve) >= 4 and curve["set"].iloc[-1] == "320"
    assert len(evidence.measures(run, corpus)) < len(table)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(["a"] * 30, "all texts have the label 'a'"), (["a"] * 30 + ["b"], "'b' occurs 1 time;")],
)
def test_labels_that_cannot_be_classified_get_a_sentence(corpus, labels, said):
    labelled = LabelledTexts([corpus.decode([1])] * len(labels), labels)
    with pytest.raises(RefusedError, match=said):
        experiment.check_labels(labelled, corpus, "labels.tsv")


def test_a_folder_of_another_text_is_refused(corpus, tmp_path, monkeypatch):
    from coupled_adam.report import plan as planning

    monkeypatch.setattr(planning, "SHAPE", SHAPE)
    measure = Measures(corpus)
    first = experiment.find_probe(tmp_path, corpus, (ADAM, COUPLED), 4, measure)
    again = experiment.find_probe(tmp_path, corpus, (ADAM, COUPLED), 4, measure)
    assert {k: list(v) for k, v in first.step_seconds.items()} == again.step_seconds
    with pytest.raises(RefusedError, match="another text"):
        experiment.find_probe(tmp_path, corpus.part(9000), (ADAM, COUPLED), 4, measure)


def test_before_the_first_pair_there_is_nothing_to_report(plan):
    early = experiment.Result(plan, pd.DataFrame(), {}, {}, 0.0, "interrupted")
    with pytest.raises(RefusedError, match="no pair of runs is complete"):
        early.facts()
