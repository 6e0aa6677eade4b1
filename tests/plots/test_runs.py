"""The pictures of chapter 08: they show what they are given and say what it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from coupled_adam.plots import runs
from coupled_adam.plots.style import NAMES

V, H = 60, 8


def table(optimizers=("coupled", "sgd", "adamw"), seeds=(0, 1, 2)):
    """Five steps, of which every other one was evaluated."""
    random = np.random.default_rng(0)
    rows = [
        {
            "optimizer": optimizer,
            "seed": seed,
            "step": step,
            "a": random.normal() if step % 2 == 0 else np.nan,
            "b": random.normal(),
        }
        for seed in seeds
        for optimizer in optimizers
        for step in range(5)
    ]
    return pd.DataFrame(rows)


def embeddings(optimizers=("coupled", "sgd", "adamw")):
    random = np.random.default_rng(0)
    return {(name, 0): random.normal(size=(V, H)) + 1 for name in optimizers}


COUNTS = np.r_[0, np.arange(V - 1, 0, -1)]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_curves_have_one_panel_a_measure_and_the_books_order(shown):
    runs.curves(table(), {"a": "first (nats)", "b": "second"}, chance=0.1)
    (figure,) = shown
    assert [ax.get_ylabel() for ax in figure.axes] == ["first (nats)", "second"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"step"}
    assert legend(figure.axes[0]) == list(NAMES.values())


def test_curves_draw_every_seed_and_the_mean_of_the_measured_steps(shown):
    metrics = table(optimizers=("adamw",))
    runs.curves(metrics, {"a": "first"})
    lines = shown[0].axes[0].get_lines()
    assert len(lines) == 3 + 1
    mean = metrics.dropna(subset="a").groupby("step")["a"].mean()
    np.testing.assert_array_equal(lines[-1].get_xdata(), [0, 2, 4])
    np.testing.assert_allclose(lines[-1].get_ydata(), mean)


def test_intervals_show_every_seed_and_the_mean(shown):
    final = table().query("step == 4")
    runs.intervals(final, {"b": "second"})
    (ax,) = shown[0].axes
    assert [text.get_text() for text in ax.get_yticklabels()] == list(NAMES.values())
    sgd = final.loc[final["optimizer"] == "sgd", "b"]
    _, seeds, mean = ax.get_lines()[:3]
    np.testing.assert_array_equal(seeds.get_xdata(), sgd)
    np.testing.assert_allclose(mean.get_xdata(), sgd.mean())


@pytest.mark.parametrize("draw", [runs.curves, runs.intervals])
def test_one_seed_has_no_spread_to_show(draw, shown):
    with pytest.raises(ValueError, match="at least two"):
        draw(table(seeds=(0,)).query("step == 4"), {"a": "first"})


def test_moments_leave_out_what_never_occurs_and_draw_the_shared_mean(shown):
    moments = {"adamw": np.arange(V) + 1.0, "coupled": np.array([2.0, 4.0])}
    runs.moment_against_frequency(COUNTS / COUNTS.sum(), moments, slope=3.0)
    (ax,) = shown[0].axes
    points, line, shared = ax.get_lines()
    np.testing.assert_array_equal(points.get_ydata(), np.arange(1, V) + 1.0)
    np.testing.assert_allclose(line.get_ydata(), 3 * np.asarray(line.get_xdata()))
    assert set(shared.get_ydata()) == {3.0}
    assert "frequency" in ax.get_xlabel() and ax.get_ylabel() == "second moment"
    assert len(legend(ax)) == 3


def test_a_cloud_lies_where_its_mean_lies(shown):
    weights = embeddings()
    runs.clouds(weights, COUNTS)
    figure = shown[0]
    assert [ax.get_title() for ax in figure.axes] == list(NAMES.values())
    rare, frequent, *_, star = figure.axes[1].get_lines()
    assert len(rare.get_xdata()) + len(frequent.get_xdata()) == V
    assert len(frequent.get_xdata()) == V // 10
    rows = weights["adamw", 0]
    relative = np.linalg.norm(rows.mean(axis=0)) / np.linalg.norm(rows, axis=1).mean()
    np.testing.assert_allclose(star.get_xdata(), relative)
    assert figure.axes[0].get_ylabel() and "mean" in figure.axes[1].get_xlabel()


def test_lengths_are_those_of_the_tokens_that_occur(shown):
    weights = embeddings(optimizers=("adamw",))
    runs.lengths_against_frequency(weights, COUNTS)
    (ax,) = shown[0].axes
    points, median = ax.get_lines()
    lengths = np.linalg.norm(weights["adamw", 0][1:], axis=1)
    np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(lengths))
    assert len(median.get_xdata()) == 12
    assert np.all(np.diff(median.get_xdata()) > 0)
    assert "frequency" in ax.get_xlabel() and "length" in ax.get_ylabel()


def test_learning_rates_are_sorted_on_a_logarithmic_axis(shown):
    sweep = pd.DataFrame(
        {"optimizer": "coupled", "multiplier": [10.0, 1.0, 3.0], "loss": [5.0, 7.0, 6.0]}
    )
    runs.learning_rates(sweep, {"loss": "validation loss (nats)"})
    (ax,) = shown[0].axes
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [1, 3, 10])
    np.testing.assert_array_equal(line.get_ydata(), [7, 6, 5])
    assert ax.get_xscale() == "log" and "learning rate" in ax.get_xlabel()
    assert legend(ax) == ["Coupled Adam"]
