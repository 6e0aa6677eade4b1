"""Recorded results: runs that were made once and are kept as numbers, with what they depend on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from coupled_adam.errors import RefusedError
from coupled_adam.evaluation import Drift, Evaluation, Measure, long_table
from coupled_adam.files import write_json
from coupled_adam.provenance import environment
from coupled_adam.training import PRESETS, TrainingConfig, commands
from coupled_adam.training.folder import read_description
from coupled_adam.training.presets import BATCH_SIZE, CONTEXT


def data_folder() -> Path:
    """Where the recorded results lie: in a wheel in the package, in a checkout at its root."""
    package = Path(str(resources.files("coupled_adam")))
    inside = package / "data"
    return inside if inside.is_dir() else package.parent.parent / "data"


RECORDS = data_folder()
_KIND = "training run"

# The runs at the size of GPT-2 that the book wants: preset, optimizer, seed. The paper's seeds.
WANTED = tuple(
    (preset, optimizer, seed)
    for preset in PRESETS
    for seed in ((1, 2, 3) if preset == "gpt2-124m" else (1,))
    for optimizer in ("adamw", "coupled")
)
_WANTED_TOKENS = 1000 * BATCH_SIZE * CONTEXT  # the paper's tiny test

# Benchmarks that want a GPU: a column by which their results are known, and the command.
_BENCHMARKS = {
    "time of the optimizer's step": (
        "candidate",
        "coupled-adam bench --device cuda --shape 50304x768 --shape 50304x1600 "
        "--shape 128256x4096 --dtype float32 --dtype bfloat16 --out step.json",
    ),
    "throughput beside nanoGPT": (
        "tokens_per_second",
        "python benchmarks/against_nanogpt.py --nanogpt nanoGPT --device cuda "
        "--shapes gpt2-124m --pieces 8 4 2 1 --out throughput.json",
    ),
}


@dataclass(frozen=True)
class Record:
    """A run that was made once and is kept as numbers, with what they depend on.

    Attributes:
        name: of the file, without its ending.
        config: model, recipe and seed.
        text: name, description, fingerprint, vocabulary size, training and validation tokens.
        sessions: where each part of the training was computed: device, versions, commit of the
            library (None if unknown; the first records lack it), threads, processes, start.
        evaluated: of the evaluation: the same.
        command: repeats the run; None if the command line cannot.
        metrics: the evaluated steps, with the columns of ``training.Run.metrics``.
        final: the row of ``evaluation.Evaluation``; NaN where something could not be measured.
        by_frequency: as from ``evaluation.loss_by_frequency``.
        word_pairs: as from ``evaluation.word_similarity``.
        drift: how the mean has moved, or None.
        table: everything that was measured, with the fields of ``evaluation.Measure`` as columns;
            empty in records that are older than it.
    """

    name: str
    config: TrainingConfig
    text: dict[str, Any]
    sessions: list[dict[str, Any]]
    evaluated: dict[str, Any]
    command: str | None
    metrics: pd.DataFrame = field(repr=False)
    final: dict[str, float] = field(repr=False)
    by_frequency: pd.DataFrame = field(repr=False)
    word_pairs: pd.DataFrame = field(repr=False)
    drift: Drift | None = field(repr=False)
    table: pd.DataFrame = field(repr=False)

    @property
    def environment(self) -> dict[str, Any]:
        """Where the last part of the training was computed."""
        return self.sessions[-1]


def write_record(
    measured: Evaluation,
    path: str | Path,
    *,
    device: str = "cpu",
    description: str = "",
    command: str | None = None,
) -> None:
    """Write what was measured of a run, with what it depends on, as JSON.

    ``data/README.md`` says what each field means. Neither the folder of the run nor that of the
    text is written, which would mean nothing on another machine.

    Args:
        measured: from ``evaluation.evaluate``, in this process.
        path: the file; an existing one is replaced.
        device: where it was measured.
        description: what the text is, in a sentence.
        command: the command that repeats the run.

    Raises:
        RefusedError: if the run has no folder.
        OSError: if the file cannot be written; what was there before stays as it was.
    """
    run = measured.run
    if run.folder is None:
        raise RefusedError("a run that is kept in memory only cannot be recorded: give it a folder")
    described = read_description(run.folder)
    evaluated = environment(device)
    evaluated["written"] = evaluated.pop("started")
    record = {
        "kind": _KIND,
        "config": described["config"],
        "text": {
            **described["corpus"],
            "vocabulary_size": int(measured.by_frequency["vocabulary"].sum()),
            "description": description,
        },
        "sessions": described["sessions"],
        "evaluated": evaluated,
        "command": command,
        "metrics": _plain(run.metrics.dropna(subset="validation_loss")),
        "final": _plain(pd.DataFrame([measured.row]))[0],
        "loss_by_frequency": _plain(measured.by_frequency),
        "word_pairs": _plain(measured.word_pairs),
        "drift": measured.drift and measured.drift._asdict(),
        "table": _plain(measured.table),
    }
    write_json(path, record)


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows with None for NaN, which JSON does not know."""
    return json.loads(table.to_json(orient="records", double_precision=12))


