"""A claim shows what was measured, and stops the notebook when it does not hold."""

import math

import pytest

from coupled_adam.claims import MIME_TYPE, Claim, ClaimError, claim


def test_a_claim_that_holds_is_printed_with_its_bound(capsys):
    claim("the mean moves", 0.971, at_least=0.9)
    assert capsys.readouterr().out == "✓ the mean moves: 0.971 (at least 0.9)\n"


@pytest.mark.parametrize(
    "measured, bounds",
    [
        (0.5, {"at_least": 0.9}),
        (0.5, {"at_most": 0.1}),
        (3.0, {"at_least": 0.0, "at_most": 2.0}),
        (math.nan, {"at_least": 0.0}),
        (math.nan, {"at_most": 0.0}),
    ],
)
def test_a_claim_that_does_not_hold_raises(measured, bounds, capsys):
    with pytest.raises(ClaimError, match="the mean moves"):
        claim("the mean moves", measured, **bounds)
    assert capsys.readouterr().out == ""


def test_the_bounds_themselves_hold():
    assert Claim("x", 1.0, at_least=1.0, at_most=1.0).holds


def test_a_claim_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="has no bound"):
        claim("the mean moves", 1.0)


def test_the_anchor_is_a_valid_fragment():
    assert Claim("p_i < 1 & so on!", 0.0, at_most=1.0).anchor == "claim-p-i-1-so-on"


def test_the_notebook_output_is_escaped_and_carries_the_numbers():
    made = Claim("p < 1 & q", 0.25, at_most=1.0)
    bundle = made._repr_mimebundle_()
    assert bundle["text/html"] == (
        '<p class="claim" id="claim-p-1-q">✓ p &lt; 1 &amp; q: 0.25 (at most 1)</p>'
    )
    assert bundle[MIME_TYPE] == {
        "statement": "p < 1 & q",
        "measured": 0.25,
        "at_least": None,
        "at_most": 1.0,
        "holds": True,
        "anchor": "claim-p-1-q",
    }


@pytest.mark.parametrize(
    "measured, shown",
    [
        (0.0, "0"),
        (0.97123, "0.971"),
        (-12.345, "-12.3"),
        (12345.6, "12346"),
        (1e-7, "1e-7"),
        (-2.34e6, "-2.3e6"),
    ],
)
def test_numbers_are_short_and_never_rounded_away(measured, shown):
    assert Claim("x", measured, at_least=-20).value == shown
