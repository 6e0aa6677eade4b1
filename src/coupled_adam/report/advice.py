"""The written rules of the recommendation: measured facts in, a verdict and its reasons out.

Every rule is a function from ``Facts`` to a ``Finding``; ``RULES`` lists them in the order in which
they count. Three verdicts: *go on*, *not yet*, *no*. A finding that makes the comparison itself
doubtful (an arm that is not tuned, too few pairs) leaves "not yet", whatever the numbers are; then
one that speaks against decides for "no"; then one that asks for more, for "not yet". Only what none
of them holds up, and what beats every rival, goes on.

The primary measure is the loss on validation documents that served no choice. Gains are in nats,
positive where the arm's loss is lower than the rival's, and net of the gain on the shuffled twin of
the text, in which there is nothing to learn but how often each token occurs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from coupled_adam.errors import RefusedError
from coupled_adam.palette import label
from coupled_adam.statistics import Interval, interval

PRIMARY = "loss on the validation documents that served no choice, in nats, net of the twin's"
THRESHOLD = 0.02  # nats from which on a gain counts
FALSE_CALLS = 0.05  # share of comparisons of an arm with itself that may be called a difference
LEAST_PAIRS = 3
POWER = 0.8
MOST_PAIRS = 1000  # beyond these it is not said how many would tell

GO_ON, NOT_YET, NO = "go on", "not yet", "no"
BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"
# What a finding that fired does to the verdict.
DOUBTFUL, AGAINST, HOLDS_UP, FOR, NOTE = "doubtful", "against", "holds up", "for", "note"

PLAIN = "adamw"  # beating this one alone decides nothing


@dataclass(frozen=True)
class Versus:
    """The arm beside one rival; each sequence has one number a pair of runs with the same seed.

    Attributes:
        rival: name of the other arm.
        gains: the rival's loss minus the arm's, in nats; infinite where one of them diverged, NaN
            where both did.
        twin_gains: the same on the shuffled twin, for the same seeds; empty if it was not trained.
        common_gains: the gains at one learning rate that all arms share; for information.
        retrieval: the arm's mean reciprocal rank minus the rival's; empty if it was not measured.
        classification: likewise, of the accuracy.
        speed_up: effective speed-ups: tokens that the rival needs for one that the arm needs, times
            the rival's seconds a step over the arm's; empty if they are not known.
        step_ratio: the rival's seconds a step over the arm's; NaN if it was not measured.
    """

    rival: str
    gains: tuple[float, ...]
    twin_gains: tuple[float, ...] = ()
    common_gains: tuple[float, ...] = ()
    retrieval: tuple[float, ...] = ()
    classification: tuple[float, ...] = ()
    speed_up: tuple[float, ...] = ()
    step_ratio: float = math.nan

    def __post_init__(self) -> None:
        """Refuse a twin with other pairs."""
        if self.twin_gains and len(self.twin_gains) != len(self.gains):
            raise ValueError(f"{len(self.twin_gains)} gains of the twin for {len(self.gains)}")

    @property
    def net(self) -> np.ndarray:
        """Gains of the pairs less those of the twin; of the pairs in which nothing diverged."""
        gains = np.array(self.gains, float)
        twin = np.array(self.twin_gains or np.zeros(len(gains)), float)
        finite = np.isfinite(gains) & np.isfinite(twin)
        return gains[finite] - twin[finite]


@dataclass(frozen=True)
class Facts:
    """What was measured; all that the rules may look at.

    Attributes:
        arm: name of the arm that is to be decided on.
        versus: it beside each rival.
        tuned: of every arm, whether its best learning rate has a worse neighbour on either side.
        diverged: of every arm, how many of its runs at its best rate diverged.
        planned_pairs: pairs that the plan had.
        stopped: why there are fewer pairs than planned: "" if there are not, "time" if the budget
            was used up, which has nothing to do with the numbers; "interrupted" if somebody looked.
        threshold: nats from which on a gain counts, at least 0.
        parameters: of the models that were trained.
        tokens: that each run was trained on.
        documents: of the validation text.
    """

    arm: str
    versus: tuple[Versus, ...]
    tuned: Mapping[str, bool] = field(default_factory=dict)
    diverged: Mapping[str, int] = field(default_factory=dict)
    planned_pairs: int = LEAST_PAIRS
    stopped: str = ""
    threshold: float = THRESHOLD
    parameters: int = 0
    tokens: int = 0
    documents: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be decided on."""
        if not self.versus:
            raise RefusedError(f"there is no rival beside {self.arm!r}: a decision needs one")
        if not 0 <= self.threshold < math.inf:
            raise RefusedError(f"the threshold is in nats, from 0, not {self.threshold!r}")

    @property
    def pairs(self) -> int:
        """Pairs of runs, those that diverged too."""
        return min(len(one.gains) for one in self.versus)

    @property
    def strongest(self) -> Versus:
        """The rival over which the net gain is least."""
        return min(self.versus, key=lambda one: float(one.net.mean()) if len(one.net) else math.inf)


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: its name.
        kind: what it does to the verdict if it fired.
        fired: whether it did.
        sentence: what it found, in words and with its numbers.
        numbers: the same for scripts.
    """

    rule: str
    kind: str
    fired: bool
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


Rule = Callable[[Facts], Finding]


@dataclass(frozen=True)
class Advice:
    """The recommendation.

    Attributes:
        verdict: ``GO_ON``, ``NOT_YET`` or ``NO``.
        call: what the primary measure says against the strongest rival, whatever the verdict:
            ``BETTER``, ``WORSE`` or ``CANNOT_TELL``.
        sentence: the verdict with its main reason.
        findings: of every rule, in the order of ``RULES``.
        more_pairs: pairs that would tell in all, where more of them would; else None.
    """

    verdict: str
    call: str
    sentence: str
    findings: tuple[Finding, ...]
    more_pairs: int | None

    @property
    def fired(self) -> list[Finding]:
        """The findings that bear on the verdict or have to be known."""
        return [one for one in self.findings if one.fired]


def interval_of(values: Iterable[float], share: float = FALSE_CALLS) -> Interval | None:
    """Mean and interval of the finite values.

    Args:
        values: one a pair.
        share: of intervals that miss the true mean.

    Returns:
        The interval of Student's t; None for fewer than two finite values.
    """
    finite = [value for value in values if math.isfinite(value)]
    return interval(finite, 1 - share) if len(finite) > 1 else None


def pairs_needed(
    spread: float, effect: float, power: float = POWER, share: float = FALSE_CALLS
) -> int | None:
    """Pairs with which a paired t test finds an effect.

    Args:
        spread: standard deviation of the differences, at least 0.
        effect: true mean of the differences, in the same unit, above 0.
        power: share of such comparisons that find it.
        share: of comparisons without an effect that find one.

    Returns:
        The least number from ``LEAST_PAIRS``, by the noncentral t distribution; None if more than
        ``MOST_PAIRS`` are needed.
    """
    if not effect > 0:
        raise ValueError(f"an effect to be found is above 0, not {effect!r}")
    if spread <= effect * 1e-6:
        return LEAST_PAIRS

    def power_of(n: int) -> float:
        border = stats.t.ppf(1 - share / 2, n - 1)
        return float(stats.nct.sf(border, n - 1, effect / spread * math.sqrt(n)))

    if power_of(MOST_PAIRS) < power:
        return None
    numbers = range(LEAST_PAIRS, MOST_PAIRS + 1)
    return numbers[bisect_left(numbers, power, key=power_of)]


def call(facts: Facts) -> str:
    """Better than every rival, worse than one of them, or neither can be told.

    Comparisons of equal arms are called better or worse in at most ``FALSE_CALLS`` of cases: half
    of it is spent on "better", which needs every interval above zero, and half on "worse", which is
    shared among the rivals.
    """
    mine = [interval_of(one.net) for one in facts.versus]
    if all(one is not None and one.low > 0 for one in mine):
        return BETTER
    strict = [interval_of(one.net, FALSE_CALLS / len(facts.versus)) for one in facts.versus]
    if any(one is not None and one.high < 0 for one in strict):
        return WORSE
    return CANNOT_TELL


def unfinished(facts: Facts) -> Finding:
    """Whoever looks before the planned end may stop at a lucky moment."""
    fired = facts.stopped == "interrupted" and facts.pairs < facts.planned_pairs
    return Finding(
        "unfinished", DOUBTFUL, fired,
        f"{facts.pairs} of {facts.planned_pairs} planned pairs are done"
        + ("; the same command goes on" if fired else ""),
        {"pairs": facts.pairs, "planned": facts.planned_pairs, "stopped": facts.stopped},
    )  # fmt: skip


def too_few_pairs(facts: Facts) -> Finding:
    """One lucky seed must not decide."""
    return Finding(
        "too_few_pairs", DOUBTFUL, facts.pairs < LEAST_PAIRS,
        f"{_count(facts.pairs, 'pair')} of runs; a verdict needs {LEAST_PAIRS}",
        {"pairs": facts.pairs, "least": LEAST_PAIRS},
    )  # fmt: skip


def not_tuned(facts: Facts) -> Finding:
    """An arm at an unfair learning rate is no rival, and no candidate."""
    names = [
        one for one in (facts.arm, *(v.rival for v in facts.versus)) if not facts.tuned.get(one)
    ]
    if names:
        sentence = (
            f"not tuned: the best learning rate of {_and(map(label, names))} lies at the edge of "
            "those that were tried"
        )
    else:
        sentence = "every arm's best learning rate has a worse one on either side"
    return Finding("not_tuned", DOUBTFUL, bool(names), sentence, {"arms": names})


def rival_diverged(facts: Facts) -> Finding:
    """A rival that blows up at its best rate was given a rate that is not its best."""
    names = [one.rival for one in facts.versus if facts.diverged.get(one.rival, 0)]
    sentence = "no run of a rival diverged"
    if names:
        counted = [f"{_count(facts.diverged[one], 'run')} of {label(one)}" for one in names]
        sentence = f"{_and(counted)} diverged at the best rate that tuning found: tune again"
    return Finding(
        "rival_diverged", DOUBTFUL, bool(names), sentence, {n: facts.diverged[n] for n in names}
    )


def arm_diverged(facts: Facts) -> Finding:
    """A run that blew up is a result, and is never left out."""
    count, rivals = facts.diverged.get(facts.arm, 0), [one.rival for one in facts.versus]
    fired = bool(count) and not any(facts.diverged.get(one, 0) for one in rivals)
    what = f"{_count(count, 'run')} of {label(facts.arm)} diverged" if count else "none diverged"
    if fired:
        what += ", and none of its rivals"
    return Finding("arm_diverged", AGAINST, fired, what, {"runs": count})


def worse_than_a_rival(facts: Facts) -> Finding:
    """A loss that is higher than a rival's, beyond what seeds explain."""
    share = FALSE_CALLS / len(facts.versus)
    found = {one.rival: interval_of(one.net, share) for one in facts.versus}
    names = [name for name, one in found.items() if one is not None and one.high < 0]
    if names:
        sentence = f"{label(facts.arm)} is worse than {_gains(facts, names, found)}"
    else:
        sentence = f"{label(facts.arm)} is not shown to be worse than any rival"
    return Finding("worse_than_a_rival", AGAINST, bool(names), sentence, _numbers(found, names))


