"""What the embeddings of the recorded sweeps are good for: every run of a report, evaluated.

``coupled-adam evidence "downstream NAME" --text BOOKS`` makes the record of a setting; runs that
are there are found.
"""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from coupled_adam.errors import RefusedError
from coupled_adam.evaluation import evaluate
from coupled_adam.experiments import recorded
from coupled_adam.experiments.recorded import FOLDER, Point
from coupled_adam.experiments.sweep import run_sweep
from coupled_adam.files import read_text
from coupled_adam.text import Corpus
from coupled_adam.training import Run

PREFIX = "downstream "  # of the records' names
_RUN = ["setting", "optimizer", "multiplier", "seed"]


def evaluated(run: Run, corpus: Corpus) -> pd.DataFrame:
    """The long table of ``evaluation.evaluate``, as a measure of ``run_sweep``.

    Args:
        run: with a folder.
        corpus: that it was trained on.

    Raises:
        RefusedError: if the run is kept in memory only.
    """
    if run.folder is None:
        raise RefusedError("a run without a folder cannot be evaluated: give run_sweep a folder")
    return evaluate(run.folder, corpus).table


def make(
    point: Point,
    books: str | Path | None,
    runs: str | Path,
    out: str | Path = FOLDER,
    **options: Any,
) -> pd.DataFrame:
    """Evaluate the report's runs of a setting, each arm at the multiplier that won, and record it.

    Args:
        point: of ``recorded.POINTS``, and no shuffled twin; needs its record in ``out``, which says
            what won.
        books: as for ``recorded.make``.
        runs: folder of the run folders; runs that are not there are made.
        out: folder of the records: the table as ``downstream-NAME.csv``, and
            ``downstream-NAME.json`` with the text, every session's environment and the seconds of
            the training.
        options: ``workers`` of ``run_sweep``.

    Returns:
        The table, as from ``read``.

    Raises:
        RefusedError: if the text is needed and not given, the point has no record yet or is a
            twin, or one of the runs diverged.
        OSError: if a folder cannot be written.
    """
    if point.twin_of:
        raise RefusedError(f"{point.name} is a shuffled text: nobody asks what its words mean")
    best = recorded.winners(recorded.read(point.name, out))
    where = recorded.setting_of(point, books)
    jobs = [
        (
            replace(where.config, optimizer=name, embedding_multiplier=best[name], seed=seed),
            where.corpus,
        )
        for seed in point.report_seeds
        for name in point.arms
    ]
    outcomes = run_sweep(jobs, runs, measure=evaluated, **options)
    tables, rows = [], []
    for one in outcomes:
        if one.measured is None:
            raise RefusedError(f"{one.name} diverged at step {one.diverged_at}: nothing to measure")
        config = one.config
        values = (point.name, config.optimizer, config.embedding_multiplier, config.seed)
        row = dict(zip(_RUN, values, strict=True))
        tables.append(pd.DataFrame(row, index=one.measured.index).join(one.measured))
        rows.append({"stage": "report", **row})
    name = f"{PREFIX}{point.name}"
    about = recorded.provenance_of(where, pd.DataFrame(rows), runs)
    about["recorded"].pop("commit")
    recorded.write_record(pd.concat(tables, ignore_index=True), about, name, out)
    return read(point.name, out)


def recorded_points(folder: str | Path = FOLDER) -> list[Point]:
    """The settings of ``recorded.POINTS`` whose embeddings were evaluated."""
    return [
        one for one in recorded.POINTS if recorded.path_of(f"{PREFIX}{one.name}", folder).exists()
    ]


def read(name: str, folder: str | Path = FOLDER) -> pd.DataFrame:
    """What was measured of the embeddings of a setting.

    Args:
        name: of the setting, such as "0.1M".
        folder: of the records.

    Returns:
        Columns setting, optimizer, multiplier, seed, and the fields of ``evaluation.Measure``: one
        row for each measure of each run.

    Raises:
        RefusedError: if it is not recorded; the message lists the settings that are.
    """
    path = recorded.path_of(f"{PREFIX}{name}", folder)
    if not path.exists():
        there = ", ".join(point.name for point in recorded_points(folder))
        raise RefusedError(
            f"the embeddings of {name!r} have no record; recorded are: {there or 'none'}"
        )
    words = {"set": "", "note": ""}
    return pd.read_csv(StringIO(read_text(path))).fillna(words)


def by_variant(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One measure with what it was taken of side by side.

    Args:
        table: as from ``read``.
        measure: such as "retrieval".

    Returns:
        The values, in the measure's unit: one row for each optimizer, set and seed (the index), a
        column for each variant that was measured. So ``found.loc["coupled"] - found.loc["adamw"]``
        is the paired difference of two arms, and ``found["trained"] - found["untrained"]`` what
        training has brought.

    Raises:
        RefusedError: if the measure was not taken of any run; the message says why, if the table
            does.
    """
    rows = table[table["measure"] == measure]
    taken = rows[rows["value"].notna()]
    if not len(taken):
        why = "; ".join(dict.fromkeys(rows["note"])) or f"there is {', '.join(_measures(table))}"
        raise RefusedError(f"no run has a value of {measure!r}: {why}")
    wide = taken.pivot(index=["optimizer", "set", "seed"], columns="variant", values="value")
    return wide[list(dict.fromkeys(taken["variant"]))].rename_axis(columns=None)


def _measures(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["measure"]))
