"""Arms and seeds side by side: runs in, tidy tables with intervals out; and recorded runs."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from coupled_adam import evaluation
from coupled_adam.evaluation import Drift, Evaluation
from coupled_adam.gpt import GPT, GPTConfig
from coupled_adam.presets import BATCH_SIZE, CONTEXT, PRESETS, commands
from coupled_adam.text import Corpus
from coupled_adam.training import (
    CONFIG_FILE,
    OPTIMIZERS,
    Step,
    TrainingConfig,
    environment,
    train,
    whole_file,
)


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


def small_config(corpus: Corpus, **changes: object) -> TrainingConfig:
    """The small GPT of the chapters: two layers of width 128, half a minute on a laptop.

    Args:
        corpus: gives the size of the vocabulary.
        changes: fields of ``TrainingConfig`` to set otherwise.

    Returns:
        A configuration: 200 steps of 512 tokens, peak learning rate 1e-3 after 20 steps of
        warm-up, and for the rest the paper's recipe.
    """
    values = {
        "model": GPTConfig(vocabulary_size=corpus.vocabulary_size, context=128),
        "steps": 200,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 20,
        "evaluate_every": 50,
        "evaluation_tokens": 8192,
        "checkpoint_every": 200,
    }
    return TrainingConfig(**{**values, **changes})


@dataclass
class Recording:
    """What an observer kept of a run.

    Attributes:
        config: of the run.
        learning_rates: shape [T].
        mean_embedding: mean output embedding before the first step and after each, [T + 1, H].
        mean_hidden: mean hidden state of each step's batch, [T, H].
        std_hidden: its standard deviation in each coordinate, [T, H].
        absent: share of the vocabulary that is not a target in the step, [T].
        embeddings: output embeddings [V, H] after selected steps; 0 is the start.
        second_moment: Adam's second moment of the output embeddings at the end, bias-corrected:
            [V, H], or [H] if coupled, or None under SGD.
        model: the trained model.
        metrics: as in ``training.Run``.
    """

    config: TrainingConfig
    learning_rates: np.ndarray
    mean_embedding: np.ndarray
    mean_hidden: np.ndarray
    std_hidden: np.ndarray
    absent: np.ndarray
    embeddings: dict[int, np.ndarray]
    second_moment: np.ndarray | None
    model: GPT
    metrics: pd.DataFrame

    @property
    def displacement(self) -> np.ndarray:
        """How far the mean embedding is from where it started, after each step, [T, H]."""
        return self.mean_embedding[1:] - self.mean_embedding[0]


def record(
    corpus: Corpus, config: TrainingConfig, snapshots: Iterable[int] = (1, 20, 60, 120)
) -> Recording:
    """Train while recording what the drift of the embeddings is made of.

    Args:
        corpus: text to train on.
        config: the run.
        snapshots: steps after which the whole embedding matrix is kept.

    Returns:
        The recording.
    """
    keep = set(snapshots)
    lists: dict[str, list] = {"rate": [], "mean": [], "hidden": [], "std": [], "absent": []}
    start = evaluation.initial_embedding(config).double()
    embeddings = {0: start.numpy()}
    lists["mean"].append(start.mean(0).numpy())
    last: list[Step] = []

    def observe(step: Step) -> None:
        weight = step.model.output_embedding.detach()
        lists["rate"].append(step.learning_rate)
        lists["mean"].append(weight.double().mean(0).numpy())
        lists["hidden"].append(step.hidden_states.mean(0).numpy())
        lists["std"].append(step.hidden_states.std(0).numpy())
        counts = torch.bincount(step.targets, minlength=len(weight))
        lists["absent"].append((counts == 0).double().mean().item())
        if step.number in keep:
            embeddings[step.number] = weight.double().numpy()
        last[:] = [step]

    run = train(config, corpus, observe=observe, progress=False)
    return Recording(
        config,
        np.array(lists["rate"]),
        np.array(lists["mean"]),
        np.array(lists["hidden"]),
        np.array(lists["std"]),
        np.array(lists["absent"]),
        embeddings,
        _second_moment(last[0].optimizers, run.model.output_embedding, config),
        run.model,
        run.metrics,
    )


def _second_moment(
    optimizers: list[torch.optim.Optimizer], weight: Tensor, config: TrainingConfig
) -> np.ndarray | None:
    for optimizer in optimizers:
        state = optimizer.state.get(weight, {})
        if "exp_avg_sq" in state:
            correction = 1 - config.betas[1] ** state["step"].item()
            return (state["exp_avg_sq"].double() / correction).numpy()
    return None


@dataclass
class Comparison:
    """Arms trained on the same text with the same seeds.

    Attributes:
        metrics: one row per optimizer, seed and step; the columns of ``training.Run.metrics``.
        embeddings: final output embeddings by (optimizer, seed), float32, [V, H].
        second_moments: final second moment by (optimizer, seed), averaged over the columns for
            Adam, [V]; for Coupled Adam the shared vector, [H]; SGD has none.
    """

    metrics: pd.DataFrame
    embeddings: dict[tuple[str, int], np.ndarray] = field(repr=False)
    second_moments: dict[tuple[str, int], np.ndarray] = field(repr=False)

    @property
    def final(self) -> pd.DataFrame:
        """The last evaluated row of every run."""
        evaluated = self.metrics.dropna(subset="validation_loss")
        return evaluated.groupby(["optimizer", "seed"], sort=False).tail(1).reset_index(drop=True)


def compare(
    corpus: Corpus,
    config: TrainingConfig,
    *,
    optimizers: Sequence[str] = OPTIMIZERS,
    seeds: Sequence[int] = (0, 1, 2),
    workers: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Train every optimizer with every seed; runs of one seed share start and batches.

    Each run has a process and one thread to itself, which on small models is faster than one run
    on all cores, and makes the numbers independent of how many cores there are.

    Args:
        corpus: text to train on.
        config: the run; its optimizer and seed are replaced.
        optimizers: arms.
        seeds: one run of each arm a seed.
        workers: processes at a time; as many as cores if not given.
        progress: show a progress bar.

    Returns:
        The table of all metrics, and the trained embeddings.

    Raises:
        ValueError: if there is no arm, or an unknown one.
        DivergedError: if the loss of one run diverges.
    """
    arms = [(optimizer, seed) for seed in seeds for optimizer in optimizers]
    if not arms:
        raise ValueError("nothing to compare: give at least one optimizer and one seed")
    jobs = [(corpus, replace(config, optimizer=o, seed=s)) for o, s in arms]
    workers = min(workers or _cores(), len(jobs))
    # Processes that start anew, since a forked copy of a process with threads can hang.
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        results = list(
            tqdm(pool.map(_arm, jobs), "runs", len(jobs), leave=False, disable=not progress)
        )
    tables, embeddings, seconds = zip(*results, strict=True)
    labelled = [
        table.assign(optimizer=o, seed=s) for table, (o, s) in zip(tables, arms, strict=True)
    ]
    return Comparison(
        pd.concat(labelled, ignore_index=True),
        dict(zip(arms, embeddings, strict=True)),
        {arm: v for arm, v in zip(arms, seconds, strict=True) if v is not None},
    )