def gain_too_small(facts: Facts) -> Finding:
    """A gain that would count is excluded, so that more pairs would not change the answer."""
    found = {one.rival: interval_of(one.net) for one in facts.versus}
    limit = facts.threshold
    names = [n for n, one in found.items() if one is not None and one.high < limit]
    if names:
        sentence = (
            f"a gain of {limit:g} nats or more, from which on it counts, is excluded over "
            f"{_gains(facts, names, found)}"
        )
    else:
        sentence = f"a gain of {limit:g} nats is not excluded over any rival"
    return Finding("gain_too_small", AGAINST, bool(names), sentence, _numbers(found, names))


def faster_but_worse(facts: Facts) -> Finding:
    """A quicker step does not make up for a higher loss."""
    names = []
    for one in facts.versus:
        found = interval_of(one.net)
        if found is not None and found.high < 0 and one.step_ratio > 1:
            names.append(one.rival)
    ratios = {one.rival: one.step_ratio for one in facts.versus if one.rival in names}
    sentence = "no step that is quicker and leads to a higher loss"
    if names:
        listed = [f"{100 * (ratios[n] - 1):.1f} % than {label(n)}" for n in names]
        sentence = f"a step is quicker by {_and(listed)}, but the loss is higher"
    return Finding("faster_but_worse", AGAINST, bool(names), sentence, ratios)


