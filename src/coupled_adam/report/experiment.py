"""The experiment of a comparison: runs the plan, keeps its budget, and goes on where it was.

Tuning first, then fresh seeds: with each, every arm is trained at its own best rate, at the rate
that is best for plain Adam, and on the shuffled twin of the text. The order of the arms turns round
from seed to seed (ABBA). Between seeds the time is looked at, and nothing else: what was measured
must not decide when to stop.

Every run has a run folder below ``runs``, by its name, as ``evaluate`` and ``export`` take it; what
is there is found and not made again. ``runs.csv`` has a row a run, ``state.json`` the time spent.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.downstream import LabelledTexts, classification, retrieval
from coupled_adam.evaluation.table import TRAINED
from coupled_adam.experiments import evidence
from coupled_adam.experiments.evidence import Setting, rows_of
from coupled_adam.experiments.sweep import DIVERGED_FILE, Job, Measure, Outcome, run_name, run_sweep
from coupled_adam.files import digest_of, read_text, write_json, write_whole
from coupled_adam.palette import label
from coupled_adam.report.advice import THRESHOLD, Facts, interval_of
from coupled_adam.report.facts import (
    CLASSIFICATION,
    COMMON,
    CURVE,
    MEMORY,
    REPORT,
    RETRIEVAL,
    SHUFFLED,
    TUNING,
    complete_pairs,
    facts_of,
)
from coupled_adam.report.plan import Plan, Probe, common_of, probe, scale_sentence
from coupled_adam.text import Corpus
from coupled_adam.training import Run

RUNS, RUNS_FILE, STATE_FILE, PROBE_FILE = "runs", "runs.csv", "state.json", "probe.json"
_OVER = 1.08  # of the budget may be used; what writes the report needs the rest of a tenth
_EXTENSIONS = 3  # of a grid before an arm counts as not tuned
_LEAST_OF_A_CLASS = 10


@dataclass(frozen=True)
class Result:
    """What an experiment has given so far.

    Attributes:
        plan: that was followed.
        table: one row a run, as from ``evidence.rows_of``.
        best: multiplier of each arm that won the tuning; empty before.
        tuned: whether it has a worse one on either side.
        seconds: that were spent, in all sessions.
        stopped: "" if the plan was completed, "time" or "interrupted".
        documents: of the validation text.
        text: what the text is called.
        scale: see ``plan.scale_sentence``.
    """

    plan: Plan
    table: pd.DataFrame = field(repr=False)
    best: dict[str, float]
    tuned: dict[str, bool]
    seconds: float
    stopped: str
    documents: int = 2
    text: str = ""
    scale: str = ""

    @property
    def pairs(self) -> int:
        """Seeds with which every arm was trained at its best rate."""
        return len(complete_pairs(self.table, self.plan.arms)) if len(self.table) else 0

    @property
    def common(self) -> float | None:
        """The multiplier that all arms share; None before tuning."""
        return self.best.get(common_of(self.plan.arms))

    def facts(self, threshold: float = THRESHOLD) -> Facts:
        """What the rules are given.

        Raises:
            RefusedError: if no pair is complete yet.
        """
        if not self.pairs:
            raise RefusedError(
                "no pair of runs is complete yet, so that there is nothing to report: the same "
                "command goes on"
            )
        plan = self.plan
        probed = Probe(plan.step_seconds, plan.run_seconds)
        return facts_of(
            self.table, plan.arm, plan.rivals, tuned=self.tuned,
            step_seconds={name: probed.step(name) for name in plan.arms}, common=self.common,
            planned_pairs=plan.pairs, stopped=self.stopped, threshold=threshold,
            parameters=plan.parameters, tokens=plan.tokens, documents=self.documents,
        )  # fmt: skip


class Measures:
    """What is measured of a run of the report: a function that other processes can call.

    Args:
        corpus: the whole text, whose documents are retrieved.
        labelled: texts to classify, or None.
    """

    def __init__(self, corpus: Corpus, labelled: LabelledTexts | None = None) -> None:
        self.corpus, self.labelled = corpus, labelled
        known = [corpus.fingerprint, *([*labelled.labels, *labelled.texts] if labelled else [])]
        self.__name__ = f"compare-{digest_of(known)[:12]}"  # of the file that keeps it

    def __call__(self, run: Run, corpus: Corpus) -> pd.DataFrame:
        """The measures of ``evidence.measures``, the loss on the way, retrieval, classification."""
        table = evidence.measures(run, corpus)
        rows = [(m, s, float(v)) for m, s, v in table.itertuples(index=False)]
        for one in run.metrics.dropna(subset="validation_loss").itertuples():
            rows.append((CURVE[:-1], str(int(one.tokens)), float(one.validation_loss)))
        states = [state for one in run.optimizers for state in one.state.values()]
        held = sum(t.nbytes for state in states for t in state.values() if isinstance(t, Tensor))
        rows.append((*MEMORY.split("/"), held / 2**20))  # type: ignore[arg-type]
        size = self.corpus.vocabulary_size
        vectors = {TRAINED: run.model.output_embedding.detach()[:size].double().cpu()}
        found = [(RETRIEVAL, retrieval(vectors, self.corpus))]
        if self.labelled is not None:
            found.append(
                (CLASSIFICATION, classification(vectors, self.corpus, "labels", self.labelled))
            )
        for column, measures in found:
            for one in measures:
                if one.variant == TRAINED and not math.isnan(one.value):
                    rows.append((*column.split("/"), one.value))  # type: ignore[arg-type]
        return pd.DataFrame(rows, columns=["measure", "set", "value"])


def check_labels(labelled: LabelledTexts, corpus: Corpus, name: str) -> None:
    """Refuse labelled texts that cannot be classified.

    Args:
        labelled: the texts.
        corpus: knows the tokens.
        name: of the file, for the message.

    Raises:
        RefusedError: if there is one class only, or a class has too few texts.
        TextError: if the corpus is a synthetic language, which has no other words than its own.
    """
    classes = Counter(labelled.labels)
    if len(classes) < 2:
        raise RefusedError(f"{name}: all texts have the label {labelled.labels[0]!r}; give two")
    rare, count = min(classes.items(), key=lambda both: both[1])
    if count < _LEAST_OF_A_CLASS:
        raise RefusedError(
            f"{name}: the label {rare!r} occurs {count} time{'s' if count > 1 else ''}; each needs "
            f"{_LEAST_OF_A_CLASS} texts, so leave it out or give more"
        )
    corpus.encode(labelled.texts[0])


def find_probe(
    out: Path, corpus: Corpus, arms: Sequence[str], batch: int, measure: Measures
) -> Probe:
    """The probe that an earlier call left in the folder, or a new one, which is left there.

    So a plan stays the same when the same command goes on.

    Raises:
        RefusedError: if the folder holds a comparison of another text.
        OSError: if it cannot be written.
    """
    path = out / PROBE_FILE
    known = {"fingerprint": corpus.fingerprint, "batch": batch, "measures": measure.__name__}
    found = read_json(path) if path.exists() else {}
    if found and found.get("fingerprint") != corpus.fingerprint:
        raise RefusedError(
            f"{out} holds a comparison on another text or with another vocabulary: choose another "
            "--out"
        )
    if {name: found.get(name) for name in known} == known and set(arms) <= set(
        found["step_seconds"]
    ):
        return Probe({name: found["step_seconds"][name] for name in arms}, found["run_seconds"])
    probed = probe(corpus, arms, batch, measure=measure)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {**known, **probed._asdict()})
    return probed


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of ours.

    Raises:
        RefusedError: if it was changed by hand.
        OSError: if it cannot be read.
    """
    try:
        return dict(json.loads(read_text(path)))
    except (ValueError, TypeError) as error:
        raise RefusedError(
            f"{path} is damaged ({error}): remove it, or choose another --out"
        ) from error