def _arm(
    job: tuple[Corpus, TrainingConfig],
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None]:
    corpus, config = job
    recording = record(corpus, config, snapshots=())
    second = recording.second_moment
    if second is not None and second.ndim == 2:
        second = second.mean(axis=1)
    weight = recording.model.output_embedding.detach().numpy()
    return recording.metrics, weight, second


def _cores() -> int:
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


class Interval(NamedTuple):
    """A mean over seeds with its two-sided Student t interval."""

    mean: float
    low: float
    high: float


def interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean of a few independent values, with the interval of Student's t.

    Args:
        values: at least two finite numbers, one a seed.
        confidence: in (0, 1).

    Returns:
        Mean and bounds.

    Raises:
        ValueError: for fewer than two values, as one run has no spread, and for infinite values
            or NaN.
    """
    sample = np.asarray(list(values), float)
    if len(sample) < 2:
        raise ValueError(f"an interval needs at least two values (seeds), got {len(sample)}")
    if not np.isfinite(sample).all():
        raise ValueError(f"an interval needs finite values, got {sample.tolist()}")
    half = stats.sem(sample) * stats.t.ppf((1 + confidence) / 2, len(sample) - 1)
    return Interval(float(sample.mean()), float(sample.mean() - half), float(sample.mean() + half))


def summarise(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % interval of each measure over the seeds.

    Args:
        table: rows of several seeds, such as ``Comparison.final``.
        measures: columns to summarise.

    Returns:
        One row per optimizer and measure, with columns mean, low, high.
    """
    rows = [
        {"optimizer": optimizer, "measure": measure, **interval(part[measure])._asdict()}
        for optimizer, part in table.groupby("optimizer", sort=False)
        for measure in measures
    ]
    return pd.DataFrame(rows).set_index(["optimizer", "measure"])


def paired_difference(table: pd.DataFrame, measure: str, ours: str, theirs: str) -> Interval:
    """Difference of two arms, seed by seed, with its interval.

    The seeds share initial weights and batches, so that the spread between seeds cancels.

    Args:
        table: rows of several seeds, such as ``Comparison.final``.
        measure: the column to compare.
        ours: optimizer whose value counts positive.
        theirs: optimizer whose value is subtracted.

    Returns:
        Mean of ours minus theirs, with the 95 % interval.
    """
    wide = table.pivot(index="seed", columns="optimizer", values=measure)
    return interval(wide[ours] - wide[theirs])


