"""What follows a verdict: sizes of tests that have their power, and a cost sheet that adds up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from test_advice import given, versus

from coupled_adam.errors import RefusedError
from coupled_adam.report import steps
from coupled_adam.report.advice import advise


def test_an_ab_test_of_the_stated_size_finds_the_difference():
    n = steps.users_needed(0.1, 0.1)
    random = np.random.default_rng(0)
    a, b = random.binomial(n, 0.1, 4000), random.binomial(n, 0.11, 4000)
    pooled = (a + b) / (2 * n)
    z = (b - a) / np.sqrt(2 * n * pooled * (1 - pooled))
    assert 0.77 < (z > stats.norm.ppf(0.975)).mean() < 0.83
    assert steps.users_needed(0.1, -0.1) < n  # a fall has less spread
    for share, lift in ((0.0, 0.1), (0.5, 1.0), (0.1, 0.0)):
        with pytest.raises(RefusedError, match="shares"):
            steps.users_needed(share, lift)


def test_paired_queries_need_the_square_of_spread_over_difference():
    few, many = steps.queries_needed(1.0, 0.1), steps.queries_needed(1.0, 0.05)
    assert few == math.ceil((1.959964 + 0.841621) ** 2 * 100)
    assert many == pytest.approx(4 * few, abs=4)
    with pytest.raises(RefusedError, match="spread"):
        steps.queries_needed(0.0, 0.1)


def test_the_next_steps_follow_the_verdict():
    names = {}
    for name, facts in {
        "go on": given(parameters=1000, tokens=100),
        "not yet": given(versus("adamw", 0.5), versus("adamw-memory", 0.03, 0.05)),
        "no": given(versus("adamw", -0.5), versus("adamw-memory", -0.5)),
    }.items():
        found = advise(facts)
        assert found.verdict == name
        names[name] = [step.name for step in steps.next_steps(facts, found)]
    assert names["go on"] == ["second size", "A/B", "canary", "way back"]
    assert (names["not yet"], names["no"]) == (["tell"], ["stay", "ask again"])
    assert "transfer_state" in steps.way_back().text
    assert "the mean of the embeddings" in steps.way_back().text


def test_the_way_back_is_a_function_of_the_library():
    from coupled_adam import transfer_state

    assert transfer_state.__name__ in steps.way_back().text


def test_the_cost_sheet_adds_up():
    sheet = steps.CostSheet(10, 4, 100, 2, planned_hours=1000, speed_up=1.25)
    assert sheet.cost == 1008
    assert sheet.saved_share == pytest.approx(0.2)
    assert sheet.saved == pytest.approx(400)
    assert sheet.break_even_hours == pytest.approx(2520)
    # At the break-even the two sides are equal.
    even = steps.CostSheet(10, 4, 100, 2, planned_hours=sheet.break_even_hours, speed_up=1.25)
    assert even.saved == pytest.approx(even.cost)
    for speed_up in (0.9, 1.0, math.nan):
        assert steps.CostSheet(speed_up=speed_up).break_even_hours == math.inf
    with pytest.raises(RefusedError, match="work_price"):
        steps.CostSheet(work_price=-1)


def test_not_yet_says_how_many_pairs():
    facts = given(versus("adamw", 0.5), versus("adamw-memory", 0.03, 0.05))
    (step,) = steps.next_steps(facts, advise(facts))
    assert f"About {advise(facts).more_pairs} pairs" in step.text
    (step,) = steps.next_steps(facts, SimpleNamespace(verdict="not yet", more_pairs=None))
    assert "About" not in step.text
