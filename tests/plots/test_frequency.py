"""The pictures of chapter 03: they show what they are given and say what it is."""

from __future__ import annotations

import numpy as np
import pytest

from coupled_adam.plots import frequency


@pytest.fixture
def frequencies():
    """Sixty tokens by Zipf's law; the last two never occur."""
    weights = 1 / np.arange(1, 61.0)
    weights[-2:] = 0
    return weights / weights.sum()


def only(figure):
    figure.canvas.draw()  # some mistakes show only when the figure is drawn
    return figure.axes


def points(ax):
    """All points of the panel's lines, by label."""
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_zipf_draws_the_tokens_that_occur_and_a_line_with_the_given_slope():
    counts = np.array([0, 1000, 250, 500, 125, 200])
    figure = frequency.zipf(counts, exponent=1.5, ranks=(2, 4))
    (ax,) = only(figure)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    text, law = points(ax).values()
    np.testing.assert_allclose(text[:, 1], np.array([1000, 500, 250, 200, 125]) / 2075)
    slope = np.diff(np.log(law[[0, -1], 1])) / np.diff(np.log(law[[0, -1], 0]))
    np.testing.assert_allclose(slope, -1.5)
    np.testing.assert_allclose(law[:, 0], [2, 3, 4])


def test_token_traces_marks_the_steps_in_which_the_token_occurs():
    values, occurs = np.array([1.0, 3.0, 2.0, 5.0]), np.array([False, True, False, True])
    traces = {
        "frequent": frequency.TokenTrace(values, occurs, expected=2.5),
        "rare": frequency.TokenTrace(values, ~occurs),
    }
    figure = frequency.token_traces(traces, "size")
    first, second = only(figure)
    assert [ax.get_title() for ax in (first, second)] == ["frequent", "rare"]
    assert "size" in [ax.get_ylabel() for ax in (first, second)]
    np.testing.assert_array_equal(first.lines[1].get_xydata(), [[2, 3], [4, 5]])
    np.testing.assert_array_equal(second.lines[1].get_xydata(), [[1, 1], [3, 2]])
    assert "expected" in points(first)
    assert "expected" not in points(second)


def test_moments_leave_out_tokens_that_never_occur_and_average_classes(frequencies):
    moments = 2 * frequencies
    figure = frequency.second_moments_by_frequency(
        frequencies, moments, predicted=moments, classes=4
    )
    (ax,) = only(figure)
    drawn = points(ax)
    assert len(drawn["a token"]) == 58
    means = drawn["mean of a frequency class"]
    assert len(means) == 4
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
    np.testing.assert_allclose(drawn["expected"][:, 1], 2 * drawn["expected"][:, 0])


def test_moments_tell_absent_tokens_by_colour_and_shape(frequencies):
    absent = np.arange(60) >= 40
    figure = frequency.second_moments_by_frequency(
        frequencies, frequencies, absent=absent, classes=4
    )
    (ax,) = only(figure)
    lines = {line.get_label(): line for line in ax.lines}
    near, away = lines["token seen within the memory"], lines["token absent for longer"]
    assert (len(near.get_xdata()), len(away.get_xdata())) == (40, 18)
    assert near.get_color() != away.get_color()
    assert near.get_marker() != away.get_marker()


def test_fit_by_step_starts_at_step_one_and_draws_the_quoted_level():
    figure = frequency.fit_by_step(
        {"now": np.array([0.5, 0.8]), "mean": np.array([0.6, 0.9])}, quoted=0.85
    )
    (ax,) = only(figure)
    drawn = points(ax)
    np.testing.assert_allclose(drawn["now"], [[1, 0.5], [2, 0.8]])
    assert list(drawn) == ["now", "mean", "the paper's"]
    assert ax.get_legend() is not None


def test_step_sizes_stand_beside_a_fall_with_the_root(frequencies):
    sizes = 3 * np.where(frequencies > 0, frequencies, 1) ** -0.5
    figure = frequency.step_size_against_frequency(frequencies, sizes)
    (ax,) = only(figure)
    tokens, law = points(ax).values()
    assert len(tokens) == 58
    np.testing.assert_allclose(law[:, 1], 3 * law[:, 0] ** -0.5)