def displacement_shares(recording: Recording, counts: np.ndarray, bins: int = 4) -> pd.DataFrame:
    """Who carries the mean embedding: each frequency class's part of the mean's displacement.

    Args:
        recording: with snapshots of the embeddings.
        counts: occurrences of each token in the training text, [V].
        bins: number of equally large classes, rarest first.

    Returns:
        One row per snapshot and class, with columns step, class (1 is the rarest) and share; the
        shares of a step add up to one.
    """
    start = recording.embeddings[0]
    rows = []
    for step, weight in recording.embeddings.items():
        if step == 0:
            continue
        shares = evaluation.displacement_shares(start, weight, counts, bins)
        for number, share in enumerate(shares, start=1):
            rows.append({"step": step, "class": number, "share": share})
    return pd.DataFrame(rows)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors, in [-1, 1].

    Args:
        a: shape [H].
        b: shape [H].

    Returns:
        Their cosine.

    Raises:
        ValueError: if one of them is zero.
    """
    product = np.linalg.norm(a) * np.linalg.norm(b)
    if product == 0:
        raise ValueError("the cosine of a zero vector is not defined")
    return float(a @ b / product)


@dataclass(frozen=True)
class Record:
    """A run that was made once and is kept as numbers, with what they depend on.

    Attributes:
        name: of the file, without its ending.
        config: model, recipe and seed.
        text: name, description, fingerprint, vocabulary size, training and validation tokens.
        environment: of the training: device, versions, commit of the library (None if unknown;
            the first records lack it), threads, processes, start.
        evaluated: of the evaluation: the same.
        command: repeats the run; None if the command line cannot.
        metrics: the evaluated steps, with the columns of ``training.Run.metrics``.
        final: the row of ``evaluation.Evaluation``; NaN where something could not be measured.
        by_frequency: as from ``evaluation.loss_by_frequency``.
        word_pairs: as from ``evaluation.word_similarity``.
        drift: how the mean has moved, or None.
    """

    name: str
    config: TrainingConfig
    text: dict[str, Any]
    environment: dict[str, Any]
    evaluated: dict[str, Any]
    command: str | None
    metrics: pd.DataFrame = field(repr=False)
    final: dict[str, float] = field(repr=False)
    by_frequency: pd.DataFrame = field(repr=False)
    word_pairs: pd.DataFrame = field(repr=False)
    drift: Drift | None = field(repr=False)


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
        OSError: if the file cannot be written; what was there before stays as it was.
    """
    run = measured.run
    described = json.loads((run.folder / CONFIG_FILE).read_text(encoding="utf-8"))
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
        "environment": described["environment"],
        "evaluated": evaluated,
        "command": command,
        "metrics": _plain(run.metrics.dropna(subset="validation_loss")),
        "final": _plain(pd.DataFrame([measured.row]))[0],
        "loss_by_frequency": _plain(measured.by_frequency),
        "word_pairs": _plain(measured.word_pairs),
        "drift": measured.drift and measured.drift._asdict(),
    }
    with whole_file(Path(path)) as file:
        file.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


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
        ValueError: if the file holds something else.
        OSError: if it cannot be read.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["kind"] != _KIND:
            raise ValueError(f"its kind is {found['kind']!r}")
        config = {
            **found["config"],
            "model": GPTConfig(**found["config"]["model"]),
            "betas": tuple(found["config"]["betas"]),
        }
        drift = found["drift"]
        return Record(
            path.stem,
            TrainingConfig(**config),
            found["text"],
            found["environment"],
            found["evaluated"],
            found["command"],
            pd.DataFrame(found["metrics"]).astype(float),
            pd.DataFrame([found["final"]]).astype(float).iloc[0].to_dict(),
            pd.DataFrame(found["loss_by_frequency"]).astype({"loss": float}),
            pd.DataFrame(found["word_pairs"]).astype({"pearson": float, "spearman": float}),
            drift and Drift(**{**drift, "shares": tuple(drift["shares"])}),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the record of a training run ({error})") from error


def recorded_runs(folder: str | Path = RECORDS) -> list[Record]:
    """The recorded runs, small models first; other files of the folder are passed over.

    Args:
        folder: where they lie; by default those that come with the library.

    Returns:
        The records, by size of the model, name of the optimizer and seed.

    Raises:
        ValueError: if a file says that it is a record of a run and is damaged.
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
        ValueError: if a file says that it is a record of a run and is damaged.
    """
    done = {
        (record.config.model.layers, record.config.optimizer, record.config.seed)
        for record in recorded_runs(folder)
        if record.final["tokens"] >= _WANTED_TOKENS
    }
    rows = {
        f"tiny test, {preset}, {optimizer}, seed {seed}": commands(preset, optimizer, seed, text)
        for preset, optimizer, seed in WANTED
        if (PRESETS[preset].layers, optimizer, seed) not in done
    }
    rows = {what: lines["train"] for what, lines in rows.items()}
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
