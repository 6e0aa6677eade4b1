"""The pictures of chapter 07: they show what they are given and say what it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from coupled_adam import palette
from coupled_adam.plots import cost

TABLE = pd.DataFrame(
    [
        ("copy", 0.3, 0.4, 0.5, 0, 200, 0),
        ("AdamW for-loop", 7.0, 8.0, 9.0, 200, 400, 200),
        ("AdamW fused", 1.0, 1.0, 1.0, 200, 400, 0),
        ("CoupledAdamW", 1.1, 1.2, 1.4, 100, 300, 2),
    ],
    columns=[
        "candidate",
        "ratio_low",
        "ratio_median",
        "ratio_high",
        "state_bytes",
        "resident_bytes",
        "extra_bytes",
    ],
)


def only_panel(figure):
    figure.canvas.draw()
    (ax,) = figure.axes
    assert ax.get_xlabel()
    return ax


def test_memory_of_step_stacks_what_each_optimizer_needs_in_matrices():
    figure = cost.memory_of_step(TABLE)
    ax = only_panel(figure)
    rows = {}
    names = [label.get_text() for label in ax.get_yticklabels()]
    for patch in ax.patches:
        name = names[list(ax.get_yticks()).index(round(patch.get_y() + patch.get_height() / 2))]
        rows.setdefault(name, []).append((patch.get_x(), patch.get_width()))
    assert names == ["AdamW for-loop", "AdamW fused", "CoupledAdamW"]  # a copy has no state
    np.testing.assert_allclose(rows["AdamW for-loop"], [(0, 2), (2, 2), (4, 2)])
    np.testing.assert_allclose(rows["AdamW fused"], [(0, 2), (2, 2), (4, 0)])
    np.testing.assert_allclose(rows["CoupledAdamW"], [(0, 2), (2, 1), (3, 0.02)])
    assert same_color(ax.patches[3].get_facecolor(), palette.colour("adamw"))
    assert same_color(ax.patches[5].get_facecolor(), palette.colour("coupled"))
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {
        "parameter and gradient",
        "optimizer state",
        "extra during the step",
    }


def test_time_ratios_shows_medians_and_quartiles_of_every_candidate():
    figure = cost.time_ratios(TABLE, floor=6 / 7)
    ax = only_panel(figure)
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_yticklabels()] == list(TABLE["candidate"])
    points = [container.lines[0] for container in ax.containers]
    np.testing.assert_allclose([p.get_xdata()[0] for p in points], TABLE["ratio_median"])
    bars = [container.lines[2][0].get_segments()[0][:, 0] for container in ax.containers]
    np.testing.assert_allclose(bars, TABLE[["ratio_low", "ratio_high"]])
    # Not by colour alone.
    assert points[2].get_marker() != points[3].get_marker()
    assert same_color(points[3].get_color(), palette.colour("coupled"))
    assert [6 / 7, 6 / 7] in [list(line.get_xdata()) for line in ax.lines]


def test_parts_of_step_shows_each_part_beside_its_floor():
    ratios = pd.DataFrame(
        {"low": [0.1, 0.3, 1.0], "median": [0.2, 0.4, 1.0], "high": [0.3, 0.6, 1.0]},
        index=["one", "two", "AdamW fused"],
    )
    figure = cost.parts_of_step(ratios, {"two": 3 / 7, "one": 1 / 7})
    ax = only_panel(figure)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["two", "one"]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [0.4, 0.2])
    floors = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
    assert {3 / 7, 1 / 7} <= set(floors)


@pytest.mark.parametrize("name", ["adamw", "coupled"])
def test_share_of_training_draws_percent_against_tokens(name):
    tokens = np.array([128, 512])
    figure = cost.share_of_training(
        tokens, {name: np.array([0.04, 0.01])}, {name: np.array([0.05, 0.0125])}
    )
    ax = only_panel(figure)
    assert "%" in ax.get_ylabel()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["128", "512"]
    measured, formula = ax.lines
    np.testing.assert_allclose(measured.get_xydata(), [[128, 4], [512, 1]])
    np.testing.assert_allclose(formula.get_ydata(), [5, 1.25])
    assert same_color(measured.get_color(), palette.colour(name))
