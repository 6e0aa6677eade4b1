"""The plan of a comparison within a time budget: made from the text and a short probe, said first.

More minutes buy more pairs of seeds first and then more data, in the order of ``STAIRS``. What is
planned is the small GPT of the book; ``Target`` says what the large run will be, if one is known,
and the small runs are given the batch and beta2 with which as large a share of the vocabulary is
rare within the memory of Adam's second moment. By chapter 10 this share goes with the drift of the
embeddings and does *not* predict the gain, so that no more than that is claimed of it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from coupled_adam import text
from coupled_adam.arms import arm
from coupled_adam.errors import RefusedError
from coupled_adam.experiments import evidence, recorded
from coupled_adam.experiments.evidence import Setting, memory
from coupled_adam.experiments.predictor import LEAST_STEPS
from coupled_adam.files import digest_of
from coupled_adam.gpt import GPT, GPTConfig
from coupled_adam.palette import label
from coupled_adam.report.advice import LEAST_PAIRS, PLAIN
from coupled_adam.text import Corpus, TextError
from coupled_adam.training import DivergedError, Step, train

ARMS = (recorded.ADAM, recorded.MEMORY, recorded.COUPLED)
# Layers, heads, width and context: the small GPT of the book.
SHAPE: dict[str, Any] = {"layers": 2, "heads": 4, "width": 128, "context": 128}
# Vocabulary and sequences in a step, largest first: the first that the text is long enough for.
SIZES = ((4096, 4), (2048, 2), (1024, 1))
BATCHES, BETA2S = (1, 2, 4, 8, 16, 32), (0.9, 0.95, 0.98, 0.99)
# Pairs of seeds, and tokens of a run as a multiple of LEAST_STEPS steps: what more minutes buy, in
# this order. Where the text is too short for a multiple, all of it is taken.
STAIRS = (
    (3, 1), (4, 1), (5, 1), (5, 2), (5, 4), (8, 4), (8, 8), (8, 16), (10, 16), (10, 32), (10, 64),
)  # fmt: skip
TUNING_SEEDS = (100, 101)
_TWO_TUNING_SEEDS = 8  # from so many pairs on tuning has two seeds
LEARNING_RATE = 1e-3  # which the rates of the embeddings are multiples of
EVALUATIONS, EVALUATION_TOKENS = 4, 4096
_RANKS_OF_A_LINE = 20  # of fewer the law is taken to be Zipf's
_CHARACTERS = 4  # of a token, about, for messages
_PROBE_BLOCKS, _PROBE_STEPS = 3, 8
_SHARE_OF_TIME = 0.9  # of the budget is planned; the rest is for what the probe does not see
_START_OF_WORKERS = 15.0  # seconds
_SLOWER_TOGETHER = 1.25  # a run, where others run beside it


@dataclass(frozen=True)
class Target:
    """The run that is planned, of which the comparison is to be a small model.

    Attributes:
        step_tokens: tokens of a step.
        beta2: of Adam's second moment, in [0, 1).
        vocabulary: tokens of the vocabulary.
        steps: of the run.
        parameters: of the model; 0 if that is not said.
    """

    step_tokens: int
    beta2: float = 0.95
    vocabulary: int = 50_257
    steps: int = 0
    parameters: int = 0

    @property
    def tokens(self) -> int:
        """Of the run; 0 if its steps are not said."""
        return self.steps * self.step_tokens


_KEYS = {
    "tokens-per-step": "step_tokens",
    "beta2": "beta2",
    "vocabulary": "vocabulary",
    "steps": "steps",
    "parameters": "parameters",
}


def read_target(written: str) -> Target:
    """A planned run as it stands on the command line.

    Args:
        written: ``tokens-per-step=98304,beta2=0.95,vocabulary=50257,steps=200000``; all but the
            first may be left out, ``parameters=1.2e9`` may be added.

    Raises:
        RefusedError: if it cannot be read, or a number is impossible.
    """
    found: dict[str, float] = {}
    for part in written.split(","):
        key, _, value = part.strip().partition("=")
        try:
            if key not in _KEYS:
                raise ValueError
            found[_KEYS[key]] = float(value)
        except ValueError:
            raise RefusedError(
                f"--plan: {part.strip()!r} is not one of {', '.join(_KEYS)} with = and a number"
            ) from None
    if "step_tokens" not in found:
        raise RefusedError("--plan needs tokens-per-step=, the tokens of a step of the large run")
    beta2 = found.pop("beta2", 0.95)
    if not 0 <= beta2 < 1:
        raise RefusedError(f"--plan: beta2 is in [0, 1), not {beta2:g}")
    for name, number in found.items():
        most = 1e7 if name == "vocabulary" else 1e18
        if not 2 <= number <= most:
            raise RefusedError(f"--plan: {name} is a number from 2 to {most:g}, not {number:g}")
    return replace(Target(0, beta2), **{name: int(number) for name, number in found.items()})


class Probe(NamedTuple):
    """What a short measurement says of time.

    Attributes:
        step_seconds: of each arm, one number a block; the blocks of the arms stand in turns
            (ABBA), so that a machine that slows down favours none.
        run_seconds: what a run takes besides its steps: evaluations and measures.
    """

    step_seconds: Mapping[str, Sequence[float]]
    run_seconds: float

    def step(self, name: str) -> float:
        """Seconds of an arm's step: the median over its blocks."""
        return float(np.median(self.step_seconds[name]))


