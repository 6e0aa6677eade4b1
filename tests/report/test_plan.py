"""The plan: what minutes buy, in which order; what is refused; the small run and the large one."""

import json
import math

import numpy as np
import pytest
from tiny_plan import SHAPE

from coupled_adam.errors import RefusedError
from coupled_adam.experiments.evidence import memory
from coupled_adam.report import plan
from coupled_adam.report.plan import Probe, Target, make_plan
from coupled_adam.text import TextError

ARMS = plan.ARMS
STEP = 0.01  # seconds


def probed(step=STEP, run=1.0):
    return Probe({name: (step, 2 * step, step) for name in ARMS}, run)


def planned(corpus, minutes, **changes):
    options = {"workers": 1, "shape": SHAPE} | changes
    return make_plan(corpus, 4, minutes, ARMS, options.pop("probe", probed()), **options)


def test_more_minutes_buy_pairs_and_then_data(corpus):
    plans = [planned(corpus, minutes) for minutes in (2.1, 2.5, 3, 6, 60)]
    bought = [(one.pairs, one.tokens) for one in plans]
    assert bought == sorted(bought)
    assert bought[0] == (3, 6400) and bought[-1] == (10, 12_800)  # all of the text
    assert len(set(bought)) == 5
    for one in plans:
        assert one.seconds <= 0.9 * 60 * one.minutes
        assert len({len(grid) for grid in one.rates.values()}) == 1 and len(one.rates["adamw"]) >= 3
    assert [one for one in plan.STAIRS if one[0] < 3] == []


def test_the_stairs_only_rise():
    pairs, data = zip(*plan.STAIRS, strict=True)
    assert list(pairs) == sorted(pairs) and list(data) == sorted(data)
    assert plan.STAIRS[0][1] == plan.STAIRS[1][1]  # pairs before data


def test_the_expected_time_is_that_of_all_runs(corpus):
    one = planned(corpus, 2.1)
    run = 200 * STEP + 1.0
    # Tuning: 3 arms, 3 rates and one extension; each pair: own, twin, and two at the common rate.
    assert one.seconds == pytest.approx(run * (3 * 4 + 3 * 8))
    two = planned(corpus, 2.1, workers=2)
    assert two.seconds < one.seconds or two.pairs > one.pairs


def test_a_budget_that_is_too_small_is_refused_with_what_would_do(corpus):
    with pytest.raises(RefusedError, match=r"0.5 minutes are too few.*--minutes (\d+)") as refused:
        planned(corpus, 0.5)
    minutes = int(str(refused.value).rsplit("--minutes ")[1].split(",")[0])
    assert planned(corpus, minutes).pairs == 3
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(RefusedError, match="--minutes must be"):
            planned(corpus, wrong)


def test_a_text_that_is_too_short_is_refused(corpus):
    with pytest.raises(TextError, match="200 steps take 6,400"):
        planned(corpus.part(6000), 60)


def test_a_plan_says_all_of_it_and_survives_json(corpus):
    target = Target(98_304)
    one = planned(corpus, 6, target=target, labels="abc")
    said = " ".join(one.sentences())
    for wanted in (
        f"{one.pairs} fresh seeds",
        f"{one.tokens:,} tokens",
        "Coupled Adam",
        "Expected",
    ):
        assert wanted in said
    assert f"{one.parameters:,} parameters" in said
    assert plan.Plan.from_json(json.loads(json.dumps(one.to_json()))) == one
    for wrong in ({}, {"arms": 3}, one.to_json() | {"target": {"x": 1}}):
        with pytest.raises(RefusedError, match="plan cannot be read"):
            plan.Plan.from_json(wrong)
    setting = one.setting(corpus)
    assert setting.config.steps == one.steps and len(setting.corpus.train) == one.tokens
    assert setting.config.betas[1] == one.beta2


def test_a_probe_takes_every_arm_in_turns(corpus):
    seen = []

    def measure(run, _):
        seen.append(run.config.optimizer)

    found = plan.probe(corpus, ARMS, 4, shape=SHAPE, measure=measure, steps=4)
    assert {name: len(some) for name, some in found.step_seconds.items()} == dict.fromkeys(ARMS, 3)
    assert all(0 < found.step(name) < 1 for name in ARMS)
    assert 0 < found.run_seconds < 10 and seen == ["adamw"]


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("tokens-per-step=98304", Target(98_304)),
        ("tokens-per-step=98304,beta2=0.99,vocabulary=50257,steps=2e5",
         Target(98_304, 0.99, 50_257, 200_000)),
        (" tokens-per-step=512 , parameters=1e9", Target(512, parameters=10**9)),
    ],
)  # fmt: skip
def test_a_planned_run_is_read(written, wanted):
    assert plan.read_target(written) == wanted


@pytest.mark.parametrize(
    "written",
    ["", "steps=10", "tokens-per-step", "tokens-per-step=x", "tokens-per-step=0",
     "tokens-per-step=10,beta2=1", "tokens-per-step=10,vocabulary=1", "tokens-per-step=nan",
     "tokens-per-step=10,vocabulary=1e12", "colour=3", "tokens-per-step=inf"],
)  # fmt: skip
def test_a_planned_run_that_cannot_be_meant_is_refused(written):
    with pytest.raises(RefusedError, match="--plan"):
        plan.read_target(written)


