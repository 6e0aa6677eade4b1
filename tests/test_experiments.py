"""Arms side by side: pairing, recordings, and the statistics that the tables are made of."""

import json
import math
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coupled_adam import evaluation, experiments
from coupled_adam.gpt import GPT, GPTConfig
from coupled_adam.text import TextError, synthetic
from coupled_adam.training import OPTIMIZERS, TrainingConfig, train

VOCABULARY, STEPS = 200, 6
CONFIG = TrainingConfig(
    GPTConfig(VOCABULARY, context=8, layers=1, heads=2, width=16),
    steps=STEPS,
    batch_size=3,
    learning_rate=1e-2,
    warmup_steps=2,
    evaluate_every=4,
    evaluation_tokens=64,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return synthetic(VOCABULARY, tokens=10_240, cache=tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def comparison(corpus):
    return experiments.compare(corpus, CONFIG, seeds=(0, 5), workers=2, progress=False)


@pytest.fixture(scope="module")
def recordings(corpus):
    return {
        optimizer: experiments.record(corpus, replace(CONFIG, optimizer=optimizer), (1, 3, 6))
        for optimizer in OPTIMIZERS
    }


# --- comparing -------------------------------------------------------------------------------


def test_there_is_one_run_per_arm_and_seed(comparison):
    runs = comparison.metrics.groupby(["optimizer", "seed"])
    assert set(runs.groups) == {(o, s) for o in OPTIMIZERS for s in (0, 5)}
    for _, run in runs:
        assert run.step.tolist() == list(range(STEPS + 1))
    assert len(comparison.final) == 6
    assert (comparison.final.step == STEPS).all()
    assert set(comparison.embeddings) == set(runs.groups)


def test_arms_of_a_seed_start_together_and_then_part(comparison):
    metrics = comparison.metrics
    for column, step in (("validation_loss", 0), ("loss", 1)):
        at = metrics[metrics.step == step].groupby("seed")[column]
        assert (at.nunique() == 1).all()
        assert metrics[metrics.step == step][column].nunique() == 2
    assert comparison.final.validation_loss.nunique() == 6


def test_the_number_of_workers_does_not_change_a_bit(corpus, comparison):
    alone = experiments.compare(
        corpus, CONFIG, optimizers=("coupled",), seeds=(5,), workers=1, progress=False
    )
    of_both = comparison.metrics.query("optimizer == 'coupled' and seed == 5")
    pd.testing.assert_frame_equal(alone.metrics, of_both.reset_index(drop=True), check_exact=True)
    arm = ("coupled", 5)
    np.testing.assert_array_equal(alone.embeddings[arm], comparison.embeddings[arm])
    np.testing.assert_array_equal(alone.second_moments[arm], comparison.second_moments[arm])


def test_a_compared_arm_is_the_run_that_train_makes(corpus, comparison):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in every process of a comparison
    try:
        run = train(replace(CONFIG, optimizer="adamw", seed=0), corpus, progress=False)
    finally:
        torch.set_num_threads(threads)
    weight = run.model.output_embedding.detach().numpy()
    np.testing.assert_array_equal(comparison.embeddings["adamw", 0], weight)
    rows = comparison.metrics.query("optimizer == 'adamw' and seed == 0")
    assert rows.loss.tolist()[1:] == run.metrics.loss.tolist()[1:]


def test_second_moments_have_the_shape_of_their_arm(comparison):
    shapes = {arm: moment.shape for arm, moment in comparison.second_moments.items()}
    assert shapes == {
        (optimizer, seed): shape
        for optimizer, shape in (("adamw", (VOCABULARY,)), ("coupled", (16,)))
        for seed in (0, 5)
    }


def test_an_unknown_arm_is_refused_before_anything_runs(corpus):
    with pytest.raises(ValueError, match="optimizer must be one of"):
        experiments.compare(corpus, CONFIG, optimizers=("adam",), progress=False)


@pytest.mark.parametrize("empty", ["optimizers", "seeds"])
def test_nothing_to_compare_is_refused(corpus, empty):
    with pytest.raises(ValueError, match="nothing to compare"):
        experiments.compare(corpus, CONFIG, **{empty: ()}, progress=False)


def test_the_error_of_a_run_comes_through(tmp_path):
    gone = synthetic(VOCABULARY, tokens=10_240, cache=tmp_path)
    (gone.folder / "meta.json").unlink()  # each process opens the text again
    with pytest.raises((TextError, BrokenProcessPool)):
        experiments.compare(gone, CONFIG, optimizers=("sgd",), seeds=(0,), progress=False)


def test_small_config_is_the_paper_s_recipe_on_a_small_model(corpus):
    config = experiments.small_config(corpus, seed=3, steps=7)
    assert (config.seed, config.steps) == (3, 7)
    assert (config.model.layers, config.model.width, config.model.context) == (2, 128, 128)
    assert config.model.vocabulary_size == VOCABULARY
    assert (config.betas, config.weight_decay, config.gradient_clip) == ((0.9, 0.95), 0.1, 1.0)


# --- recording -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_displacement_is_the_way_of_the_mean_from_the_start(recordings, optimizer):
    recording = recordings[optimizer]
    torch.manual_seed(CONFIG.seed)
    start = GPT(CONFIG.model).output_embedding.detach().double().mean(0).numpy()
    end = recording.model.output_embedding.detach().double().mean(0).numpy()
    assert recording.displacement.shape == (STEPS, 16)
    np.testing.assert_array_equal(recording.displacement[-1], end - start)
    np.testing.assert_array_equal(
        recording.displacement[2],
        recording.embeddings[3].mean(0) - recording.embeddings[0].mean(0),
    )


def test_snapshots_are_those_asked_for_and_are_copies(recordings):
    snapshots = recordings["coupled"].embeddings
    assert list(snapshots) == [0, 1, 3, 6]
    final = recordings["coupled"].model.output_embedding.detach().double().numpy()
    np.testing.assert_array_equal(snapshots[6], final)
    assert not np.array_equal(snapshots[3], snapshots[6])


def test_a_recording_is_what_the_observer_sees(corpus, recordings):
    steps = []
    config = replace(CONFIG, optimizer="coupled")
    run = train(config, corpus, observe=steps.append, progress=False)
    recording = recordings["coupled"]
    pd.testing.assert_frame_equal(run.metrics, recording.metrics)
    for t, step in enumerate(steps):
        hidden = step.hidden_states.double()
        np.testing.assert_allclose(recording.mean_hidden[t], hidden.mean(0), atol=1e-6)
        np.testing.assert_allclose(recording.std_hidden[t], hidden.std(0), rtol=1e-5)
        assert recording.learning_rates[t] == config.learning_rate_at(t + 1)
        assert recording.absent[t] == pytest.approx(
            1 - len(set(step.targets.tolist())) / VOCABULARY
        )


def recorded_gradients(corpus, config):
    """The clipped gradients of the output embeddings; the loop leaves them behind at each step."""
    gradients = []

    def observe(step):
        gradients.append(step.model.output_embedding.grad.double().numpy().copy())

    train(config, corpus, observe=observe, progress=False)
    return np.array(gradients)


@pytest.mark.parametrize("optimizer", ["adamw", "coupled"])
def test_the_second_moment_is_the_weighted_mean_of_squared_gradients(corpus, recordings, optimizer):
    squares = recorded_gradients(corpus, replace(CONFIG, optimizer=optimizer)) ** 2
    weights = 0.95 ** np.arange(STEPS - 1, -1, -1)
    # A weighted mean is what the correction of Adam's bias makes of the running sum.
    expected = np.tensordot(weights / weights.sum(), squares, axes=1)
    if optimizer == "coupled":
        expected = expected.mean(0)
    measured = recordings[optimizer].second_moment
    assert measured.shape == expected.shape
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-15)


def test_sgd_has_no_second_moment(recordings):
    assert recordings["sgd"].second_moment is None


def test_adam_moves_the_mean_and_coupled_adam_does_not(corpus):
    """Untied, since the gradients of input embeddings do not sum to zero."""
    model = replace(CONFIG.model, tied=False)
    moved = {
        optimizer: np.linalg.norm(
            experiments.record(
                corpus, replace(CONFIG, optimizer=optimizer, model=model), ()
            ).displacement[-1]
        )
        for optimizer in ("adamw", "coupled")
    }
    assert moved["coupled"] < 1e-4 * moved["adamw"]


@pytest.mark.parametrize("bins", [1, 4, 7])
def test_displacement_shares_add_up_to_one(corpus, recordings, bins):
    shares = experiments.displacement_shares(recordings["adamw"], corpus.counts, bins)
    assert shares.step.unique().tolist() == [1, 3, 6]
    assert shares.groupby("step")["class"].apply(list).tolist() == [list(range(1, bins + 1))] * 3
    np.testing.assert_allclose(shares.groupby("step").share.sum(), 1)


def test_displacement_shares_are_of_the_rarest_first(recordings):
    start = np.zeros((4, 2))
    moved = np.array([[0.0, 0], [3, 0], [1, 5], [0, -5]])
    recording = replace(recordings["adamw"], embeddings={0: start, 2: moved})
    shares = experiments.displacement_shares(recording, np.array([9, 1, 7, 3]), bins=2)
    # Rarest: tokens 1 and 3. The mean moves along the first axis by (0 + 3 + 1 + 0) / 4.
    assert shares.share.tolist() == [0.75, 0.25]


# --- statistics ------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.sampled_from([0.5, 0.8, 0.95, 0.99])
)
def test_interval_is_student_s(values, confidence):
    mean, low, high = experiments.interval(values, confidence)
    assert mean == pytest.approx(np.mean(values))
    spread = np.std(values, ddof=1) / math.sqrt(len(values))
    if spread > 1e-9:
        expected = stats.t.interval(confidence, len(values) - 1, np.mean(values), spread)
        assert (low, high) == pytest.approx(expected)


