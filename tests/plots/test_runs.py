"""The pictures of chapter 08: they show what they are given and say what it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from coupled_adam.plots import runs
from coupled_adam.statistics import interval

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


def test_curves_have_one_panel_a_measure_and_the_books_order():
    figure = runs.curves(table(), {"a": "first (nats)", "b": "second"}, chance=0.1)
    assert [ax.get_ylabel() for ax in figure.axes] == ["first (nats)", "second"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"step"}
    assert legend(figure.axes[0]) == ["SGD", "Adam", "Coupled Adam"]


def test_curves_draw_every_seed_and_the_mean_of_the_measured_steps():
    metrics = table(optimizers=("adamw",))
    figure = runs.curves(metrics, {"a": "first"})
    (ax,) = figure.axes
    lines = ax.get_lines()
    assert len(lines) == 3 + 1
    taken = metrics.dropna(subset="a")
    for seed, line in enumerate(lines[:-1]):
        np.testing.assert_array_equal(line.get_ydata(), taken.loc[taken["seed"] == seed, "a"])
    np.testing.assert_array_equal(lines[-1].get_xdata(), [0, 2, 4])
    np.testing.assert_allclose(lines[-1].get_ydata(), taken.groupby("step")["a"].mean())
    (band,) = ax.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(12)}
    for step, rows in taken.groupby("step"):
        _, low, high = interval(rows["a"])
        assert {(step, round(low, 12)), (step, round(high, 12))} <= corners


def test_a_step_that_one_seed_alone_has_is_no_mean_of_seeds():
    metrics = table(optimizers=("adamw",))
    metrics = metrics[(metrics["step"] < 4) | (metrics["seed"] == 0)]
    with pytest.raises(ValueError, match=r"optimizer adamw, step 4: .* at least two"):
        runs.curves(metrics, {"b": "second"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_intervals_refuse_a_seed_without_a_value(value):
    final = table().query("step == 4").copy()
    final.loc[final.index[0], "b"] = value
    with pytest.raises(ValueError, match="finite"):
        runs.intervals(final, {"b": "second"})


def test_intervals_show_every_seed_and_the_mean():
    final = table().query("step == 4")
    figure = runs.intervals(final, {"b": "second"})
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["SGD", "Adam", "Coupled Adam"]
    for place, name in enumerate(("sgd", "adamw", "coupled")):
        values = final.loc[final["optimizer"] == name, "b"]
        seeds = [dot for dots in ax.collections for dot in dots.get_offsets() if dot[1] == place]
        np.testing.assert_allclose(seeds, [(value, place) for value in values])
        mean, bar = (line.get_xydata() for line in ax.get_lines()[2 * place : 2 * place + 2])
        np.testing.assert_allclose(mean, [(values.mean(), place)])
        expected = interval(values)
        np.testing.assert_allclose(bar, [(expected.low, place), (expected.high, place)])


@pytest.mark.parametrize("draw", [runs.curves, runs.intervals])
def test_one_seed_has_no_spread_to_show(draw):
    with pytest.raises(ValueError, match="at least two"):
        draw(table(seeds=(0,)).query("step == 4"), {"a": "first"})


def test_moments_leave_out_what_never_occurs_and_draw_the_shared_mean():
    moments = {"adamw": np.arange(V) + 1.0, "coupled": np.array([2.0, 4.0])}
    figure = runs.shared_second_moment(COUNTS / COUNTS.sum(), moments, slope=3.0)
    (ax,) = figure.axes
    points, line, shared = ax.get_lines()
    np.testing.assert_array_equal(points.get_ydata(), np.arange(1, V) + 1.0)
    np.testing.assert_allclose(line.get_ydata(), 3 * np.asarray(line.get_xdata()))
    assert set(shared.get_ydata()) == {3.0}
    assert "frequency" in ax.get_xlabel() and ax.get_ylabel() == "second moment"
    assert len(legend(ax)) == 3


def test_a_cloud_lies_where_its_mean_lies():
    weights = embeddings()
    figure = runs.clouds(weights, COUNTS)
    figure = figure
    assert [ax.get_title() for ax in figure.axes] == ["SGD", "Adam", "Coupled Adam"]
    rare, frequent, *_, star = figure.axes[1].get_lines()
    assert len(rare.get_xdata()) + len(frequent.get_xdata()) == V
    assert len(frequent.get_xdata()) == V // 10
    rows = weights["adamw", 0]
    relative = np.linalg.norm(rows.mean(axis=0)) / np.linalg.norm(rows, axis=1).mean()
    np.testing.assert_allclose(star.get_xdata(), relative)
    assert figure.axes[0].get_ylabel() and "mean" in figure.axes[1].get_xlabel()


def test_lengths_are_those_of_the_tokens_that_occur():
    weights = embeddings(optimizers=("adamw",))
    figure = runs.lengths_against_frequency(weights, COUNTS)
    (ax,) = figure.axes
    points, median = ax.get_lines()
    lengths = np.linalg.norm(weights["adamw", 0][1:], axis=1)
    np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(lengths))
    assert len(median.get_xdata()) == 12
    assert np.all(np.diff(median.get_xdata()) > 0)
    assert "frequency" in ax.get_xlabel() and "length" in ax.get_ylabel()


def test_learning_rates_are_sorted_on_a_logarithmic_axis():
    sweep = pd.DataFrame(
        {"optimizer": "coupled", "multiplier": [10.0, 1.0, 3.0], "loss": [5.0, 7.0, 6.0]}
    )
    figure = runs.learning_rates(sweep, {"loss": "validation loss (nats)"})
    (ax,) = figure.axes
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [1, 3, 10])
    np.testing.assert_array_equal(line.get_ydata(), [7, 6, 5])
    assert ax.get_xscale() == "log" and "learning rate" in ax.get_xlabel()
    assert legend(ax) == ["Coupled Adam"]


def test_learning_rates_of_several_seeds_have_the_interval_as_a_band():
    sweep = pd.DataFrame(
        {
            "optimizer": "sgd",
            "multiplier": [1.0, 1, 1, 3],
            "seed": [0, 1, 2, 0],
            "loss": [1, 2, 6, 4],
        }
    )
    figure = runs.learning_rates(sweep, {"loss": "validation loss (nats)"})
    (ax,) = figure.axes
    (line,) = ax.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[1, 3], [3, 4]])
    corners = ax.collections[0].get_paths()[0].vertices
    corners = corners[np.isfinite(corners).all(axis=1)]
    _, low, high = interval([1, 2, 6])
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((low, high))


def test_shared_moments_may_be_those_of_several_arms():
    moments = {"sgd": np.ones(V), "adamw": np.arange(V) + 1.0, "coupled": np.array([2.0, 4.0])}
    figure = runs.shared_second_moment(COUNTS / COUNTS.sum(), moments, slope=3.0)
    assert len(figure.axes[0].get_lines()) == 4