@dataclass(frozen=True)
class Plan:
    """What will be trained.

    Attributes:
        arms: names; the last one is decided on, the others are its rivals.
        vocabulary: tokens of the vocabulary.
        batch_size: sequences in a step.
        beta2: of the second moment.
        tokens: of a run.
        pairs: seeds with which every arm is trained after tuning.
        tuning_seeds: seeds of the tuning runs.
        rates: first grid of each arm, multiples of the base rate; the same number for each.
        minutes: the budget.
        seconds: that are expected, with ``workers`` runs at a time.
        workers: runs at a time.
        step_seconds: of each arm, see ``Probe``.
        run_seconds: likewise.
        target: the large run, or None.
        shape: of the model.
        fingerprint: of the text.
        labels: fingerprint of the labelled texts; "" without any.
    """

    arms: tuple[str, ...]
    vocabulary: int
    batch_size: int
    beta2: float
    tokens: int
    pairs: int
    tuning_seeds: tuple[int, ...]
    rates: Mapping[str, tuple[float, ...]]
    minutes: float
    seconds: float
    workers: int
    step_seconds: Mapping[str, tuple[float, ...]]
    run_seconds: float
    target: Target | None
    shape: dict[str, Any]
    fingerprint: str
    labels: str = ""

    @property
    def arm(self) -> str:
        """The arm that is decided on."""
        return self.arms[-1]

    @property
    def rivals(self) -> tuple[str, ...]:
        """The arms beside which it stands."""
        return self.arms[:-1]

    @property
    def steps(self) -> int:
        """Of a run."""
        return self.tokens // (self.batch_size * self.shape["context"])

    @property
    def model(self) -> GPTConfig:
        """The shape of the model."""
        return GPTConfig(self.vocabulary, **self.shape)

    @property
    def parameters(self) -> int:
        """Of the model."""
        return sum(parameter.numel() for parameter in GPT(self.model).parameters())

    def setting(self, corpus: Corpus) -> Setting:
        """The setting of the runs, on tokens that are spread over the text."""
        return _setting(
            corpus.spread(self.tokens), self.model, self.batch_size, self.beta2, self.steps
        )

    def sentences(self) -> list[str]:
        """The plan in words, before anything is trained."""
        step = self.batch_size * self.shape["context"]
        grids = {
            name: ", ".join(f"{LEARNING_RATE * multiplier:.3g}" for multiplier in self.rates[name])
            for name in self.arms
        }
        listed = "; ".join(f"{label(name)}: {grid}" for name, grid in grids.items())
        seeds = "1 seed" if len(self.tuning_seeds) == 1 else f"{len(self.tuning_seeds)} seeds"
        said = [
            f"Model: {self.parameters:,} parameters, vocabulary {self.vocabulary:,}; "
            f"{self.tokens:,} tokens a run in {self.steps:,} steps of {step:,}, beta2 "
            f"{self.beta2:g}.",
            f"Arms: {', '.join(map(label, self.rivals))} and, to be decided on, {label(self.arm)}.",
            f"Tuning: {len(self.rates[self.arm])} learning rates of the embeddings for each arm "
            f"({listed}), {seeds} each; more at an edge.",
            f"Then {self.pairs} fresh seeds with every arm at its own best rate, at the best rate "
            "of plain Adam, and on the shuffled twin of the text.",
            f"Expected: {_minutes(self.seconds)} of {self.minutes:g} minutes, {self.workers} "
            f"run{'s' if self.workers > 1 else ''} at a time.",
        ]
        return said

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object, which :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            RefusedError: if it is none.
        """
        try:
            values = dict(values)
            for name in ("arms", "tuning_seeds"):
                values[name] = tuple(values[name])
            for name in ("rates", "step_seconds"):
                values[name] = {key: tuple(some) for key, some in values[name].items()}
            target = values["target"]
            values["target"] = None if target is None else Target(**target)
            return cls(**values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise RefusedError(
                f"the plan cannot be read ({error}): it was changed by hand, or written by "
                "another version; choose another --out"
            ) from error


def open_text(source: str, vocabulary: int | None = None) -> tuple[Corpus, int]:
    """A text with a vocabulary that it is long enough for, and the sequences of a step.

    Args:
        source: "wikipedia", or a file or folder.
        vocabulary: number of tokens; None for the first of ``SIZES`` that fits.

    Returns:
        The corpus and the batch size.

    Raises:
        TextError: if it cannot be read, or is too short; the message says how much is needed.
    """
    sizes = SIZES if vocabulary is None else [(vocabulary, batch) for _, batch in SIZES]
    refused: list[TextError] = []
    found = 0
    for size, batch in sizes:
        try:
            corpus = _load(source, size)
        except TextError as error:
            refused.append(error)
            continue
        found = max(found, len(corpus.train))
        if len(corpus.train) >= least_tokens(batch):
            return corpus, batch
    if not found and len({str(error) for error in refused}) == 1:  # not for its length
        raise refused[-1]
    needed = least_tokens(sizes[-1][1])
    why = f"it has {found:,} tokens to train on" if found else str(refused[-1])
    raise TextError(
        f"{source} is too short to compare on: {why}; at least {needed:,} tokens are needed, about "
        f"{_CHARACTERS * needed * 10 // 9:,} characters of ordinary text"
    )


def _load(source: str, vocabulary: int) -> Corpus:
    if source == "wikipedia":
        return text.wikipedia_sample(vocabulary)
    return text.load(source, vocabulary)


def least_tokens(batch: int, context: int | None = None) -> int:
    """Tokens of the shortest run: ``LEAST_STEPS`` steps."""
    return LEAST_STEPS * batch * (SHAPE["context"] if context is None else context)


def check_minutes(minutes: float) -> None:
    """Refuse a budget that is none.

    Raises:
        RefusedError: if it is not a number above 0.
    """
    if not 0 < minutes < math.inf:
        raise RefusedError(f"--minutes must be a number above 0, not {minutes!r}")


def check_arms(arms: Sequence[str]) -> tuple[str, ...]:
    """The arms in order, the one that is decided on last.

    Args:
        arms: names; the last one is decided on unless "coupled" is among them.

    Raises:
        RefusedError: if there are fewer than two, one twice, or an unknown one.
    """
    names = [arm(name).name for name in arms]
    if len(set(names)) < len(names):
        raise RefusedError(f"--arms: each arm once, not {', '.join(names)}")
    if len(names) < 2:
        raise RefusedError("--arms: a comparison needs two arms at least")
    decided = recorded.COUPLED if recorded.COUPLED in names else names[-1]
    return (*(name for name in names if name != decided), decided)


def common_of(arms: Sequence[str]) -> str:
    """The arm whose best rate all arms are trained at: what a user of AdamW has in the recipe."""
    return PLAIN if PLAIN in arms else arms[0]


def probe(
    corpus: Corpus,
    arms: Sequence[str],
    batch: int,
    *,
    shape: Mapping[str, Any] | None = None,
    measure: Any = evidence.measures,
    steps: int = _PROBE_STEPS,
) -> Probe:
    """Measure the time of a step of each arm, and of what a run does besides.

    Args:
        corpus: the text.
        arms: names.
        batch: sequences in a step.
        shape: of the model; ``SHAPE`` if not given.
        measure: what is measured of a finished run.
        steps: of a block; the first is not counted.

    Returns:
        The seconds.
    """
    model = GPTConfig(corpus.vocabulary_size, **(SHAPE if shape is None else shape))
    config = replace(_setting(corpus, model, batch, 0.95, steps).config, evaluate_every=steps)
    quiet = replace(config, evaluation_tokens=model.context)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for block in range(_PROBE_BLOCKS):
        for name in arms if block % 2 == 0 else [*arms][::-1]:
            stamps = [time.perf_counter()]

            def stamp(_: Step, stamps: list[float] = stamps) -> None:
                stamps.append(time.perf_counter())

            try:
                train(replace(quiet, optimizer=name), corpus, observe=stamp, progress=False)
            except DivergedError as error:
                raise RefusedError(
                    f"{label(name)} diverges within {steps} steps: {error}"
                ) from None
            seconds[name].append(float(np.median(np.diff(stamps)[1:])))
    start = time.perf_counter()
    run = train(replace(config, optimizer=arms[0]), corpus, progress=False)
    trained = time.perf_counter()
    measure(run, corpus)
    # Twice evaluated there, at the beginning and at the end.
    once = max(0.0, trained - start - steps * float(np.median(seconds[arms[0]]))) / 2
    return Probe(seconds, (EVALUATIONS + 1) * once + time.perf_counter() - trained)


def make_plan(
    corpus: Corpus,
    batch: int,
    minutes: float,
    arms: Sequence[str],
    probed: Probe,
    *,
    target: Target | None = None,
    workers: int | None = None,
    shape: Mapping[str, Any] | None = None,
    labels: str = "",
) -> Plan:
    """The plan that the budget allows.

    Args:
        corpus: the text.
        batch: sequences in a step, as from ``open_text``.
        minutes: the budget, above 0.
        arms: as from ``check_arms``.
        probed: the time of a step and of a run, with this batch.
        target: the large run, or None.
        workers: runs at a time; the cores if not given.
        shape: of the model; ``SHAPE`` if not given.
        labels: see ``Plan``.

    Returns:
        The plan of the last of ``STAIRS`` that text and budget allow.

    Raises:
        RefusedError: if the budget does not hold three pairs; the message says how much would.
    """
    check_minutes(minutes)
    if workers is None:
        workers = os.cpu_count() or 1
    shape = dict(SHAPE if shape is None else shape)
    grids = {name: recorded.GRIDS.get(name, recorded.GRIDS[PLAIN]) for name in arms}
    allowed = _SHARE_OF_TIME * 60 * minutes
    probed_batch = batch

    def seconds_of(pairs: int, steps: int, batch: int) -> float:
        scale = batch / probed_batch  # a step's time goes about with its tokens
        runs = {name: steps * scale * probed.step(name) + probed.run_seconds for name in arms}
        tuned = sum((len(grids[name]) + 1) * seconds for name, seconds in runs.items())
        at_common = sum(seconds for name, seconds in runs.items() if name != common_of(arms))
        total = len(_tuning_seeds(pairs)) * tuned + pairs * (2 * sum(runs.values()) + at_common)
        if workers == 1:
            return total
        return _SLOWER_TOGETHER * total / workers + _START_OF_WORKERS

    beta2 = 0.95
    if target is not None:
        batches = [
            some
            for some in BATCHES
            if least_tokens(some, shape["context"]) <= len(corpus.train)
            and seconds_of(LEAST_PAIRS, LEAST_STEPS, some) <= allowed
        ]
        batch, beta2 = match(corpus, target, shape["context"], batches or [batch])
    affordable, least = None, 0.0
    for pairs, multiple in STAIRS:
        multiple = min(multiple, len(corpus.train) // least_tokens(batch, shape["context"]))
        if not multiple:
            break
        tokens = multiple * least_tokens(batch, shape["context"])
        seconds = seconds_of(pairs, LEAST_STEPS * multiple, batch)
        least = least or seconds
        if seconds <= allowed:
            affordable = (pairs, tokens, seconds)
    if affordable is None:
        if not least:
            raise TextError(
                f"{corpus.name} has {len(corpus.train):,} tokens to train on, but {LEAST_STEPS} "
                f"steps take {least_tokens(batch, shape['context']):,}"
            )
        raise RefusedError(
            f"{minutes:g} minutes are too few: tuning {len(arms)} arms and {LEAST_PAIRS} pairs of "
            f"runs take about {_minutes(least / _SHARE_OF_TIME)} on this machine; give --minutes "
            f"{math.ceil(least / _SHARE_OF_TIME / 60)}, or fewer arms"
        )
    pairs, tokens, seconds = affordable
    return Plan(
        arms=tuple(arms), vocabulary=corpus.vocabulary_size, batch_size=batch, beta2=beta2,
        tokens=tokens, pairs=pairs, tuning_seeds=_tuning_seeds(pairs), rates=grids,
        minutes=float(minutes), seconds=seconds, workers=workers,
        step_seconds={name: tuple(some) for name, some in probed.step_seconds.items()},
        run_seconds=probed.run_seconds, target=target, shape=shape,
        fingerprint=corpus.fingerprint, labels=labels,
    )  # fmt: skip


def extended(frequencies: np.ndarray, size: int) -> np.ndarray:
    """The frequencies that a text would have with a vocabulary of another size.

    Above the ranks that are there, the line of log frequency over log rank goes on, which is
    fitted to the tenth to the nine tenths of them; a guess, for texts that are too short for the
    vocabulary itself.

    Args:
        frequencies: shares of the tokens, [V].
        size: of the other vocabulary.

    Returns:
        Shares, falling, [size], with sum 1.
    """
    ranked = np.sort(frequencies[frequencies > 0])[::-1]
    if size > len(ranked):
        ranks = np.arange(1, len(ranked) + 1)
        middle = slice(len(ranked) // 10, len(ranked) * 9 // 10)
        slope = -1.0
        if len(ranked) >= _RANKS_OF_A_LINE:
            slope = np.polyfit(np.log(ranks[middle]), np.log(ranked[middle]), 1)[0]
        beyond = np.arange(len(ranked) + 1, size + 1) / len(ranked)
        ranked = np.concatenate([ranked, ranked[-1] * beyond ** min(slope, 0.0)])
    kept = ranked[:size]
    return kept / kept.sum()


def match(
    corpus: Corpus, target: Target, context: int, batches: Sequence[int] = BATCHES
) -> tuple[int, float]:
    """Batch and beta2 of small runs with which as much is rare in Adam's memory as in a large one.

    Args:
        corpus: the text.
        target: the large run.
        context: tokens of a sequence of the small runs.
        batches: to choose from.

    Returns:
        The batch and beta2 whose share of rare tokens is closest to the target's; of equal ones
        the beta2 that is closest, then the smaller batch.
    """
    wanted = target_memory(corpus, target)["rare_share"]

    def distance(choice: tuple[int, float]) -> tuple[float, float, int]:
        batch, beta2 = choice
        found = memory(corpus.frequencies, batch * context, beta2)["rare_share"]
        return round(abs(found - wanted), 3), abs(beta2 - target.beta2), batch

    return min(product(batches, BETA2S), key=distance)


def target_memory(corpus: Corpus, target: Target) -> dict[str, float]:
    """``evidence.memory`` of the large run, with the text's frequencies ``extended``."""
    frequencies = extended(corpus.frequencies, target.vocabulary)
    return memory(frequencies, target.step_tokens, target.beta2)