def read_record(path: str | Path) -> Record:
    """Read a record that ``write_record`` wrote.

    Args:
        path: the file.

    Returns:
        The record.

    Raises:
        RefusedError: if the file holds something else.
        OSError: if it cannot be read.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["kind"] != _KIND:
            raise RefusedError(f"its kind is {found['kind']!r}")
        drift = found["drift"]
        return Record(
            path.stem,
            TrainingConfig.from_json(found["config"], "config"),
            found["text"],
            found["sessions"],
            found["evaluated"],
            found["command"],
            pd.DataFrame(found["metrics"]).astype(float),
            {name: math.nan if v is None else float(v) for name, v in found["final"].items()},
            pd.DataFrame(found["loss_by_frequency"]).astype({"loss": float}),
            pd.DataFrame(found["word_pairs"]).astype({"pearson": float, "spearman": float}),
            drift and Drift(**{**drift, "shares": tuple(drift["shares"])}),
            long_table(_row(row) for row in found.get("table", [])),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{path} is not the record of a training run ({error})") from error


def _row(found: dict[str, Any]) -> Measure:
    # Where there is no number the file has null.
    values: dict[str, Any] = {name: math.nan if v is None else v for name, v in found.items()}
    return Measure(**values)


def recorded_runs(folder: str | Path = RECORDS) -> list[Record]:
    """The recorded runs, small models first; other files of the folder are passed over.

    Args:
        folder: where they lie; by default those that come with the library.

    Returns:
        The records, by size of the model, name of the optimizer and seed.

    Raises:
        RefusedError: if a file says that it is a record of a run and is damaged.
    """
    paths = sorted(Path(folder).glob("*.json"))
    return sorted((read_record(path) for path in paths if _claims_to_be(path)), key=_by_size)


def _claims_to_be(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True  # whoever reads it says what is wrong
    return isinstance(found, dict) and found.get("kind") == _KIND


def _by_size(record: Record) -> tuple[Any, ...]:
    model, config = record.config.model, record.config
    return model.layers * model.width**2, config.optimizer, config.seed, record.name


def outstanding(folder: str | Path = RECORDS, text: str = "openwebtext") -> pd.DataFrame:
    """What is wanted at the size of GPT-2, needs a GPU, and is not among the recorded results.

    That is the paper's tiny test in the presets of ``presets``, the benchmark of the optimizer's
    step, and the throughput of training beside nanoGPT.

    Args:
        folder: where recorded results lie; by default those that come with the library.
        text: what to train on, as the command line takes it.

    Returns:
        One row each: ``what``, and the ``command`` that makes it.

    Raises:
        RefusedError: if a file says that it is a record of a run and is damaged.
    """
    done = {
        (record.config.model.layers, record.config.optimizer, record.config.seed)
        for record in recorded_runs(folder)
        if record.final["tokens"] >= _WANTED_TOKENS
    }
    wanted = {
        f"tiny test, {preset}, {optimizer}, seed {seed}": commands(preset, optimizer, seed, text)
        for preset, optimizer, seed in WANTED
        if (PRESETS[preset].layers, optimizer, seed) not in done
    }
    rows = {what: lines["train"] for what, lines in wanted.items()}
    measured = _columns_measured_on_a_gpu(Path(folder))
    rows |= {what: line for what, (column, line) in _BENCHMARKS.items() if column not in measured}
    return pd.DataFrame(rows.items(), columns=["what", "command"])


def _columns_measured_on_a_gpu(folder: Path) -> set[str]:
    columns: set[str] = set()
    for path in folder.glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "results" in found and found["environment"]["device"].startswith("cuda"):
            columns |= set(found["results"][0])
    return columns
