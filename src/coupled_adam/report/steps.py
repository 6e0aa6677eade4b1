"""What follows a verdict: the next steps with their sizes, the way back, and a cost sheet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from scipy import stats

from coupled_adam.errors import RefusedError
from coupled_adam.report.advice import FALSE_CALLS, GO_ON, NO, POWER, Advice, Facts

BASE_SHARE = 0.10  # of users who do what is counted, where nothing else is known


class Step(NamedTuple):
    """One of the next steps: what it is called, and what to do."""

    name: str
    text: str


def users_needed(
    share: float, lift: float, power: float = POWER, false_calls: float = FALSE_CALLS
) -> int:
    """Users in each of two groups with which a test of two shares finds a difference.

    Args:
        share: of users who do what is counted, without the change, in (0, 1).
        lift: relative change of it, such as 0.02 for 10 % becoming 10.2 %; not 0.
        power: share of such tests that find it.
        false_calls: share of tests without a difference that find one.

    Returns:
        The number, by the normal approximation.

    Raises:
        RefusedError: if a share is outside (0, 1), or there is no change to be found.
    """
    other = share * (1 + lift)
    if not (0 < share < 1 and 0 < other < 1) or lift == 0:
        raise RefusedError(
            f"shares of users are in (0, 1) and differ: {share!r} with a change of {lift!r} do not"
        )
    z = stats.norm.ppf(1 - false_calls / 2) + stats.norm.ppf(power)
    variance = share * (1 - share) + other * (1 - other)
    return math.ceil(z**2 * variance / (other - share) ** 2)


def queries_needed(
    spread: float, difference: float, power: float = POWER, false_calls: float = FALSE_CALLS
) -> int:
    """Queries, each answered by both, with which a paired test finds a difference of their means.

    Args:
        spread: standard deviation of the difference of one query, above 0.
        difference: of the means; not 0.
        power: share of such tests that find it.
        false_calls: share of tests without a difference that find one.

    Returns:
        The number, by the normal approximation.

    Raises:
        RefusedError: if there is no spread, or no difference to be found.
    """
    if not spread > 0 or difference == 0:
        raise RefusedError(f"a difference needs a spread above 0: {difference!r}, {spread!r}")
    z = stats.norm.ppf(1 - false_calls / 2) + stats.norm.ppf(power)
    return math.ceil((z * spread / difference) ** 2)


def next_steps(facts: Facts, advice: Advice) -> list[Step]:
    """What to do after the verdict; for "no" and "not yet" only what these leave to do."""
    if advice.verdict == NO:
        return [
            Step("stay", "Keep the rival that did best; its setting is in the table of rates."),
            Step(
                "ask again", "Compare again if the text, the vocabulary or the size of the run "
                "changes by a factor of ten: the sign can change with it.",
            ),
        ]  # fmt: skip
    if advice.verdict != GO_ON:
        text = "Give the same command more minutes, which buy pairs first and then more data."
        if advice.more_pairs is not None and advice.more_pairs > facts.pairs:
            text += f" About {advice.more_pairs} pairs would tell."
        return [Step("tell", text)]
    tokens, parameters = facts.tokens, facts.parameters
    users = {lift: users_needed(BASE_SHARE, lift) for lift in (0.01, 0.02, 0.05)}
    listed = ", ".join(f"{100 * lift:g} % takes {n:,}" for lift, n in users.items())
    return [
        Step(
            "second size", f"Repeat the comparison at about four times the tokens ({4 * tokens:,}) "
            f"and of the parameters ({4 * parameters:,}) before a large run, each arm tuned anew. "
            "Go on only if the gain is still there: published gains shrink with size.",
        ),
        Step(
            "A/B", "Test on your own measure, chosen before. For a share of users that stands at "
            f"{100 * BASE_SHARE:g} %, finding a relative change of {listed} users in each group "
            f"(power {100 * POWER:g} %). A gain in loss does not say how large that change is; "
            "where both answer the same queries, far fewer are enough.",
        ),
        Step(
            "canary", "Give it 1 %, then 10 % of the traffic, a day each. Stop and go back if the "
            "measure falls below that of the old model by more than its own daily spread, if "
            "errors or waiting times rise by a tenth, or if any guarded group of users is worse "
            "off.",
        ),
        way_back(),
    ]  # fmt: skip


def way_back() -> Step:
    """How to return to AdamW in the middle of a run, and what stays changed."""
    return Step(
        "way back", "transfer_state(coupled_optimizer, adamw_optimizer) hands the state over in "
        "the middle of a run: every token gets the shared second moment. Weights are not touched. "
        "What stays changed: the mean of the embeddings, which is where coupled steps left it.",
    )  # fmt: skip


@dataclass(frozen=True)
class CostSheet:
    """What introducing it costs, and from which size of run on it pays.

    Attributes:
        work_hours: of people, for change, comparison, A/B and canary.
        machine_hours: of the comparison.
        work_price: of an hour of work.
        machine_price: of an hour of the machine that the planned run needs.
        planned_hours: machine hours of the planned run; 0 if they are not known.
        speed_up: effective speed-up that was measured; NaN if it was not.
    """

    work_hours: float = 16.0
    machine_hours: float = 0.0
    work_price: float = 80.0
    machine_price: float = 2.5
    planned_hours: float = 0.0
    speed_up: float = math.nan

    def __post_init__(self) -> None:
        """Refuse what is no price and no time."""
        for name in ("work_hours", "machine_hours", "work_price", "machine_price", "planned_hours"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RefusedError(f"{name} must be a number from 0, not {getattr(self, name)!r}")

    @property
    def cost(self) -> float:
        """Of the introduction."""
        return self.work_hours * self.work_price + self.machine_hours * self.machine_price

    @property
    def saved_share(self) -> float:
        """Share of a run's machine hours that are saved for the same loss; 0 if none is."""
        return max(0.0, 1 - 1 / self.speed_up) if self.speed_up > 0 else 0.0

    @property
    def saved(self) -> float:
        """Saved in the planned run, at the speed-up that was measured here."""
        return self.planned_hours * self.machine_price * self.saved_share

    @property
    def break_even_hours(self) -> float:
        """Machine hours of training from which on it pays; infinite if nothing is saved."""
        each = self.machine_price * self.saved_share
        return self.cost / each if each > 0 else math.inf
