"""The intervals that the tables are made of."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coupled_adam import statistics


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.sampled_from([0.5, 0.8, 0.95, 0.99])
)
def test_interval_is_student_s(values, confidence):
    mean, low, high = statistics.interval(values, confidence)
    assert mean == pytest.approx(np.mean(values))
    spread = np.std(values, ddof=1) / math.sqrt(len(values))
    if spread > 1e-9:
        expected = stats.t.interval(confidence, len(values) - 1, np.mean(values), spread)
        assert (low, high) == pytest.approx(expected)


def test_interval_of_two_values_in_closed_form():
    # With one degree of freedom the quantile is tan(pi (q - 1/2)).
    half = math.tan(math.pi * 0.475) * 1.0
    assert statistics.interval([3.0, 5.0]) == pytest.approx((4.0, 4.0 - half, 4.0 + half))


def test_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(2000, 3))
    held = [low <= 2.0 <= high for _, low, high in map(statistics.interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("values", "says"),
    [([], "got 0"), ([1.0], "got 1"), ([1, math.nan], "finite"), ([1, math.inf], "fin")],
)
def test_an_interval_that_is_not_defined_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        statistics.interval(values)


TABLE = pd.DataFrame(
    {
        "optimizer": ["adamw", "coupled"] * 3,
        "seed": [0, 0, 1, 1, 2, 2],
        "loss": [5.0, 4.0, 7.0, 6.5, 9.0, 7.5],
        "isotropy": [0.5, 0.9, 0.6, 0.8, 0.7, 0.7],
    }
)


def test_summarise_is_the_interval_of_each_arm_and_measure():
    table = statistics.summarise(TABLE, ["loss", "isotropy"])
    assert len(table) == 4
    assert table.columns.tolist() == ["mean", "low", "high"]
    expected = statistics.interval([4.0, 6.5, 7.5])
    assert tuple(table.loc["coupled", "loss"]) == pytest.approx(expected)


def test_paired_difference_is_seed_by_seed():
    shuffled = TABLE.sample(frac=1, random_state=0)
    difference = statistics.paired_difference(shuffled, "loss", "coupled", "adamw")
    assert difference == pytest.approx(statistics.interval([-1.0, -0.5, -1.5]))
    # Narrower than the interval of either arm: what the seeds share cancels.
    alone = statistics.interval([4.0, 6.5, 7.5])
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)


def test_a_pair_that_lacks_a_seed_is_refused():
    with pytest.raises(ValueError, match="finite"):
        statistics.paired_difference(TABLE.iloc[:-1], "loss", "coupled", "adamw")
