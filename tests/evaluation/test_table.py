"""The long table and its intervals: each row complete, each interval against something known."""

import math

import numpy as np
import pytest
from scipy import stats

from coupled_adam.evaluation import resampling
from coupled_adam.evaluation.table import Measure, long_table, not_taken, too_few


def test_a_row_has_every_column_and_its_type():
    table = long_table([Measure("loss", "all", "trained", 1, n=3), not_taken("x", "", "why", 2)])
    assert list(table) == list(Measure._fields)
    assert table["value"].tolist()[0] == 1.0 and math.isnan(table["value"][1])
    assert table["n"].tolist() == [3, 2] and table["n"].dtype.kind == "i"
    assert table["low"].isna().all() and table["note"].tolist() == ["", "why"]


def test_an_empty_table_has_the_columns():
    assert list(long_table([])) == list(Measure._fields)


def test_two_rows_for_one_thing_are_a_fault():
    with pytest.raises(ValueError, match=r"two rows of the table are \('loss', 'all', 'trained'\)"):
        long_table([Measure("loss", "all", "trained", value) for value in (1, 2)])


def test_a_value_is_not_dropped_without_a_word():
    with pytest.raises(ValueError, match="no note says why"):
        long_table([Measure("loss", "all", "trained", math.nan)])


def test_too_few_says_how_many_there_were():
    assert too_few(41, 1000, "pairs") == "too few: 41 of at least 1,000 pairs"


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    scores = np.random.default_rng(1).normal(3, 2, 400)
    value, low, high = resampling.mean_of(scores)
    error = scores.std() / math.sqrt(len(scores))
    assert value == pytest.approx(scores.mean())
    assert (low, high) == pytest.approx(
        (value - 1.96 * error, value + 1.96 * error), abs=0.1 * error
    )


@pytest.mark.parametrize("of", ["mean", "correlation"])
def test_intervals_cover_the_truth_as_often_as_they_say(of):
    random, covered = np.random.default_rng(2), 0
    for _ in range(200):
        x = random.normal(size=60)
        y = 0.5 * x + math.sqrt(0.75) * random.normal(size=60)
        found = resampling.mean_of(x) if of == "mean" else resampling.correlation_of(x, y)
        covered += found.low <= (0 if of == "mean" else 0.5) <= found.high
    assert 0.88 <= covered / 200 <= 0.99  # with the bounds of 80 % it would be about 0.8


def test_a_correlation_is_pearson_s():
    x, y = np.random.default_rng(3).normal(size=(2, 50)) + 1000  # far from zero, as ranks are
    found = resampling.correlation_of(x, y)
    assert found.value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.low < found.value < found.high


def test_a_correlation_of_pairs_leaves_out_the_diagonal_and_draws_items():
    random = np.random.default_rng(4)
    items = random.normal(size=(40, 3))
    x, y = items @ items.T, items[:, :2] @ items[:, :2].T
    above = np.triu_indices(40, 1)
    wrong_diagonal = x + 1e6 * np.eye(40)
    found = resampling.correlation_of_pairs(wrong_diagonal, y)
    assert found.value == pytest.approx(stats.pearsonr(x[above], y[above]).statistic)
    independent = resampling.correlation_of(x[above], y[above])
    # 780 pairs of 40 items tell less than 780 pairs: items drawn again give a wider interval.
    assert found.high - found.low > 1.5 * (independent.high - independent.low)


def test_clusters_widen_an_interval():
    levels = np.random.default_rng(5).normal(size=20)
    clusters = resampling.ratio_of(50 * levels, np.full(20, 50))
    single = resampling.mean_of(np.repeat(levels, 50))
    assert clusters.value == pytest.approx(single.value)
    assert clusters.high - clusters.low > 4 * (single.high - single.low)
    assert resampling.ratio_of(np.array([1.0, 30]), np.array([1, 10])).value == pytest.approx(
        31 / 11
    )


def test_a_mean_of_pairs_draws_the_pairs_members():
    first, second = np.triu_indices(12, 1)
    level = np.random.default_rng(6).normal(size=12)
    scores = level[first] + level[second]
    found = resampling.mean_of_pairs(scores, first, second)
    assert found.value == pytest.approx(scores.mean())
    assert found.high - found.low > 1.5 * np.subtract(*resampling.mean_of(scores)[:0:-1])


def test_where_nothing_varies_there_is_no_interval():
    value, low, high = resampling.mean_of(np.zeros(100))
    assert value == 0 and math.isnan(low) and math.isnan(high)
