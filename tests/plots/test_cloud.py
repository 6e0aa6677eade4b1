"""The pictures of chapter 05: they show what they are given and say what it is."""

from __future__ import annotations

import numpy as np
import pandas as pd

from coupled_adam.plots import cloud
from coupled_adam.statistics import interval

V, H = 50, 6


def only(figure):
    figure.canvas.draw()  # some mistakes show only when the figure is drawn
    return figure.axes


def test_mean_cosine_of_shift_draws_the_closed_form_through_zero():
    shifts = np.array([0.0, 1.0, 2.0])
    figure = cloud.mean_cosine_of_shift(shifts, shifts / 4, lambda s: s / 4)
    (ax,) = only(figure)
    curve, measured = ax.lines
    np.testing.assert_allclose(measured.get_xydata(), np.c_[shifts, shifts / 4])
    np.testing.assert_allclose(curve.get_ydata(), curve.get_xdata() / 4)
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_from_the_side_has_the_direction_as_its_horizontal_axis():
    random = np.random.default_rng(1)
    embeddings = random.standard_normal((V, H))
    direction = np.eye(H)[2]
    counts = random.integers(0, 500, V)
    figure = cloud.from_the_side({"a": embeddings, "b": embeddings + direction}, direction, counts)
    first, second, bar = only(figure)
    assert [first.get_title(), second.get_title()] == ["a", "b"]
    left, right = (np.asarray(ax.collections[0].get_offsets()) for ax in (first, second))
    np.testing.assert_allclose(left[:, 0], embeddings[np.argsort(counts, kind="stable"), 2])
    np.testing.assert_allclose(right - left, np.tile([1.0, 0.0], (V, 1)), atol=1e-12)
    assert bar.get_ylabel()


def test_along_the_drift_names_its_ends():
    figure = cloud.along_the_drift(
        {"before": np.array([3.0, 2.0, 1.0]), "after": np.array([1.0, 0, -1])}
    )
    (ax,) = only(figure)
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert labels == ["1\nrarest", "2", "3\nfrequent"]
    before, after = ax.lines[:2]
    np.testing.assert_allclose(before.get_ydata(), [3, 2, 1])
    assert before.get_marker() != after.get_marker()


def test_cosine_histogram_is_a_density_and_tells_its_outlines_apart():
    random = np.random.default_rng(2)
    figure = cloud.cosine_histogram({name: random.uniform(-1, 1, 500) for name in ("a", "b", "c")})
    (ax,) = only(figure)
    outlines = list(ax.patches)
    assert len({patch.get_linestyle() for patch in outlines}) == 3
    heights = outlines[0].get_xy()[:, 1]
    assert 0.3 < heights.max() < 1.2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]


def test_cosines_by_kinship_has_a_panel_for_each_repair():
    random = np.random.default_rng(3)
    pairs = random.uniform(-1, 1, (2, 200))
    figure = cloud.cosines_by_kinship({"before": tuple(pairs), "after": tuple(pairs)})
    axes = only(figure)
    assert [ax.get_title() for ax in axes] == ["before", "after"]
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert sorted(legend) == ["same class", "two classes"]
    assert all(ax.get_xlabel() for ax in axes)


def test_repairs_draws_the_mean_over_the_seeds_in_the_order_of_the_table():
    table = pd.DataFrame(
        [
            {"optimizer": o, "seed": s, "repair": r, "x": s + base + 10 * (o == "adamw")}
            for o in ("adamw", "coupled")
            for s in (0, 2)
            for base, r in enumerate(("none", "centred", "axis"))
        ]
    )
    figure = cloud.repairs(table, {"x": "the measure"})
    (ax,) = only(figure)
    assert ax.get_title() == "the measure"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["none", "centred", "axis"]
    adam, *bars, coupled, first, _, _ = ax.lines
    np.testing.assert_allclose(adam.get_ydata(), [11, 12, 13])
    np.testing.assert_allclose(coupled.get_ydata(), [1, 2, 3])
    assert adam.get_marker() != coupled.get_marker()
    assert [legend.get_text() for legend in ax.get_legend().get_texts()] == ["Adam", "Coupled Adam"]
    for repair, bar in enumerate(bars):
        expected = interval([10 + repair, 12 + repair])[1:]
        np.testing.assert_allclose(bar.get_xydata(), [(repair, end) for end in expected])
    np.testing.assert_allclose(first.get_ydata(), interval([0, 2])[1:])
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == 12
