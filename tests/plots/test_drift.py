"""The pictures of chapters 04 and 06: they show what they are given and say what it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import same_color

from coupled_adam import palette
from coupled_adam.arms import ARMS
from coupled_adam.plots import drift


def only(figure):
    figure.canvas.draw()  # some mistakes show only when the figure is drawn
    return figure.axes


def lines(ax):
    """The panel's labelled lines by label."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_drift_shares_draws_one_panel_a_step_and_one_bar_a_class():
    shares = pd.DataFrame(
        [(1, 2, 0.4), (1, 1, 0.6), (20, 1, 0.9), (20, 2, 0.1)], columns=["step", "class", "share"]
    )
    figure = drift.drift_shares(shares)
    panels = only(figure)
    assert [ax.get_title() for ax in panels] == ["after 1 step", "after 20 steps"]
    heights = [[bar.get_height() for bar in ax.patches] for ax in panels]
    np.testing.assert_allclose(heights, [[60, 40], [90, 10]])
    assert "%" in panels[0].get_ylabel()


def test_distance_of_mean_draws_lengths_in_the_optimizers_colours():
    paths = {"adamw": np.array([[3.0, 4.0], [6.0, 8.0]]), "sgd": np.array([[0.1, 0.0]])}
    figure = drift.distance_of_mean(paths)
    (ax,) = only(figure)
    assert ax.get_yscale() == "log"
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["Adam"].get_xydata(), [[1, 5], [2, 10]])
    np.testing.assert_allclose(drawn["SGD"].get_xydata(), [[1, 0.1]])
    for name in paths:
        assert same_color(drawn[palette.label(name)].get_color(), palette.colour(name))


def test_foretold_draws_lengths_and_cosines_with_what_was_measured():
    measured = np.array([[1.0, 0.0], [2.0, 0.0]])
    figure = drift.foretold(measured, {"across": np.array([[0.0, 3.0], [4.0, 0.0]])})
    left, right = only(figure)
    np.testing.assert_allclose(lines(left)["measured"].get_ydata(), [1, 2])
    np.testing.assert_allclose(lines(left)["across"].get_ydata(), [3, 4])
    np.testing.assert_allclose(lines(right)["across"].get_ydata(), [0, 1], atol=1e-12)
    # A forecast is no optimizer and must not look like one.
    assert not any(
        same_color(lines(left)["across"].get_color(), one.colour) for one in ARMS.values()
    )


def test_summed_updates_starts_at_the_second_step():
    figure = drift.summed_updates(
        {"adamw": np.array([0.8, 0.7]), "coupled": np.array([1e-7, 1e-6])}
    )
    (ax,) = only(figure)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(lines(ax)["Adam"].get_xydata(), [[2, 0.8], [3, 0.7]])
    np.testing.assert_allclose(lines(ax)["Coupled Adam"].get_ydata(), [1e-7, 1e-6])


def test_typical_steps_draws_the_mean_of_each_group_and_leaves_out_unseen_tokens():
    frequencies = np.array([0.0, 1e-4, 1.1e-4, 1e-1])
    figure = drift.typical_steps(frequencies, {"adamw": np.array([99.0, 1.0, 3.0, 0.5])}, groups=2)
    (ax,) = only(figure)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    np.testing.assert_allclose(lines(ax)["Adam"].get_xydata(), [[1.05e-4, 2.0], [1e-1, 0.5]])
    assert "learning rates" in ax.get_ylabel()


def test_second_moments_by_process_draws_a_bar_each_and_the_mean():
    figure = drift.second_moments_by_process(np.array([3.0, 0.5, 0.5, 0.25]))
    (ax,) = only(figure)
    assert [bar.get_height() for bar in ax.patches] == [3.0, 0.5, 0.5, 0.25]
    assert "mean over all rows" in lines(ax)
    assert ax.get_xlabel() and ax.get_ylabel()