def scale_sentence(plan: Plan, corpus: Corpus) -> str:
    """Whether the small runs are a model of the large one, and what cannot be concluded."""
    here = memory(
        corpus.spread(plan.tokens).frequencies,
        plan.batch_size * plan.shape["context"],
        plan.beta2,
    )["rare_share"]
    if plan.target is None:
        like = like_run(corpus, here)
        return (
            f"Here {here:.0%} of the vocabulary occurs less than once within Adam's memory, "
            f"as in a run with a vocabulary of 50,257, beta2 0.95 and about {like:,} tokens a "
            "step; of such runs the drift of the embeddings may be similar, but the gain is not "
            "predicted by it (chapter 10), and no number of steps makes these few into theirs."
        )
    target = plan.target
    there = target_memory(corpus, target)["rare_share"]
    differs = []
    if abs(here - there) > 0.05:
        differs.append(
            f"{here:.0%} of its vocabulary is rare within Adam's memory, not {there:.0%}"
        )
    if target.steps and target.steps > 2 * plan.steps:
        differs.append(f"it has {plan.steps:,} steps, not {target.steps:,}")
    if target.vocabulary > 2 * plan.vocabulary:
        differs.append(f"its vocabulary is {plan.vocabulary:,}, not {target.vocabulary:,}")
    if target.parameters and target.tokens:
        each, wanted = plan.tokens / plan.parameters, target.tokens / target.parameters
        if max(each, wanted) > 2 * min(each, wanted):
            differs.append(f"it sees {each:.2g} tokens for each parameter, not {wanted:.2g}")
    if not differs:
        return (
            f"The small run is like the planned one in what was compared ({here:.0%} and "
            f"{there:.0%} of the vocabulary rare within Adam's memory); that does not predict the "
            "gain (chapter 10), so that a second size is needed before a large run."
        )
    return (
        "What a small run shows here cannot be carried over to the planned one as it stands: "
        f"{'; '.join(differs)}; and even an equal share of rare tokens does not predict the gain "
        "(chapter 10)."
    )


