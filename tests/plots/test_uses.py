"""Pictures of chapter 09."""

import pandas as pd
import pytest

from coupled_adam import plots
from coupled_adam.statistics import interval


def table(**changes):
    rows = [
        {"panel": panel, "row": row, "optimizer": name, "seed": seed, "value": value + seed}
        for panel, value in (("second", 1.0), ("first", 2.0))
        for row in ("b", "a")
        for name in ("coupled", "adamw")
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows).assign(**changes)


BASELINES = pd.DataFrame(
    {"panel": ["second"] * 3, "row": ["a", "b", "a"], "name": ["x", "y", "x"], "value": [3, 4, 5]}
)


def test_arms_lie_beneath_each_other_in_the_order_of_rows_and_panels():
    figure = plots.beside_baselines(table(), BASELINES, "score")
    assert [ax.get_title() for ax in figure.axes] == ["second", "first"]
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    first, second = (bars for bars in ax.containers)
    assert first.get_label() == "Adam" and second.get_label() == "Coupled Adam"
    (_, above), (_, below) = (bars[0].get_xydata()[1] for bars in (first, second))
    assert above < below < above + 1  # rows count downwards
    (bar,) = first[2]
    low, high = bar.get_segments()[0][:, 0]
    assert [1.5, low, high] == pytest.approx(list(interval([1.0, 2.0])))


def test_baselines_are_lines_across_their_row_and_panel():
    figure = plots.beside_baselines(table(), BASELINES, "score")
    x, y = (
        next(one for one in figure.axes[0].collections if one.get_label() == name)
        for name in ("x", "y")
    )
    assert [line[:, 0].tolist() for line in x.get_segments()] == [[4, 4]]  # the mean of two
    assert x.get_segments()[0][:, 1].mean() == 1 and y.get_segments()[0][:, 1].mean() == 0
    elsewhere = next(one for one in figure.axes[1].collections if one.get_label() == "x")
    assert not elsewhere.get_segments()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["x", "y", "Adam", "Coupled Adam"]


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="at least two values"):
        plots.beside_baselines(table().query("seed == 0"), BASELINES, "score")
    many = pd.DataFrame({"panel": "first", "row": "a", "name": list("wxyz"), "value": 1.0})
    with pytest.raises(ValueError, match="at most 3 series"):
        plots.beside_baselines(table(), many, "score")