def slower_in_all(facts: Facts) -> Finding:
    """A gain for each token that is lost again in time."""
    found = {one.rival: interval_of(one.speed_up) for one in facts.versus}
    names = [name for name, one in found.items() if one is not None and one.high < 1]
    sentence = "it is not shown to need more time for the same loss than a rival"
    if names:
        listed = [f"{found[n].mean:.2f} times as fast as {label(n)}" for n in names]  # type: ignore[union-attr]
        sentence = f"tokens and time of a step together, {label(facts.arm)} is {_and(listed)}"
    return Finding("slower_in_all", AGAINST, bool(names), sentence, _numbers(found, names))


def only_plain_adam(facts: Facts) -> Finding:
    """A decision for coupling has to beat the strongest rival, not only Adam as usually set."""
    fired = {one.rival for one in facts.versus} == {PLAIN} and facts.arm != PLAIN
    rivals = _and(label(one.rival) for one in facts.versus)
    return Finding(
        "only_plain_adam", HOLDS_UP, fired,
        f"compared with {rivals}"
        + (" only: add adamw-memory, which costs one number to change" if fired else ""),
        {"rivals": [one.rival for one in facts.versus]},
    )  # fmt: skip


def no_twin(facts: Facts) -> Finding:
    """Without the shuffled twin it is not known what of the gain comes from counts alone."""
    names = [one.rival for one in facts.versus if not one.twin_gains]
    return Finding(
        "no_twin", HOLDS_UP, bool(names),
        "the shuffled twin of the text was not trained, so that gains are not net" if names
        else "gains are net of those on the shuffled twin of the text",
        {"rivals": names},
    )  # fmt: skip