def like_run(corpus: Corpus, rare_share: float) -> int:
    """Tokens a step of a run of vocabulary 50,257 and beta2 0.95 with the same share of rare ones.

    Args:
        corpus: the text, whose frequencies are ``extended``.
        rare_share: in [0, 1].

    Returns:
        The nearest power of two from 64 to 16,777,216.
    """
    frequencies = extended(corpus.frequencies, 50_257)
    sizes = [2**k for k in range(6, 25)]
    shares = [memory(frequencies, size, 0.95)["rare_share"] for size in sizes]
    assert all(one >= other for one, other in pairwise(shares))
    return min(zip(sizes, shares, strict=True), key=lambda both: abs(both[1] - rare_share))[0]


def fingerprint_of(path: str | os.PathLike[str] | None) -> str:
    """Hash of a file that belongs to a plan; "" for none."""
    if path is None:
        return ""
    with open(path, "rb") as file:
        return digest_of(file.read())[:16]


def _setting(corpus: Corpus, model: GPTConfig, batch: int, beta2: float, steps: int) -> Setting:
    return evidence.setting(
        "compare", corpus, model=model, batch_size=batch, betas=(0.9, beta2), steps=steps,
        learning_rate=LEARNING_RATE, evaluate_every=max(1, steps // EVALUATIONS),
        evaluation_tokens=EVALUATION_TOKENS,
    )  # fmt: skip


def _tuning_seeds(pairs: int) -> tuple[int, ...]:
    return TUNING_SEEDS if pairs >= _TWO_TUNING_SEEDS else TUNING_SEEDS[:1]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
