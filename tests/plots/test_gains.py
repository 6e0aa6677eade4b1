"""Pictures of chapter 10."""

import numpy as np
import pandas as pd
import pytest

from coupled_adam import plots


def tuning(losses):
    rows = [
        {"stage": stage, "optimizer": "coupled", "multiplier": m, "seed": s, "loss/tuning": loss}
        for m, loss in losses.items()
        for s in (0, 1)
        for stage in ("tuning", "report")
    ]
    return pd.DataFrame(rows)


def test_the_ring_is_around_the_best_multiplier():
    figure = plots.tuning_curves({"a": tuning({1.0: 3.0, 2.0: 2.5, 4.0: 2.7})})
    ring = figure.axes[0].lines[-1]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (2.0, 2.5)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "4"]
    dots = figure.axes[0].lines[0]
    assert len(dots.get_xdata()) == 6  # the tuning runs, and not those of the report


def test_the_legend_names_the_arms_of_all_panels_once():
    curve = tuning({1.0: 3.0, 2.0: 2.5, 4.0: 2.7})
    both = pd.concat([curve, curve.assign(optimizer="adamw")])
    (legend,) = plots.tuning_curves({"a": curve, "b": both}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["Coupled Adam", "Adam"]


def test_gains_without_pairs_are_refused():
    one = pd.DataFrame([{"optimizer": "coupled", "setting": "a", "seed": 0, "gain": 0.1}])
    with pytest.raises(ValueError, match="at least two values"):
        plots.gains_by_setting(one, ["a"], "text")


def test_occurrences_are_ranked():
    figure = plots.within_memory(np.array([0.0, 5.0, 0.5, 100.0]))
    assert figure.axes[0].lines[0].get_ydata().tolist() == [100.0, 5.0, 0.5]


def test_settings_are_drawn_where_they_lie_and_told_apart():
    table = pd.DataFrame(
        {"varied": ["batch", "skew", "skew"], "rare_share": [0.1, 0.5, 0.9], "x": [1.0, 2.0, 3.0]}
    )
    figure = plots.against_memory(table, {"x": "nats"})
    _, batch, skew = figure.axes[0].lines
    assert list(skew.get_xdata()) == [0.5, 0.9] and list(skew.get_ydata()) == [2.0, 3.0]
    assert batch.get_marker() != skew.get_marker()
    assert figure.axes[0].get_ylabel() == "nats"
    many = pd.DataFrame({"varied": [f"kind {k}" for k in range(10)], "rare_share": 0.5, "x": 1.0})
    with pytest.raises(ValueError, match="at most 9 series"):
        plots.against_memory(many, {"x": "nats"})


def test_rows_stand_in_their_order_and_zero_is_drawn_where_it_lies_within():
    one = pd.DataFrame(
        {"optimizer": "adamw", "row": "b", "seed": [0, 1], "x": [-1.0, 2.0], "y": 5.0}
    )
    table = pd.concat([one, one.assign(row="a", optimizer="coupled")])
    figure = plots.in_rows(table, {"x": "nats", "y": "norm"})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "a"]
    at_zero = [
        [line for line in ax.lines if list(line.get_xdata()) == [0, 0]] for ax in figure.axes
    ]
    assert [len(lines) for lines in at_zero] == [1, 0]
    assert not figure.legends
    left, right = plots.in_rows(table, {"x": "nats", "y": "norm"}, one_scale=True).axes
    assert left.get_xlim() == right.get_xlim()
    assert figure.axes[0].get_xlim() != figure.axes[1].get_xlim()
    assert plots.in_rows(table.assign(row="a"), {"x": "nats"}).legends
    with pytest.raises(ValueError, match="at least two values"):
        plots.in_rows(one.iloc[:1], {"x": "nats"})
