"""The sweeps of the book, declared, made by one command, and kept in ``data/evidence``.

``coupled-adam evidence NAME --text BOOKS`` makes them; what is there is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from coupled_adam import text
from coupled_adam.errors import RefusedError
from coupled_adam.experiments.evidence import (
    REPORT_SEEDS,
    TUNING_SEEDS,
    Setting,
    reference,
    report,
    same_arm,
    setting,
    tune,
)
from coupled_adam.experiments.records import RECORDS
from coupled_adam.experiments.sweep import DIVERGED_FILE, run_name
from coupled_adam.files import read_text, write_json, write_whole
from coupled_adam.gpt import GPTConfig
from coupled_adam.provenance import environment
from coupled_adam.text import Corpus
from coupled_adam.training.folder import CHECKPOINT_FILE, read_description

FOLDER = RECORDS / "evidence"
WIKIPEDIA, BOOKS, SYNTHETIC = "wikipedia", "books", "synthetic"
SAME_ARM = "same-arm"

ADAM, MEMORY, EPSILON, COUPLED = "adamw", "adamw-memory", "adamw-epsilon", "coupled"
PAIR, RIVALS = (ADAM, COUPLED), (ADAM, MEMORY, EPSILON, COUPLED)
_THREE = (ADAM, MEMORY, COUPLED)  # with the strongest rival of "0.4M"
# First those that share the second moment otherwise, or have none, then terms in the loss, repairs
# after the step, and Muon on the matrices.
ALTERNATIVES = (
    "adam-width", "adam-all", "adam-factored", "ember", "signum", "scale", "amsgrad", "sgd",
    "mu-loss", "z-loss", "cosine-loss", "mu-centring", "update-centring", "muon", "muon-coupled",
)  # fmt: skip
ABLATIONS = (
    "between-0.25", "between-0.5", "between-0.75", "floor-0.01", "floor-0.1", "floor-1",
    "coupled-uncorrected",
)  # fmt: skip
# Where the grids begin: a scout of 96 runs with one seed at 0.1 million tokens, base rates from
# 5e-4 to 4e-3, found each arm's optimum here. They extend by themselves.
GRIDS = {ADAM: (8.0, 16.0, 32.0), MEMORY: (8.0, 16.0, 32.0), EPSILON: (16.0, 32.0, 64.0)}
GRIDS[COUPLED] = (4.0, 8.0, 16.0)
GRIDS["sgd"] = (150.0, 300.0, 600.0)  # around the paper's multiplier
_DIGITS = 6


@dataclass(frozen=True)
class Point:
    """A setting of a sweep, as it is declared.

    Attributes:
        name: of the setting.
        source: "wikipedia", "books" for the text that is given, or "synthetic" for a language of
            64 word classes.
        tokens: of the training text, spread over it; a run reads as many.
        vocabulary: tokens of the vocabulary.
        arms: that are compared.
        around: name of an earlier point, whose winners' neighbours are the first grid; "" for
            ``GRIDS``.
        tuning_seeds: see ``evidence.tune``.
        report_seeds: see ``evidence.report``.
        common: the common multiplier, or None.
        shuffled: arms that are trained on the shuffled twin of the text too, at the multipliers
            that won on the text itself.
        twin_of: name of an earlier point that this one is nothing but the shuffled twin of: its
            arms at the multipliers that won there, on the same seeds; "" for none.
        varied: what it changes against the first point, such as "batch": the group of settings
            that ``predictor`` leaves out together; "" if it changes the optimizer and not what is
            trained, which ``predictor`` passes over.
        exponent: of Zipf's law in the synthetic language.
        changes: fields of ``TrainingConfig``.
        model: fields of ``GPTConfig``.
    """

    name: str
    source: str
    tokens: int
    vocabulary: int = 4096
    arms: tuple[str, ...] = PAIR
    around: str = ""
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS[:1]
    report_seeds: tuple[int, ...] = REPORT_SEEDS[:3]
    common: float | None = None
    shuffled: tuple[str, ...] = ()
    twin_of: str = ""
    varied: str = "length"
    exponent: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


def _twin(point: Point) -> Point:
    return replace(point, name=f"{point.name} shuffled", arms=PAIR, twin_of=point.name, varied="")


_SYNTHETIC_TOKENS, _SYNTHETIC_CLASSES = 1_600_000, 64  # a twentieth of it for each half of a report
_TENTH = 102_400
_OF_PLANS = (
    Point("0.1M", BOOKS, _TENTH, arms=RIVALS, tuning_seeds=TUNING_SEEDS,
          report_seeds=REPORT_SEEDS, common=1.0, shuffled=RIVALS),
    Point("0.4M", BOOKS, 4 * _TENTH, arms=RIVALS, around="0.1M",
          tuning_seeds=TUNING_SEEDS, report_seeds=REPORT_SEEDS, shuffled=PAIR),
    Point("wikipedia", WIKIPEDIA, _TENTH, arms=RIVALS, varied="text"),
    # What decides? One setting is changed, and the rates are chosen anew.
    *(Point(f"beta2 {beta2}", BOOKS, _TENTH, varied="beta2",
            changes={"embedding_betas": (0.9, beta2)})
      for beta2 in (0.99, 0.9999, 0.9, 0.999)),
    *(Point(f"batch {batch}", BOOKS, _TENTH, arms=_THREE, varied="batch",
            changes={"batch_size": batch})
      for batch in (1, 16)),
    *(Point(f"vocabulary {size}", WIKIPEDIA, _TENTH, size, arms=_THREE, varied="vocabulary")
      for size in (1024, 16_384)),
    *(Point(f"Zipf {exponent}", SYNTHETIC, _TENTH, arms=_THREE, varied="skew", exponent=exponent)
      for exponent in (1.0, 0.0, 0.5, 1.5)),
    Point("untied", BOOKS, _TENTH, arms=_THREE, varied="untied head", model={"tied": False}),
    *(Point(f"width {width}", BOOKS, _TENTH, arms=_THREE, varied="width", model={"width": width})
      for width in (64, 256)),
    *(Point(f"0.4M batch {batch}", BOOKS, 4 * _TENTH, arms=_THREE, varied="batch",
            changes={"batch_size": batch})
      for batch in (16, 64)),
    Point("1.6M", BOOKS, 16 * _TENTH, arms=RIVALS, around="0.4M",
          changes={"precision": "bfloat16"}),
    Point("6.4M", BOOKS, 64 * _TENTH, arms=_THREE, around="1.6M",
          changes={"precision": "bfloat16"}),
)  # fmt: skip
_OF_ARMS = (
    # Chapters 12 and 11; their pairs are the runs of "0.1M" with the same seeds.
    Point("alternatives", BOOKS, _TENTH, arms=ALTERNATIVES, varied=""),
    Point("ablations", BOOKS, _TENTH, arms=ABLATIONS, varied=""),
    # Chapter 11: one setting of the optimizer is changed, the same for either arm.
    Point("beta1 0", BOOKS, _TENTH, varied="", changes={"embedding_betas": (0.0, 0.95)}),
    *(Point(f"epsilon {eps}", BOOKS, _TENTH, varied="", changes={"embedding_eps": float(eps)})
      for eps in ("1e-6", "1e-5", "1e-4", "1e-3")),
    *(Point(f"warm-up {steps}", BOOKS, _TENTH, varied="", changes={"warmup_steps": steps})
      for steps in (0, 100)),
    Point("decay 0.1", BOOKS, _TENTH, varied="", changes={"embedding_weight_decay": 0.1}),
)  # fmt: skip
# The shuffled twins of the settings that were recorded without: gains that are net take them, and
# the settings need not be made again for it.
_TWINS = tuple(_twin(point) for point in _OF_PLANS if not point.shuffled)
POINTS = (*_OF_PLANS, *_OF_ARMS, *_TWINS)


def make(
    point: Point,
    books: str | Path | None,
    runs: str | Path,
    out: str | Path = FOLDER,
    **options: Any,
) -> pd.DataFrame:
    """Make one setting of the sweeps, or find what is there of it, and record it.

    Args:
        point: of ``POINTS``. One that is ``around`` another, or the ``twin_of`` it, needs that
            one's record in ``out``.
        books: the text "books", a file or folder; None will do for points on Wikipedia.
        runs: folder of the run folders.
        out: folder of the records: the table as ``NAME.csv``, and ``NAME.json`` with the text,
            every session's environment and the seconds of the runs.
        options: ``workers`` of ``run_sweep``.

    Returns:
        The table, one row a run, as from ``evidence.rows_of``.

    Raises:
        RefusedError: if the text is needed and not given, or the point that this one is around has
            no record yet.
        OSError: if a folder cannot be written.
    """
    where = setting_of(point, books)
    if point.twin_of:
        best = {name: winners(read(point.twin_of, out))[name] for name in point.arms}
        twin = replace(where, corpus=where.corpus.shuffled(0))
        table = report(
            twin, best, runs, seeds=point.report_seeds, common=None, stage="shuffled", **options
        )
        return _record(point, where, table, runs, out)
    grids = {name: GRIDS.get(name, GRIDS[ADAM]) for name in point.arms}
    if point.around:
        best_there = winners(read(point.around, out))
        grids = {
            name: (best_there[name] / 2, best_there[name], best_there[name] * 2)
            for name in point.arms
        }
    best, tuning = tune(
        where, point.arms, runs, multipliers=grids, seeds=point.tuning_seeds, **options
    )
    tables = [
        tuning,
        report(where, best, runs, seeds=point.report_seeds, common=point.common, **options),
    ]
    if point.shuffled:
        twin = replace(where, corpus=where.corpus.shuffled(0))
        of_twin = {name: best[name] for name in point.shuffled}
        tables.append(
            report(twin, of_twin, runs, seeds=point.report_seeds, common=None, stage="shuffled",
                   **options)
        )  # fmt: skip
    return _record(point, where, pd.concat(tables, ignore_index=True), runs, out)


def _record(
    point: Point, where: Setting, table: pd.DataFrame, runs: str | Path, out: str | Path
) -> pd.DataFrame:
    write_record(table, provenance_of(where, table, runs), point.name, out)
    return read(point.name, out)


def make_same_arm(runs: str | Path, out: str | Path = FOLDER, **options: Any) -> pd.DataFrame:
    """Twenty comparisons of Adam with itself, 20 steps a run, and their record ``same-arm.csv``.

    Args:
        runs: folder of the run folders.
        out: folder of the records.
        options: ``workers`` of ``run_sweep``.

    Returns:
        The table of ``evidence.same_arm``.

    Raises:
        OSError: if a folder cannot be written.
    """
    corpus = text.wikipedia_sample().spread(_TENTH)
    where = setting(SAME_ARM, corpus, steps=20)
    where = replace(where, config=replace(where.config, evaluate_every=20))
    table = same_arm(where, ADAM, runs, **options)
    write_table(table, SAME_ARM, out)
    return table


def setting_of(point: Point, books: str | Path | None) -> Setting:
    """The setting that a point declares; arguments and errors as for ``make``."""
    if point.source == WIKIPEDIA:
        corpus: Corpus = text.wikipedia_sample(point.vocabulary)
    elif point.source == SYNTHETIC:
        corpus = text.synthetic(
            point.vocabulary, _SYNTHETIC_TOKENS, point.exponent, _SYNTHETIC_CLASSES
        )
    elif books is None:
        raise RefusedError(f"{point.name} needs the text of books: give a file or folder")
    else:
        corpus = text.load(books, point.vocabulary)
    changes = dict(point.changes)
    if point.model:
        changes["model"] = GPTConfig(corpus.vocabulary_size, **point.model)
    return setting(point.name, corpus.spread(point.tokens), **changes)


def recorded_points(folder: str | Path = FOLDER) -> list[Point]:
    """The settings of ``POINTS`` that a folder has a record of; the others are still to be made."""
    return [one for one in POINTS if path_of(one.name, folder).exists()]


def read(name: str, folder: str | Path = FOLDER) -> pd.DataFrame:
    """The recorded table of a setting, one row a run.

    Raises:
        RefusedError: if it is not recorded; the message lists the settings that are.
    """
    path = path_of(name, folder)
    if not path.exists():
        there = ", ".join(point.name for point in recorded_points(folder))
        raise RefusedError(f"there is no record of {name!r}; recorded are: {there or 'none'}")
    return pd.read_csv(StringIO(read_text(path)))


def provenance(name: str, folder: str | Path = FOLDER) -> dict[str, Any]:
    """What the recorded table of a setting depends on; see ``data/README.md``."""
    return json.loads(read_text(path_of(name, folder, "json")))


def winners(table: pd.DataFrame) -> dict[str, float]:
    """The multiplier of each arm that won the tuning of a setting."""
    tuning = table[table["stage"] == "tuning"]
    mean = tuning.groupby(["optimizer", "multiplier"])["loss/tuning"].mean()
    return {str(name): float(part.idxmin()[1]) for name, part in mean.groupby("optimizer")}


def path_of(name: str, folder: str | Path = FOLDER, ending: str = "csv") -> Path:
    """The file of a recorded table, or with the ending "json" of what it depends on."""
    return Path(folder) / f"{name.replace(' ', '-')}.{ending}"


def write_record(table: pd.DataFrame, about: dict[str, Any], name: str, out: str | Path) -> None:
    """Write a table and what it depends on, ``NAME.csv`` and ``NAME.json``.

    The table comes last, so that a setting that has one is recorded whole: when the other file
    could not be made, a table once lay there alone and passed for a record.

    Args:
        table: one row a run, or more.
        about: as from ``provenance_of``.
        name: of the record.
        out: the folder, made if it is not there.

    Raises:
        OSError: if it cannot be written.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    write_json(path_of(name, out, "json"), about)
    write_table(table, name, out)


