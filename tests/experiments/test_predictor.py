"""The predictor: it finds a relation that is there, and says when there is none."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from coupled_adam import cli
from coupled_adam.errors import RefusedError
from coupled_adam.experiments import predictor, recorded

GROUPS = ("batch", "beta2", "text", "skew", "width")


def planted(noise=0.0, slope=0.5, seed=0):
    random = np.random.default_rng(seed)
    share = random.uniform(0, 1, 20)
    table = pd.DataFrame({"varied": np.repeat(GROUPS, 4), "rare_share": share, "steps": 200})
    return table.assign(gain=0.1 + slope * share + noise * random.normal(size=20))


def test_a_planted_line_is_found_and_beats_the_mean():
    one = predictor.predict(planted(), 0.4, predictor.GAIN)
    assert one.value == pytest.approx(0.3)
    assert one.error < 1e-12 < one.error_of_mean
    assert one.better_than_mean and one.settings == 20


def test_where_there_is_no_relation_it_is_no_better_than_the_mean():
    better = [
        predictor.predict(planted(1.0, 0.0, seed), 0.4, predictor.GAIN).better_than_mean
        for seed in range(30)
    ]
    assert sum(better) < 15  # a fit to all settings would look better in every one of the 30


def test_what_was_varied_is_left_out_as_a_whole():
    table = planted()
    # One group that obeys another law: a fit that had seen it would not be off by 5 everywhere.
    table.loc[table["varied"] == "skew", "gain"] += 5
    found = predictor.left_out(table, predictor.GAIN)
    skew = found[table["varied"] == "skew"]
    np.testing.assert_allclose(skew["measured"] - skew["line"], 5)
    others = table.loc[table["varied"] != "skew", "gain"]
    np.testing.assert_allclose(skew["mean"], others.mean())


def test_short_runs_and_missing_measures_are_not_used():
    table = planted()
    table.loc[0, "steps"] = 50
    table.loc[1, "gain"] = np.nan
    assert list(predictor.left_out(table, predictor.GAIN).index) == list(range(2, 20))


def test_too_few_settings_and_an_impossible_share_are_refused():
    few = planted().query("varied in ('batch', 'text', 'skew')")
    with pytest.raises(RefusedError, match="3 things were varied"):
        predictor.predict(few, 0.5, predictor.GAIN)
    with pytest.raises(RefusedError, match=r"in \[0, 1\], not 1.5"):
        predictor.predict(planted(), 1.5, predictor.GAIN)
    with pytest.raises(RefusedError, match="50 steps are too few"):
        predictor.predict(planted(), 0.5, predictor.GAIN, steps=50)


def test_every_recorded_setting_is_read():
    table = predictor.settings()
    trained_otherwise = [point for point in recorded.recorded_points() if point.varied]
    assert list(table.index) == [point.name for point in trained_otherwise]
    assert table[["rare_share", "drift", "gain"]].notna().all(axis=None)
    assert list(table["varied"]) == [point.varied for point in trained_otherwise]


def test_the_verb_states_the_forecast_and_its_error():
    result = CliRunner().invoke(cli.app, ["predict", "--tokens-per-step", "98304"])
    assert result.exit_code == 0, result.output
    assert "4,096 tokens occur less than once within 1,966,080 tokens" in result.stdout
    for what in predictor.MEASURES.values():
        assert f"{what}: " in result.stdout
    gain = predictor.predict(predictor.settings(), 0.0, predictor.GAIN)
    assert ("do not rely on it" in result.stdout) != gain.better_than_mean
    result = CliRunner().invoke(cli.app, ["predict", "--steps", "50"])
    assert result.exit_code and "too few" in result.output
    result = CliRunner().invoke(cli.app, ["predict", "--beta2", "1"])
    assert result.exit_code and "[0, 1)" in result.output
