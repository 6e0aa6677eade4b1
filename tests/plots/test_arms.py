"""Every picture draws every arm that there is, and refuses one that there is not."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from coupled_adam import arms, plots
from coupled_adam.errors import RefusedError

V, H, STEPS = 30, 6, 4
random = np.random.default_rng(0)
COUNTS = np.arange(V, 0, -1)
FREQUENCIES = COUNTS / COUNTS.sum()


def table(names):
    """One row per arm, seed and step, with all columns that some picture wants."""
    rows = [
        {"optimizer": name, "seed": seed, "step": step, "value": random.uniform()}
        for name in names
        for seed in (0, 1)
        for step in range(STEPS)
    ]
    every = pd.DataFrame(rows)
    every["parameters"] = every["multiplier"] = 10.0 ** every["step"]
    every["mean_norm"] = every["relative_mean_norm"] = every["value"]
    return every.assign(repair=every["step"].map("repair {}".format))


def each(names, *shape):
    return {name: random.uniform(0.1, 1, shape) for name in names}


def classes(names):
    one = pd.DataFrame({"from": [0.0, 0.1], "to": [0.1, 1.0], "loss": [2.0, 1.0]})
    return {"panel": dict.fromkeys(names, one)}


def embeddings(names):
    return {(name, 0): random.normal(size=(V, H)) + 1 for name in names}


VALUE = {"value": "the value"}
NOTHING = pd.DataFrame({"panel": ["all"], "row": ["use"], "name": ["chance"], "value": [0.5]})
# Every picture that is given arms, drawn for some of them.
PICTURES = {
    "beside_baselines": lambda names: plots.beside_baselines(
        table(names).query("step == 1").assign(panel="all", row="use"), NOTHING, "score"
    ),
    "by_size": lambda names: plots.by_size(table(names).query("seed == 0"), VALUE),
    "by_number": lambda names: plots.by_number(
        table(names).query("step == 1").assign(a=lambda rows: rows["optimizer"].map(len)),
        "a",
        "exponent",
        VALUE,
    ),
    "clouds": lambda names: plots.clouds(embeddings(names), COUNTS),
    "clouds_before_and_after": lambda names: plots.clouds_before_and_after(
        random.normal(size=(V, H)), each(names, V, H)
    ),
    "curves": lambda names: plots.curves(table(names), VALUE),
    "distance_of_mean": lambda names: plots.distance_of_mean(each(names, STEPS, H)),
    "gains_by_setting": lambda names: plots.gains_by_setting(
        table(names).query("step == 1").assign(setting="all", gain=1.0), ["all"], "setting"
    ),
    "in_rows": lambda names: plots.in_rows(
        table(names).query("step == 1").assign(row="all"), VALUE
    ),
    "intervals": lambda names: plots.intervals(table(names).query("step == 1"), VALUE),
    "learning_rates": lambda names: plots.learning_rates(table(names), VALUE),
    "lengths_against_frequency": lambda names: plots.lengths_against_frequency(
        embeddings(names), COUNTS
    ),
    "loss_by_frequency": lambda names: plots.loss_by_frequency(classes(names), guessing=3.0),
    "path_of_mean": lambda names: plots.path_of_mean(
        table(names).query("seed == 0"), pd.Series([0.0, 1.0])
    ),
    "repairs": lambda names: plots.repairs(table(names), VALUE),
    "share_of_training, measured": lambda names: plots.share_of_training(
        np.array([128, 512]), each(names, 2), {}
    ),
    "share_of_training, predicted": lambda names: plots.share_of_training(
        np.array([128, 512]), {}, each(names, 2)
    ),
    "shared_second_moment, own": lambda names: plots.shared_second_moment(
        FREQUENCIES, each(names, V), slope=1.0
    ),
    "shared_second_moment, shared": lambda names: plots.shared_second_moment(
        FREQUENCIES, each(names, H), slope=1.0
    ),
    "summed_updates": lambda names: plots.summed_updates(each(names, STEPS)),
    "tuning_curves": lambda names: plots.tuning_curves(
        {"all": table(names).assign(stage="tuning")}, "value"
    ),
    "typical_steps": lambda names: plots.typical_steps(FREQUENCIES, each(names, V)),
}


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(plt.Text))


def colours(figure):
    lines = [line.get_color() for line in figure.findobj(plt.Line2D)]
    faces = [
        colour
        for ax in figure.axes
        for some in ax.collections
        for colour in (*some.get_facecolor(), *some.get_edgecolor())
    ]
    return {to_hex(colour) for colour in (*lines, *faces)}


# A cross is all edge: drawn with the edge that suits a dot, it would be invisible.
@pytest.mark.parametrize("marker", ["^", "x"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_new_arm_is_drawn_in_its_colour_under_its_label(name, marker, monkeypatch):
    new = arms.Arm("sign", "Sign descent", "#e69f00", marker)
    monkeypatch.setitem(arms.ARMS, "sign", new)
    figure = PICTURES[name](("sign", "adamw"))
    figure.canvas.draw()
    assert "Sign descent" in texts(figure)
    assert {"#e69f00", arms.ARMS["adamw"].colour.lower()} <= colours(figure)
    edges = [
        line.get_markeredgewidth()
        for line in figure.findobj(plt.Line2D)
        if line.get_marker() == "x" and to_hex(line.get_markeredgecolor()) == "#e69f00"
    ]
    assert all(edge > 0 for edge in edges)


@pytest.mark.parametrize("name", PICTURES)
def test_arms_stand_in_the_books_order(name):
    figure = PICTURES[name](tuple(reversed(arms.ARMS)))
    written = texts(figure)
    # "Coupled Adam" holds "Adam": look for the last arm first.
    places = [written.index(label) for label in ("SGD", "Adam", "Coupled Adam")]
    assert places == sorted(places)


@pytest.mark.parametrize("unknown", ["lion", "Adam", ""])
@pytest.mark.parametrize("name", PICTURES)
def test_an_unknown_arm_is_an_error(name, unknown):
    with pytest.raises(RefusedError, match="there is no arm"):
        PICTURES[name]((*arms.ARMS, unknown))


def test_every_picture_is_returned_and_the_list_of_those_with_arms_is_whole():
    functions = {name for name in plots.__all__ if name != "TokenTrace"}
    for name in functions:
        assert getattr(plots, name).__annotations__["return"] == "Figure", name
    documented = {name for name in functions if "RefusedError" in getattr(plots, name).__doc__}
    assert documented == {name.split(",")[0] for name in PICTURES}


def series(count, *shape):
    return {f"series {k}": random.uniform(0.1, 1, shape) for k in range(count)}


MOST = {
    "along_the_drift": lambda count: plots.along_the_drift(series(count, 4)),
    "cosine_histogram": lambda count: plots.cosine_histogram(series(count, 9)),
    "foretold": lambda count: plots.foretold(np.ones((STEPS, H)), series(count, STEPS, H)),
    "fit_by_step": lambda count: plots.fit_by_step(series(count, STEPS)),
    "after_a_kick": lambda count: plots.after_a_kick(np.ones(STEPS), series(count, STEPS)),
    "run_times": lambda count: plots.run_times(
        np.logspace(10, 12, 5), {name: 1e15 for name in series(count, 1)}
    ),
}


@pytest.mark.parametrize("name", MOST)
def test_a_series_too_many_is_an_error_and_not_left_out(name):
    assert MOST[name](3).axes
    with pytest.raises(ValueError, match=r"at most 3 .* got 4: series 0, series 1, series 2, "):
        MOST[name](4)
