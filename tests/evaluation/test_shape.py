"""Shape, second moment, predictions and stability, as rows."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from coupled_adam import geometry, text
from coupled_adam.evaluation import losses, predictions, shape, stability
from coupled_adam.evaluation.losses import spaced_windows, window_losses
from coupled_adam.evaluation.variants import variants
from coupled_adam.gpt import GPT
from coupled_adam.training import train


def value(rows, measure, set="", variant="trained"):
    (row,) = [r for r in rows if (r.measure, r.set, r.variant) == (measure, set, variant)]
    return row.value


# --- shape -----------------------------------------------------------------------------------


def test_the_variants_are_the_repairs_of_geometry():
    trained = torch.randn(50, 250) + 1
    found = variants(trained, torch.zeros(50, 250))
    assert torch.equal(found["centred"], geometry.centred(trained.double()))
    expected = geometry.without_top_components(trained.double(), 2)  # one for each hundred
    assert torch.equal(found["all-but-the-top"], expected)
    assert found["trained"].dtype == found["untrained"].dtype == torch.float64


def test_shape_is_the_summary_of_each_variant():
    vectors = {"trained": torch.randn(60, 5).double() + 1, "centred": torch.randn(60, 5).double()}
    counts = np.arange(1, 61)
    rows = shape.shape_rows(vectors, counts)
    for variant, vector in vectors.items():
        for measure, expected in geometry.summary(vector, counts).items():
            direction = "larger Z" if measure == "isotropy" else ""
            assert value(rows, measure, direction, variant) == expected


def skewed(width, shift=0.6):
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(80, width, generator=generator).double() * 0.2
    rows[:, 0] += torch.empty(80).exponential_(1 / shift, generator=generator)
    return rows


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_iso_by_sign_is_the_range_over_all_choices(width):
    rows = skewed(width)
    _, directions = torch.linalg.eigh(rows.T @ rows)
    every = []
    for signs in itertools.product([1, -1], repeat=width):
        z = (rows @ (directions * torch.tensor(signs))).exp().sum(0)
        every.append(float(z.min() / z.max()))
    came, low, high = shape.isotropy_by_sign(rows)
    assert came == pytest.approx(every[0])
    assert (low, high) == pytest.approx((min(every), max(every)))
    assert low <= geometry.isotropy(rows) + 1e-12 <= high + 2e-12


def test_on_a_skewed_cloud_the_signs_matter():
    _, low, high = shape.isotropy_by_sign(skewed(8, shift=2.0))
    assert high > 3 * low


@pytest.mark.parametrize("pairs", [np.array([[0.0, 1], [5, 4]]), np.array([[0.0, 5], [9, 5.5]])])
def test_the_widest_range_takes_one_value_from_each(pairs):
    ranges = [abs(a - b) for a in pairs[:, 0] for b in pairs[:, 1]]
    assert shape._widest(pairs) == max(ranges)
    assert shape._narrowest(pairs) == min(ranges)


# --- the second moment -----------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "coupled", "sgd"])
def test_the_second_moment_is_that_of_the_output_embeddings(
    corpus, config, tmp_path, optimizer, tied
):
    from dataclasses import replace

    changed = replace(config, optimizer=optimizer, model=replace(config.model, tied=tied), steps=2)
    run = train(changed, corpus, tmp_path / "run", progress=False)
    found = shape.second_moment(tmp_path / "run")
    if optimizer == "sgd":
        assert found is None and run.second_moment is None
        return
    correction = 1 - changed.betas[1] ** 2
    np.testing.assert_allclose(found / correction, run.second_moment, rtol=1e-12)


def test_signal_to_noise_by_hand():
    moment = np.array([[1.0, 3], [3, 5]])
    rows = shape.second_moment_rows(moment)
    # Columns: means 2 and 4, variances 1 and 1. Rows: means 2 and 4, variances 1 and 1.
    assert value(rows, "v_signal_to_noise", "over the vocabulary") == (4 + 16) / 2
    moment = np.array([[1.0, 3], [10, 20]])
    rows = shape.second_moment_rows(moment)
    assert value(rows, "v_signal_to_noise", "over the width") == (4 / 1 + 225 / 25) / 2


def test_a_shared_moment_has_no_noise_over_the_vocabulary():
    over_vocabulary, over_width = shape.second_moment_rows(np.array([1.0, 3]))
    assert math.isnan(over_vocabulary.value) and "shared" in over_vocabulary.note
    assert over_width.value == 4 and over_width.n == 2
    assert all("no second moment" in row.note for row in shape.second_moment_rows(None))
    assert "all equal" in shape.second_moment_rows(np.ones((3, 2)))[0].note


# --- predictions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("documents"), np.random.default_rng(0)
    for number in range(100):
        letters = random.choice(list("abcdefgh"), 4)  # so that documents differ
        (folder / f"{number:03}.txt").write_text("".join(random.choice(letters, 900)))
    return text.load(folder, 300, cache=folder / "cache")


def test_the_loss_has_an_interval_over_documents(documents, config):
    from dataclasses import replace

    model = GPT(replace(config.model, vocabulary_size=320))
    metrics = pd.DataFrame({"step": [0], "validation_loss": [5.7]})
    rows = predictions.prediction_rows(model, documents, 2000, metrics)
    windows = spaced_windows(documents.validation, model.config.context, 2000)
    losses = window_losses(model, windows, np.zeros(len(windows), int)).losses
    (overall,) = [r for r in rows if r[:3] == ("loss", "all", "trained")]
    assert overall.value == pytest.approx(losses.mean()) and overall.low < overall.value
    assert overall.n == 10 and overall.note == f"{losses.size:,} tokens"
    assert overall.chance == pytest.approx(math.log(300))
    assert value(rows, "loss", "all", "untrained") == 5.7
    classes = [r for r in rows if r.measure == "loss" and " to " in r.set]
    tokens = [int(r.note.split()[0].replace(",", "")) if r.n else 0 for r in classes]
    assert sum(tokens) == losses.size
    added = sum(r.value * n for r, n in zip(classes, tokens, strict=True) if n)
    assert added / losses.size == pytest.approx(overall.value)
    assert value(rows, "loss", "all", "bigram") < value(rows, "loss", "all", "unigram")


def test_the_number_of_a_document_is_where_its_window_begins(documents):
    windows = spaced_windows(documents.validation, 300, 10**6)
    found = losses.documents_of(documents, windows)
    ends = np.flatnonzero(documents.validation == documents.end_of_text)
    starts = np.linspace(0, len(documents.validation) - 301, len(windows)).astype(int)
    assert found.tolist() == [int((ends < start).sum()) for start in starts]
    assert (documents.validation[starts] == windows[:, 0]).all()


def test_one_document_is_cut_into_pieces(corpus, config):
    windows = spaced_windows(corpus.validation, 16, 10**6)
    assert len(np.unique(losses.documents_of(corpus, windows))) == 32


def test_a_model_that_guesses_is_calibrated_by_hand(documents, config):
    from dataclasses import replace

    model = GPT(replace(config.model, vocabulary_size=320))
    with torch.no_grad():
        model.token_embedding.weight.zero_()  # all logits are 0: every token has 1 / 320
    rows = predictions.prediction_rows(
        model, documents, 500, pd.DataFrame({"step": [0], "validation_loss": [5.7]})
    )
    frequencies = documents.frequencies
    taken = [r for r in rows if r.measure == "calibration" and not math.isnan(r.value)]
    assert taken
    for row in taken:
        low, high = map(float, row.set.split(" to "))
        members = frequencies[(frequencies >= max(low, 1e-300)) & (frequencies < high)]
        assert row.value == pytest.approx(np.log(1 / 320 / members).mean(), abs=1e-5)
        assert row.n == len(members)


# --- stability -------------------------------------------------------------------------------


def steps(losses, norms):
    made = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses, "gradient_norm": norms})
    return pd.concat([pd.DataFrame({"step": [0], "validation_loss": [9.0]}), made])


def test_a_spike_is_counted_and_a_fall_is_not():
    noise = np.random.default_rng(0).normal(size=100) * 0.01
    losses, norms = 5 + noise, 1 + noise
    losses[50], losses[70], norms[60] = 9, 1, 7
    rows = stability.stability_rows(steps(losses, norms), gradient_clip=1.0)
    assert value(rows, "loss_spikes") == value(rows, "gradient_spikes") == 1 / 80
    assert value(rows, "largest_gradient_norm") == 7
    assert value(rows, "clipped_steps") == (norms > 1).mean()


def test_spikes_one_by_one():
    values = np.random.default_rng(0).standard_t(2, size=1500)
    expected = []
    for place in range(20, 1500):
        before = values[max(0, place - 1000) : place]
        expected.append(values[place] >= before.mean() + 7 * before.std(ddof=1))
    assert stability.spikes(values).tolist() == expected and sum(expected) >= 3
    before = np.tile([-1.0, 1], 10)
    for deviations, stands_out in ((6.9, False), (7.1, True)):  # of those before, without its own
        last = deviations * before.std(ddof=1)
        assert stability.spikes(np.array([*before, last])).tolist() == [stands_out]


def test_what_was_not_recorded_is_said():
    metrics = steps(np.ones(10), np.ones(10))
    rows = {row.measure: row for row in stability.stability_rows(metrics, 1.0)}
    assert rows["loss_spikes"].note == "too few: 10 of at least 21 steps"
    assert rows["logit_growth"].note == "the run did not record logit_norm"
    metrics["logit_norm"] = [math.nan, *range(2, 12)]
    metrics["update_norm"] = [math.nan, *range(10)]
    rows = stability.stability_rows(metrics, 1.0)
    assert value(rows, "logit_growth") == 11 / 2 and value(rows, "largest_update_norm") == 9


# --- the whole -------------------------------------------------------------------------------


def test_everything_is_in_the_table_of_a_run(measured, run):
    table = measured.table
    assert set(table["measure"]) >= {
        "loss", "calibration", "isotropy", "v_signal_to_noise", "drift_distance", "drift_share",
        "ppmi_agreement", "ppmi_beyond_frequency", "spelling_variants", "word_similarity",
        "analogy_accuracy", "text_similarity", "retrieval", "classification", "loss_spikes",
        "clipped_steps",
    }  # fmt: skip
    by_key = table.set_index(["measure", "set", "variant"])["value"]
    assert by_key["loss", "all", "trained"] == pytest.approx(measured.row["validation_loss"])
    assert by_key["isotropy", "larger Z", "trained"] == measured.row["isotropy"]
    assert by_key["drift_distance", "", "trained"] == measured.drift.distance
    assert set(table["variant"]) >= {"trained", "untrained", "centred", "all-but-the-top", "tf-idf"}
