"""Pictures of chapters 01 and 02: drawn, labelled, and true to the numbers they are given."""

from __future__ import annotations

import numpy as np
import pytest

from coupled_adam import plots

random = np.random.default_rng(0)


def axes_of(figure):
    figure.canvas.draw()
    return figure.axes


def line(ax, label):
    return next(one for one in ax.lines if one.get_label() == label).get_xydata()


def cloud(shift):
    return random.normal(size=(30, 5)) + shift * np.eye(5)[2]


GRADIENTS = np.array([[1.0, 0.5], [-2.0, 1.0], [1.0, -1.5]])
DRAWN = {
    "clouds_before_and_after": lambda: plots.clouds_before_and_after(
        cloud(0), {"sgd": cloud(0), "adamw": cloud(9)}
    ),
    "head_to_tail": lambda: plots.head_to_tail({"one": GRADIENTS}, ["a", "b", "c"]),
    "walk": lambda: plots.walk(random.normal(size=(9, 4)), np.arange(9) < 6),
    "bowl_paths": lambda: plots.bowl_paths((1.0, 0.1), {"way": np.ones((3, 2))}),
    "step_by_noise": lambda: plots.step_by_noise([0, 1], [1, 0.7], [1, 0.7]),
    "after_a_kick": lambda: plots.after_a_kick([0, 1, 0], {"b": np.array([0, 0.5, 0.4])}),
    "step_by_row": lambda: plots.step_by_row(*random.uniform(0.1, 1, size=(3, 20))),
}


@pytest.mark.parametrize("name", DRAWN)
def test_returns_a_figure_with_labelled_axes(name):
    axes = axes_of(DRAWN[name]())
    assert any(ax.get_xlabel() for ax in axes)
    assert any(ax.get_ylabel() for ax in axes)


def test_clouds_are_seen_along_the_farthest_mean():
    far = cloud(9)
    figure = plots.clouds_before_and_after(cloud(0), {"sgd": cloud(0), "adamw": far})
    for ax, expected in zip(axes_of(figure), (0, np.linalg.norm(far.mean(axis=0))), strict=True):
        ((x, _),) = line(ax, "mean, after")
        assert x == pytest.approx(expected, abs=1)


def test_head_to_tail_draws_no_sum_when_the_vectors_cancel():
    figure = plots.head_to_tail({"closed": GRADIENTS, "open": GRADIENTS + 1}, ["a", "b", "c"])
    labels = [[one.get_label() for one in ax.lines] for ax in axes_of(figure)]
    assert ["sum" in some for some in labels] == [False, True]


def test_head_to_tail_names_every_vector():
    figure = plots.head_to_tail({"one": GRADIENTS}, ["left", "right", "up"])
    (ax,) = axes_of(figure)
    assert {text.get_text() for text in ax.texts} == {"left", "right", "up", ""}


def test_head_to_tail_refuses_names_that_do_not_fit():
    with pytest.raises(ValueError, match="'one' has 3 vectors for 2 names"):
        plots.head_to_tail({"one": GRADIENTS}, ["a", "b"])


def test_a_walk_over_rows_that_cancel_ends_where_it_began():
    rows = random.normal(size=(40, 6))
    rows -= rows.mean(axis=0)
    figure = plots.walk(rows, np.arange(40) % 3 > 0)
    (ax,) = axes_of(figure)
    assert np.allclose(line(ax, "start"), line(ax, "end"))
    absent = line(ax, "26 tokens that are absent")
    occur = line(ax, "14 tokens that occur")
    assert np.allclose(absent[-1], occur[0])
    assert (len(absent), len(occur)) == (27, 15)


def test_the_way_after_a_kick_is_the_sum_of_its_steps():
    figure = plots.after_a_kick([0, 1, 0], {"b": np.array([0, 0.5, 0.4])})
    way = line(axes_of(figure)[2], "b")
    assert np.allclose(way[:, 1], [0, 0.5, 0.9])