def test_interval_of_two_values_in_closed_form():
    # With one degree of freedom the quantile is tan(pi (q - 1/2)).
    half = math.tan(math.pi * 0.475) * 1.0
    assert experiments.interval([3.0, 5.0]) == pytest.approx((4.0, 4.0 - half, 4.0 + half))


def test_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(2000, 3))
    held = [low <= 2.0 <= high for _, low, high in map(experiments.interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("values", "says"),
    [([], "got 0"), ([1.0], "got 1"), ([1, math.nan], "finite"), ([1, math.inf], "fin")],
)
def test_an_interval_that_is_not_defined_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        experiments.interval(values)


TABLE = pd.DataFrame(
    {
        "optimizer": ["adamw", "coupled"] * 3,
        "seed": [0, 0, 1, 1, 2, 2],
        "loss": [5.0, 4.0, 7.0, 6.5, 9.0, 7.5],
        "isotropy": [0.5, 0.9, 0.6, 0.8, 0.7, 0.7],
    }
)


def test_summarise_is_the_interval_of_each_arm_and_measure():
    table = experiments.summarise(TABLE, ["loss", "isotropy"])
    assert len(table) == 4
    assert table.columns.tolist() == ["mean", "low", "high"]
    expected = experiments.interval([4.0, 6.5, 7.5])
    assert tuple(table.loc["coupled", "loss"]) == pytest.approx(expected)


def test_paired_difference_is_seed_by_seed():
    shuffled = TABLE.sample(frac=1, random_state=0)
    difference = experiments.paired_difference(shuffled, "loss", "coupled", "adamw")
    assert difference == pytest.approx(experiments.interval([-1.0, -0.5, -1.5]))
    # Narrower than the interval of either arm: what the seeds share cancels.
    alone = experiments.interval([4.0, 6.5, 7.5])
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)