def write_table(table: pd.DataFrame, name: str, out: str | Path) -> None:
    """Write a table as ``NAME.csv``, six significant digits.

    Raises:
        OSError: if the folder cannot be made or the file cannot be written.
    """
    path = path_of(name, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, table.to_csv(index=False, float_format=f"%.{_DIGITS}g").encode())


def provenance_of(where: Setting, table: pd.DataFrame, runs: str | Path) -> dict[str, Any]:
    """What a table depends on, as ``data/README.md`` says it.

    Args:
        where: the setting of its runs.
        table: one row a run: columns stage, optimizer, multiplier, seed.
        runs: folder of the run folders, which must hold all of them.

    Raises:
        OSError: if one of them is not there.
    """
    twin = where.corpus.shuffled(0)
    seconds, sessions = 0.0, {}
    for row in table.itertuples(index=False):
        config = replace(
            where.config,
            optimizer=row.optimizer,
            embedding_multiplier=row.multiplier,
            seed=row.seed,
        )
        folder = Path(runs) / run_name(config, twin if row.stage == "shuffled" else where.corpus)
        found = read_description(folder)["sessions"]
        # A diverged run has no checkpoint, or an old one.
        ends = [folder / name for name in (CHECKPOINT_FILE, DIVERGED_FILE)]
        written = max(end.stat().st_mtime for end in ends if end.exists())
        seconds += written - pd.Timestamp(found[0]["started"]).timestamp()
        for session in found:
            for name in ("started", "first_step", "commit"):
                session.pop(name, None)
            sessions[json.dumps(session, sort_keys=True)] = session
    return {
        "kind": "evidence",
        "text": {
            "name": where.corpus.name,
            "fingerprint": where.corpus.fingerprint,
            "training_tokens": len(where.corpus.train),
            "validation_tokens": len(where.corpus.validation),
        },
        "config": where.config.to_json(),
        "reference": reference(where),
        "runs": len(table),
        "seconds": round(seconds),
        "sessions": list(sessions.values()),
        "recorded": environment(),
    }