def interval_includes_zero(facts: Facts) -> Finding:
    """It cannot be told whether there is a gain at all."""
    found = {one.rival: interval_of(one.net) for one in facts.versus}
    names = [n for n, one in found.items() if one is not None and one.low <= 0 <= one.high]
    unknown = [name for name, one in found.items() if one is None]
    sentence = "the interval of the gain excludes zero over every rival"
    if names:
        sentence = f"the interval includes zero over {_gains(facts, names, found)}"
    elif unknown:
        sentence = f"there is no interval yet over {_and(map(label, unknown))}"
    return Finding(
        "interval_includes_zero", HOLDS_UP, bool(names or unknown), sentence,
        _numbers(found, names),
    )  # fmt: skip


def gain_below_threshold(facts: Facts) -> Finding:
    """There is a gain, but it is not shown to be large enough to count."""
    found = {one.rival: interval_of(one.net) for one in facts.versus}
    limit = facts.threshold
    names = [n for n, one in found.items() if one is not None and one.low > 0 and one.mean < limit]
    sentence = f"no gain that is real but below {limit:g} nats"
    if names:
        sentence = f"real, but below the {limit:g} nats that count: {_gains(facts, names, found)}"
    return Finding("gain_below_threshold", HOLDS_UP, bool(names), sentence, _numbers(found, names))


def worse_retrieval(facts: Facts) -> Finding:
    """A better language model whose embeddings find less."""
    return _worse(facts, "retrieval", "retrieval (mean reciprocal rank)")


def worse_classification(facts: Facts) -> Finding:
    """A better language model whose embeddings tell classes apart less well."""
    return _worse(facts, "classification", "classification (accuracy)")


def beats_every_rival(facts: Facts) -> Finding:
    """The one rule that speaks for it: a gain that is real, and counts, over each rival."""
    found = {one.rival: interval_of(one.net) for one in facts.versus}
    names = [
        n for n, one in found.items()
        if one is not None and one.low > 0 and one.mean >= facts.threshold
    ]  # fmt: skip
    fired = len(names) == len(found)
    if fired:
        sentence = f"{label(facts.arm)} has the lower loss beside {_gains(facts, names, found)}"
    else:
        rest = [name for name in found if name not in names]
        sentence = f"no gain that is real and counts over {_and(map(label, rest))}"
    return Finding("beats_every_rival", FOR, fired, sentence, _numbers(found, names))


def counts_alone(facts: Facts) -> Finding:
    """A gain on the text that its twin shows too: it comes from counts, not from context."""
    names = []
    for one in facts.versus:
        gross, net = interval_of(one.gains), interval_of(one.net)
        if one.twin_gains and gross is not None and net is not None:
            counts = gross.low > 0 and gross.mean >= facts.threshold
            if counts and not (net.low > 0 and net.mean >= facts.threshold):
                names.append(one.rival)
    sentence = "no gain that vanishes when the twin's is taken off"
    if names:
        sentence = (
            f"the gain over {_and(map(label, names))} is there on the shuffled twin too, where "
            "only counts can be learned"
        )
    return Finding("counts_alone", NOTE, bool(names), sentence, {"rivals": names})