def test_a_pair_that_lacks_a_seed_is_refused():
    with pytest.raises(ValueError, match="finite"):
        experiments.paired_difference(TABLE.iloc[:-1], "loss", "coupled", "adamw")


def test_cosine():
    assert experiments.cosine(np.array([1.0, 1]), np.array([2.0, 0])) == pytest.approx(0.5**0.5)
    assert experiments.cosine(np.ones(3), -5 * np.ones(3)) == pytest.approx(-1)
    with pytest.raises(ValueError, match="zero vector"):
        experiments.cosine(np.zeros(3), np.ones(3))


# --- recorded runs ---------------------------------------------------------------------------


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
    for name in ("by_frequency", "word_pairs"):
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


def test_a_record_is_json_without_nan(measured, written):
    assert math.isnan(measured.row["r"])  # no English word in this language

    def refuse(name):
        pytest.fail(f"{name} is no JSON")

    assert json.loads(written.read_text(), parse_constant=refuse)["final"]["r"] is None


def test_a_record_that_cannot_be_written_leaves_the_old_one(measured, written, monkeypatch):
    before = written.read_bytes()
    unfit = {"started": "", "commit": object()}  # no JSON
    monkeypatch.setattr(experiments, "environment", lambda _: unfit)
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


def test_a_setting_that_a_record_does_not_name_has_its_default(written):
    content = json.loads(written.read_text())
    del content["config"]["compiled"]
    written.write_text(json.dumps(content))
    assert experiments.read_record(written).config.compiled is False


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("config"), "'config'"),
        (lambda c: c["config"].update(optimizer="adam"), "optimizer must be one of"),
        (lambda c: c["config"].update(colour="red"), "colour"),
        (lambda c: c.update(kind="something"), "its kind is 'something'"),
        (lambda c: c["final"].update(r="many"), "many"),
        (lambda c: c["drift"].pop("shares"), "shares"),
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
    monkeypatch.setattr(experiments, "WANTED", ())
    monkeypatch.setattr(experiments, "_BENCHMARKS", {})
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