def documents_in(corpus: Corpus) -> int:
    """Documents of the validation text that have an end; 1 in a text that is one document."""
    end = corpus.end_of_text
    return 1 if end is None else int((corpus.validation == end).sum())


class Experiment:
    """A comparison that is being made.

    Args:
        plan: what to train.
        corpus: the whole text.
        out: folder of the comparison, made if needed.
        measure: of the runs of the report.
        before: seconds that were spent on the probe in this session.
        say: told what is known so far, a sentence at a time.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        plan: Plan,
        corpus: Corpus,
        out: Path,
        *,
        measure: Measures | None = None,
        before: float = 0.0,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self.out, self._say, self._clock = plan, out, say, clock
        self._measure = measure or Measures(corpus)
        self._where = plan.setting(corpus)
        self._twin = replace(self._where, corpus=self._where.corpus.shuffled(0))
        self._tables: list[pd.DataFrame] = []
        self._documents = documents_in(corpus)
        self._text, self._scale = corpus.name, scale_sentence(plan, corpus)
        self._best: dict[str, float] = {}
        self._tuned: dict[str, bool] = {}
        self._stopped = ""
        state = read_json(out / STATE_FILE) if (out / STATE_FILE).exists() else {}
        self._seconds = float(state.get("seconds", before))
        self._before = float(state.get("before", before))
        self._made = int(state.get("made", 0))
        # Who goes on with the same budget ends where it ended before.
        self._ended = state.get("stopped") == "time" and state.get("minutes") == plan.minutes
        self._last_pair = int(state["pairs"]) if self._ended else plan.pairs

    def run(self) -> Result:
        """Make what is not there yet, as far as the budget goes, and keep what is known.

        An interruption by the keyboard ends it early: the result is what there is.

        Raises:
            RefusedError: if a run folder is damaged.
            OSError: if the folder cannot be written.
        """
        (self.out / RUNS).mkdir(parents=True, exist_ok=True)
        try:
            self._tune()
            self._pairs()
        except KeyboardInterrupt:
            self._stopped = "interrupted"
        result = self.result()
        self._keep()
        return result

    def result(self) -> Result:
        """What is known so far."""
        table = pd.DataFrame()
        if self._tables:
            table = pd.concat(self._tables, ignore_index=True).astype({"diverged_at": float})
        return Result(
            self.plan, table, dict(self._best), dict(self._tuned), self._seconds, self._stopped,
            self._documents, self._text, self._scale,
        )  # fmt: skip

    def _tune(self) -> None:
        grids = {name: sorted(self.plan.rates[name]) for name in self.plan.arms}
        made: set[tuple[str, float]] = set()
        for extension in range(_EXTENSIONS + 1):
            wanted = [
                (name, rate)
                for number, rates in enumerate(zip_longest(*grids.values()))
                for name, rate in _turned(list(zip(grids, rates, strict=True)), number)
                if rate is not None and (name, rate) not in made
            ]
            jobs = [
                self._job(self._where, name, rate, seed)
                for name, rate in wanted
                for seed in self.plan.tuning_seeds
            ]
            if extension and not self._affordable(jobs, evidence.measures, pairs=True):
                break
            self._sweep(jobs, self._where, TUNING, evidence.measures)
            made.update(wanted)
            table = pd.concat(self._tables)
            mean = table.groupby(["optimizer", "multiplier"])["loss/tuning"].mean()
            self._best = {name: float(mean[name].idxmin()) for name in grids}
            self._tuned = {}
            for name, grid in grids.items():
                best = self._best[name]
                tried = sorted(rate for one, rate in made if one == name)
                inside = best not in (tried[0], tried[-1]) and math.isfinite(mean[name, best])
                self._tuned[name] = inside
                if not inside:
                    grids[name] = [*grid, best / 2 if best == tried[0] else best * 2]
            if all(self._tuned.values()):
                break
        self._keep()
        base = self._where.config.learning_rate
        listed = [
            f"{label(name)} {base * best:.3g}" + ("" if self._tuned[name] else " (not tuned)")
            for name, best in self._best.items()
        ]
        self._say(f"Best rates of the embeddings: {', '.join(listed)}.")

    def _pairs(self) -> None:
        common = self._best[common_of(self.plan.arms)]
        for seed in range(self.plan.pairs):
            arms = _turned(self.plan.arms, seed)
            own = [self._job(self._where, name, self._best[name], seed) for name in arms]
            shared = [
                self._job(self._where, name, common, seed)
                for name in arms
                if self._best[name] != common
            ]
            twins = [self._job(self._twin, name, self._best[name], seed) for name in arms]
            full = [*own, *shared]
            affordable = self._ended or self._affordable([*full, *twins], self._measure)
            if seed >= self._last_pair or not affordable:
                self._stopped = "time"
                self._say("The budget does not hold another pair.")
                return
            # Before the pair counts, its twin is there: gains without it are not net.
            twin = self._sweep(twins, self._twin, SHUFFLED, evidence.measures, keep=False)
            rows = self._sweep(full, self._where, REPORT, self._measure, keep=False)
            at_own = rows["multiplier"] == rows["optimizer"].map(self._best)
            rows["stage"] = rows["stage"].where(at_own, COMMON)
            self._tables += [rows, twin]
            self._keep()
            self._say(self._so_far())

    def _so_far(self) -> str:
        result = self.result()
        said = []
        for one in result.facts().versus:
            found = interval_of(one.net)
            mean = float(one.net.mean()) if len(one.net) else math.nan
            between = f" ({found.low:+.3f} to {found.high:+.3f})" if found else ""
            said.append(f"over {label(one.rival)} {mean:+.3f}{between}")
        return (
            f"Pair {result.pairs} of {self.plan.pairs}, {self._seconds / 60:.1f} minutes: net gain "
            f"in nats {', '.join(said)}."
        )

    def _job(self, where: Setting, name: str, multiplier: float, seed: int) -> Job:
        config = replace(where.config, optimizer=name, embedding_multiplier=multiplier, seed=seed)
        return config, where.corpus

    def _there(self, job: Job, measure: Measure) -> bool:
        folder = self.out / RUNS / run_name(*job)
        return (folder / f"{measure.__name__}.json").exists() or (folder / DIVERGED_FILE).exists()

    def _affordable(self, jobs: Sequence[Job], measure: Measure, *, pairs: bool = False) -> bool:
        """Whether there is time for some runs, and for three pairs after them if asked."""
        either = (measure, evidence.measures)
        missing = sum(not any(self._there(job, one) for one in either) for job in jobs)
        if not missing:
            return True
        if pairs:
            missing += 3 * (3 * len(self.plan.arms) - 1)
        each = (self._seconds - self._before) / self._made if self._made else 0.0
        return self._seconds + missing * each <= _OVER * 60 * self.plan.minutes

    def _sweep(
        self, jobs: Sequence[Job], where: Setting, stage: str, measure: Measure, keep: bool = True
    ) -> pd.DataFrame:
        missing = sum(not self._there(job, measure) for job in jobs)
        start = self._clock()
        outcomes = run_sweep(jobs, self.out / RUNS, measure=measure, workers=self.plan.workers)
        if missing:
            self._made += missing
            self._seconds += self._clock() - start
        table = rows_of([self._as_kept(one, measure) for one in outcomes], where, stage)
        if keep:
            self._tables.append(table)
            self._keep()
        return table

    def _as_kept(self, outcome: Outcome, measure: Measure) -> Outcome:
        """The outcome with its measures as they are in its folder, to the last digit."""
        path = self.out / RUNS / outcome.name / f"{measure.__name__}.json"
        if not outcome.name or not path.exists():  # it diverged
            return outcome
        return replace(outcome, measured=pd.DataFrame(json.loads(read_text(path))))

    def _keep(self) -> None:
        result = self.result()
        content = result.table.to_csv(index=False)
        write_whole(self.out / RUNS_FILE, content.encode())
        write_json(
            self.out / STATE_FILE,
            {
                "seconds": self._seconds, "made": self._made, "minutes": self.plan.minutes,
                "pairs": result.pairs, "stopped": self._stopped, "best": self._best,
                "tuned": self._tuned, "plan": self.plan.to_json(), "documents": self._documents,
                "text": self._text, "scale": self._scale,
            },
        )  # fmt: skip


def found(out: Path) -> Result:
    """The result that a folder holds, of a comparison that ended or was interrupted or killed.

    Raises:
        RefusedError: if it holds none, or a file is damaged.
        OSError: if it cannot be read.
    """
    if not (out / STATE_FILE).exists():
        raise RefusedError(f"{out} holds no comparison yet: start one with compare --text FOLDER")
    state = read_json(out / STATE_FILE)
    try:
        plan = Plan.from_json(state["plan"])
        content = read_text(out / RUNS_FILE)
        table = pd.read_csv(StringIO(content)) if content.strip() else pd.DataFrame()
        stopped = state["stopped"]
        pairs = len(complete_pairs(table, plan.arms)) if len(table) else 0
        if not stopped and pairs < plan.pairs:
            stopped = "interrupted"
        return Result(
            plan, table, dict(state["best"]), dict(state["tuned"]), float(state["seconds"]),
            stopped, int(state["documents"]), state["text"], state["scale"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"{out} is damaged ({error}): start again with another --out") from error


def _turned(arms: Sequence[Any], number: int) -> list[Any]:
    """The arms in their order, and every second time in the opposite one."""
    return list(arms) if number % 2 == 0 else list(arms)[::-1]