def test_zipf_goes_on_beyond_the_vocabulary():
    zipf = 1 / np.arange(1, 1001)
    longer = plan.extended(zipf[:200] / zipf[:200].sum(), 1000)
    assert longer == pytest.approx(zipf / zipf.sum(), rel=1e-6)
    assert plan.extended(zipf / zipf.sum(), 10) == pytest.approx(zipf[:10] / zipf[:10].sum())
    assert len(plan.extended(np.array([0.5, 0.5]), 100)) == 100


def test_small_runs_get_the_share_of_rare_tokens_of_the_large_one(corpus):
    shares = {
        (batch, beta2): memory(corpus.frequencies, batch * 8, beta2)["rare_share"]
        for batch in plan.BATCHES
        for beta2 in plan.BETA2S
    }
    target = Target(64, 0.95, corpus.vocabulary_size)
    wanted = plan.target_memory(corpus, target)["rare_share"]
    chosen = plan.match(corpus, target, 8)
    assert abs(shares[chosen] - wanted) == pytest.approx(
        min(abs(share - wanted) for share in shares.values()), abs=1e-3
    )
    assert chosen == (8, 0.95)  # the same number of tokens
    made = planned(corpus, 60, target=target)
    assert (made.batch_size, made.beta2) == (8, 0.95)
    # As far as the budget allows: the dearer batch is left out.
    cheap = planned(corpus, 3, target=target, probe=probed(run=1.3))
    assert cheap.batch_size <= 4


def test_what_cannot_be_concluded_is_one_sentence(corpus):
    near = planned(corpus, 60, target=Target(64, 0.95, corpus.vocabulary_size, 300))
    assert "like the planned one" in plan.scale_sentence(near, corpus)
    far = planned(corpus, 60, target=Target(10**6, 0.95, 50_257, 200_000, 10**9))
    said = plan.scale_sentence(far, corpus)
    assert "cannot be carried over" in said and "not 200,000" in said and "not 50,257" in said
    assert "tokens for each parameter" in said and "does not predict the gain" in said
    without = plan.scale_sentence(planned(corpus, 60), corpus)
    assert "tokens a step" in without and "not predicted" in without.replace("is not", "not")


def test_the_large_run_that_the_small_ones_resemble(corpus):
    frequencies = plan.extended(corpus.frequencies, 50_257)
    share = memory(frequencies, 2**14, 0.95)["rare_share"]
    assert plan.like_run(corpus, share) == 2**14


@pytest.mark.parametrize(
    ("arms", "error"),
    [(["coupled"], "two arms"), (["adamw", "adamw"], "each arm once"), (["x", "adamw"], "no arm")],
)
def test_arms_that_cannot_be_compared_are_refused(arms, error):
    with pytest.raises(RefusedError, match=error):
        plan.check_arms(arms)


def test_the_arm_that_is_decided_on_comes_last():
    assert plan.check_arms(["coupled", "adamw"]) == ("adamw", "coupled")
    assert plan.check_arms(["coupled", "signum", "adamw"])[-1] == "coupled"
    assert plan.check_arms(["adamw", "signum"]) == ("adamw", "signum")
    assert plan.common_of(ARMS) == "adamw" and plan.common_of(["sgd", "coupled"]) == "sgd"


class TestTexts:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch, tiny):
        monkeypatch.setenv("COUPLED_ADAM_CACHE", str(tmp_path / "cache"))

    def words(self, count):
        random = np.random.default_rng(0)
        letters = random.integers(97, 123, (400, 5), dtype=np.uint8)
        known = [bytes(some).decode() for some in letters]
        return " ".join(known[min(399, k)] for k in random.zipf(1.3, count) - 1)

    def test_a_text_gets_the_vocabulary_that_it_is_long_enough_for(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text(self.words(20_000))
        corpus, batch = plan.open_text(str(path))
        assert (corpus.vocabulary_size, batch) == (300, 4)
        assert plan.open_text(str(path), 290)[0].vocabulary_size == 290

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "nothing but white space"),
            (b"a short text", "too short to compare on.*at least 1,600 tokens.*characters"),
            (b"word " * 5000, "too short|too small|only"),
            (b"\x00\x01\x02" * 100, "not plain text"),
            ("caf\u00e9 ".encode() * 100 + "caf\u00e9 ".encode("latin-1") * 100, "not UTF-8"),
            ("text ".encode("utf-16") * 100, "UTF-16"),
        ],
        ids=["empty", "short", "one word", "binary", "mixed", "utf-16"],
    )
    def test_a_text_that_is_none_gets_a_sentence(self, tmp_path, content, said):
        path = tmp_path / "a.txt"
        path.write_bytes(content)
        with pytest.raises(TextError, match=said):
            plan.open_text(str(path))

    def test_a_text_that_is_not_there_gets_a_sentence(self, tmp_path):
        with pytest.raises(TextError, match="there is no file"):
            plan.open_text(str(tmp_path / "none"))