def one_document(facts: Facts) -> Finding:
    """Losses on pieces of one document say nothing of other documents."""
    fired = facts.documents < 2
    sentence = f"{_count(facts.documents, 'validation document')}"
    if fired:
        sentence += ": what other documents would show is not measured"
    return Finding("one_document", NOTE, fired, sentence, {"documents": facts.documents})


def at_this_size(facts: Facts) -> Finding:
    """Where it was measured; always said."""
    return Finding(
        "at_this_size", NOTE, True,
        f"measured with {facts.parameters:,} parameters on {facts.tokens:,} tokens a run: the sign "
        "of a difference can change with size, so it speaks for no other size by itself",
        {"parameters": facts.parameters, "tokens": facts.tokens},
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    unfinished,
    too_few_pairs,
    not_tuned,
    rival_diverged,
    arm_diverged,
    worse_than_a_rival,
    gain_too_small,
    faster_but_worse,
    slower_in_all,
    only_plain_adam,
    no_twin,
    interval_includes_zero,
    gain_below_threshold,
    worse_retrieval,
    worse_classification,
    beats_every_rival,
    counts_alone,
    one_document,
    at_this_size,
)
# Findings that more pairs may settle.
_MORE_PAIRS = ("unfinished", "too_few_pairs", "interval_includes_zero", "gain_below_threshold")


def advise(facts: Facts, rules: Sequence[Rule] = RULES) -> Advice:
    """The recommendation: every rule is asked, and those that fired decide.

    Args:
        facts: what was measured.
        rules: in the order in which they count.

    Returns:
        The verdict with its reasons.
    """
    findings = tuple(rule(facts) for rule in rules)
    # Neither for nor against, and nothing holds it up: then nothing is shown.
    verdict, reasons = NOT_YET, [one for one in findings if one.kind == FOR]
    for kind, leads_to in ((DOUBTFUL, NOT_YET), (AGAINST, NO), (HOLDS_UP, NOT_YET), (FOR, GO_ON)):
        found = [one for one in findings if one.fired and one.kind == kind]
        if found:
            verdict, reasons = leads_to, found
            break
    more = None
    settled = [one for one in reasons if one.rule in _MORE_PAIRS]
    if verdict == NOT_YET and settled:
        more = _pairs_that_would_tell(facts)
    sentence = f"{verdict.capitalize()}: {'; '.join(one.sentence for one in reasons)}."
    if settled and more is not None and more > facts.pairs:
        sentence += f" About {more} pairs in all would tell, by the spread that was seen."
    elif settled and more is None and facts.pairs >= LEAST_PAIRS:
        sentence += f" More than {MOST_PAIRS:,} pairs would be needed to tell: take more text."
    return Advice(verdict, call(facts), sentence, findings, more)


def _pairs_that_would_tell(facts: Facts) -> int | None:
    """Pairs to find the gain that was seen, or the least that counts, over each rival."""
    most = LEAST_PAIRS
    for one in facts.versus:
        net = one.net
        if len(net) < 2:
            continue
        effect = max(abs(float(net.mean())), facts.threshold)
        if effect == 0:
            return None
        needed = pairs_needed(float(net.std(ddof=1)), effect)
        if needed is None:
            return None
        most = max(most, needed)
    return most


def _worse(facts: Facts, what: str, called: str) -> Finding:
    found = {one.rival: interval_of(getattr(one, what)) for one in facts.versus}
    names = [name for name, one in found.items() if one is not None and one.high < 0]
    if not any(found.values()):
        sentence = f"{called} was not measured"
    elif names:
        listed = [f"{-found[n].mean:.3f} below {label(n)}" for n in names]  # type: ignore[union-attr]
        sentence = f"{called} is worse: {_and(listed)}"
    else:
        sentence = f"{called} is not shown to be worse than any rival's"
    return Finding(f"worse_{what}", HOLDS_UP, bool(names), sentence, _numbers(found, names))


def _gains(facts: Facts, names: Iterable[str], found: Mapping[str, Interval | None]) -> str:
    listed = []
    for name in names:
        one = found[name]
        assert one is not None
        listed.append(f"{label(name)} (gain {one.mean:+.3f}, {one.low:+.3f} to {one.high:+.3f})")
    return _and(listed)


def _numbers(found: Mapping[str, Interval | None], names: Sequence[str]) -> dict[str, Any]:
    intervals = {name: one._asdict() for name, one in found.items() if one is not None}
    return {"rivals": list(names), "intervals": intervals}


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
