"""Pictures of chapter 11."""

import pandas as pd
import pytest

from coupled_adam import plots
from coupled_adam.errors import RefusedError

NUMBERS = {"coupled": 0.0, "between-0.5": 0.5, "adamw": 1.0}


def steps(**changes):
    rows = [
        {"optimizer": name, "a": a, "seed": seed, "gain": gain + seed, "norm": 5.0}
        for (name, a), gain in zip(NUMBERS.items(), (-1.0, 3.0, 1.0), strict=True)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_arms_stand_at_their_number_with_their_mean():
    figure = plots.by_number(steps(), "a", "exponent", {"gain": "nats", "norm": "norm"})
    gains, norms = figure.axes
    means = gains.lines[0]
    assert list(means.get_xdata()) == [0, 0.5, 1] and list(means.get_ydata()) == [-0.5, 3.5, 1.5]
    assert [label.get_text() for label in gains.get_xticklabels()] == ["0", "0.5", "1"]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"Adam", "Coupled Adam"}
    at_zero = [
        [line for line in ax.lines if list(line.get_ydata()) == [0, 0]] for ax in (gains, norms)
    ]
    assert [len(lines) for lines in at_zero] == [1, 0]


def test_the_interval_is_that_of_students_t():
    figure = plots.by_number(steps(), "a", "exponent", {"gain": "nats"})
    # Two values one apart: the half-width is 12.7062 / 2.
    for bar, mean in zip(figure.axes[0].containers, (1.5, -0.5, 3.5), strict=True):
        (segment,) = bar.lines[2][0].get_segments()
        assert list(segment[:, 1]) == pytest.approx([mean - 6.3531, mean + 6.3531], abs=1e-3)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (steps().iloc[1:], ValueError, "at least two values"),
        (steps(a=range(6)), ValueError, "one value of a"),
        (steps(optimizer="adamax"), RefusedError, "there is no arm"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, error, message):
    with pytest.raises(error, match=message):
        plots.by_number(table, "a", "exponent", {"gain": "nats"})


def test_groups_of_tokens_and_their_mean():
    figure = plots.ways_of_groups(pd.Series({"rarest": 3.0, "commonest": -1.0}), limits=(-5, 7))
    (ax,) = figure.axes
    assert [bar.get_height() for bar in ax.patches] == [3, -1, 1]
    assert [label.get_text() for label in ax.get_xticklabels()][-1] == "mean of all"
    assert ax.get_ylim() == (-5, 7)
