"""The pictures of chapter 13: they show what they are given and say what it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import same_color

from coupled_adam import palette
from coupled_adam.plots import scale


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_by_size_draws_each_measure_over_the_parameters():
    table = pd.DataFrame(
        {
            "parameters": [8e8, 1e8, 1e8, 8e8],
            "optimizer": ["adamw", "coupled", "adamw", "coupled"],
            "a": [0.2, 0.9, 0.1, 0.8],
            "b": [0.5, 0.6, 0.7, 0.8],
        }
    )
    figure = scale.by_size(table, {"a": "first", "b": "second"})
    left, right = figure.axes
    assert [left.get_ylabel(), right.get_ylabel()] == ["first", "second"]
    assert "parameters" in left.get_xlabel() and left.get_xscale() == "log"
    assert [label.get_text() for label in left.get_xticklabels()] == ["100", "800"]
    adam, coupled = left.get_lines()
    np.testing.assert_allclose(adam.get_xydata(), [[1e8, 0.1], [8e8, 0.2]])
    np.testing.assert_allclose(coupled.get_ydata(), [0.9, 0.8])
    assert same_color(adam.get_color(), palette.colour("adamw"))
    assert adam.get_marker() != coupled.get_marker()  # not by colour alone
    assert legend(left) == [palette.label("adamw"), palette.label("coupled")]
    low, high = right.get_ylim()
    assert low < 0 and high > 1  # the whole range, so that no difference looks larger than it is


def test_path_of_mean_shows_the_mean_below_its_limit():
    metrics = pd.DataFrame(
        {
            "optimizer": ["coupled"] * 3 + ["adamw"] * 3,
            "step": [0, 10, 5, 0, 5, 10],
            "mean_norm": [0.1, 0.1, 0.1, 0.1, 0.3, 0.6],
            "relative_mean_norm": [0.2, 0.2, 0.2, 0.2, 0.4, 0.5],
        }
    )
    figure = scale.path_of_mean(metrics, pd.Series([0.0, 1.0], index=[0, 10]))
    left, right = figure.axes
    limit, adam, coupled = left.get_lines()
    np.testing.assert_allclose(limit.get_xydata(), [[0, 0], [10, 1]])
    assert limit.get_linestyle() == "--"
    np.testing.assert_allclose(adam.get_xydata(), [[0, 0.1], [5, 0.3], [10, 0.6]])
    np.testing.assert_allclose(coupled.get_xdata(), [0, 5, 10])
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), [0.2, 0.4, 0.5])
    assert {left.get_xlabel(), right.get_xlabel()} == {"step"}
    assert "length" in left.get_ylabel() and "relative" in right.get_ylabel()
    (names,) = figure.legends
    assert [text.get_text() for text in names.get_texts()][1:] == [
        palette.label("adamw"),
        palette.label("coupled"),
    ]


def test_run_times_divide_and_name_the_times():
    rates = np.array([1e10, 1e12])
    figure = scale.run_times(rates, {"small": 6e13, "large": 6e15})
    (ax,) = figure.axes
    small, large = ax.get_lines()
    np.testing.assert_allclose(small.get_xydata(), [[1e10, 6e3], [1e12, 60]])
    np.testing.assert_allclose(large.get_ydata(), [6e5, 6e3])
    assert small.get_linestyle() != large.get_linestyle()
    assert legend(ax) == ["small", "large"]
    ticks = dict(zip(ax.get_yticks(), [t.get_text() for t in ax.get_yticklabels()], strict=True))
    assert ticks == {60: "1 minute", 3600: "1 hour", 86_400: "1 day"}
    assert "operations a second" in ax.get_xlabel() and "time" in ax.get_ylabel()


def test_loss_by_frequency_puts_classes_between_borders_and_leaves_out_the_empty():
    classes = {"from": [0.0, 1e-4, 1e-3, 1e-2], "to": [1e-4, 1e-3, 1e-2, 1.0]}
    tables = {
        "coupled": pd.DataFrame({**classes, "loss": [5.0, 4.0, 3.0, 2.0]}),
        "adamw": pd.DataFrame({**classes, "loss": [np.nan, 6.0, 2.0, 1.0]}),
    }
    figure = scale.loss_by_frequency(
        {"one": tables, "two": {"adamw": tables["coupled"]}}, guessing=4.5
    )
    left, right = figure.axes
    guess, adam, coupled = left.get_lines()
    assert set(guess.get_ydata()) == {4.5}
    np.testing.assert_array_equal(adam.get_xydata(), [[1, 6], [2, 2], [3, 1]])
    np.testing.assert_array_equal(coupled.get_ydata(), [5, 4, 3, 2])
    assert same_color(coupled.get_color(), palette.colour("coupled"))
    assert len(right.get_lines()) == 2
    assert [left.get_title(), right.get_title()] == ["one", "two"]
    ticks = dict(
        zip(left.get_xticks(), [t.get_text() for t in left.get_xticklabels()], strict=True)
    )
    assert ticks == {0.5: "$10^{-4}$", 1.5: "$10^{-3}$", 2.5: "$10^{-2}$"}
    assert legend(left) == ["guessing", palette.label("adamw"), palette.label("coupled")]
    assert "nats" in left.get_ylabel() and "frequency" in left.get_xlabel()
