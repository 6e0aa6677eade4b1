"""Arms, seeds and settings side by side: runs that exist are found, the others are made."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from coupled_adam.arms import ARMS, MAIN, Arm, arm
from coupled_adam.errors import RefusedError
from coupled_adam.files import InUseError, digest_of, write_json
from coupled_adam.provenance import version
from coupled_adam.text import Corpus
from coupled_adam.training import DivergedError, Run, TrainingConfig, train
from coupled_adam.training.folder import read_all_rows

DIVERGED_FILE = "diverged.json"
_SECONDS_BETWEEN_LOOKS = 2.0  # at runs that another process is making

Job = tuple[TrainingConfig, Corpus]
Measure = Callable[[Run, Corpus], pd.DataFrame]


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        config: of the run.
        name: see ``run_name``.
        metrics: as in ``training.Run.metrics``; of a diverged run, the steps before.
        diverged_at: the step at which it diverged, or None.
        embedding: final output embeddings, float32, [V, H]; None if it diverged.
        second_moment: as in ``training.Run.second_moment``; None if it diverged.
        measured: what ``measure`` of ``run_sweep`` returned; None without one, or if it diverged.
    """

    config: TrainingConfig
    name: str
    metrics: pd.DataFrame = field(repr=False)
    diverged_at: int | None = None
    embedding: np.ndarray | None = field(default=None, repr=False)
    second_moment: np.ndarray | None = field(default=None, repr=False)
    measured: pd.DataFrame | None = field(default=None, repr=False)

    @property
    def final(self) -> dict[str, float]:
        """The last evaluated row of the metrics.

        Of a diverged run, ``validation_loss`` is infinite and every other measure NaN, so that it
        cannot pass for a finished one nor drop out of a mean unnoticed.
        """
        evaluated = self.metrics.dropna(subset="validation_loss")
        if self.diverged_at is None:
            return {str(name): value for name, value in evaluated.iloc[-1].items()}
        lost = dict.fromkeys(map(str, evaluated.columns), math.nan)
        return {**lost, "step": self.diverged_at, "validation_loss": math.inf}


@dataclass
class Comparison:
    """Arms trained on the same text with the same seeds.

    Attributes:
        metrics: one row per optimizer, seed and step; the columns of ``training.Run.metrics``.
        final: one row per optimizer and seed, as from ``Outcome.final``.
        diverged: the step at which a run diverged, by (optimizer, seed); empty if none did.
        embeddings: final output embeddings by (optimizer, seed), float32, [V, H].
        second_moments: final second moment by (optimizer, seed), averaged over the columns for
            Adam, [V]; for Coupled Adam the shared vector, [H]; SGD has none.
    """

    metrics: pd.DataFrame
    final: pd.DataFrame
    diverged: dict[tuple[str, int], int]
    embeddings: dict[tuple[str, int], np.ndarray] = field(repr=False)
    second_moments: dict[tuple[str, int], np.ndarray] = field(repr=False)


def run_name(config: TrainingConfig, corpus: Corpus) -> str:
    """The name of a run: a hash of configuration, corpus and version of the library.

    Args:
        config: of the run; how it is computed (accumulation, compilation) does not count.
        corpus: its fingerprint counts.

    Returns:
        Arm, seed and 16 hexadecimal digits, as in ``coupled-0-1f0c…``.
    """
    content = {"config": config.decisive(), "corpus": corpus.fingerprint, "version": version()}
    return f"{config.optimizer}-{config.seed}-{digest_of(content)[:16]}"


def compare(
    config: TrainingConfig,
    corpus: Corpus,
    *,
    optimizers: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Train every optimizer with every seed; runs of one seed share start and batches.

    Args:
        config: the run; its optimizer and seed are replaced.
        corpus: text to train on.
        optimizers: names of arms; those of ``arms.MAIN`` if not given.
        seeds: one run of each arm a seed.
        folder: see ``run_sweep``.
        workers: see ``run_sweep``.
        progress: see ``run_sweep``.

    Returns:
        The table of all metrics, and the trained embeddings.

    Raises:
        RefusedError: if there is no arm, or an unknown one.
    """
    names = list(MAIN) if optimizers is None else optimizers
    configs = [replace(config, optimizer=name, seed=seed) for seed in seeds for name in names]
    if not configs:
        raise RefusedError("nothing to compare: give at least one optimizer and one seed")
    outcomes = run_sweep(
        [(one, corpus) for one in configs], folder, workers=workers, progress=progress
    )
    return comparison(outcomes)


def comparison(outcomes: Iterable[Outcome]) -> Comparison:
    """The tables of runs that differ in arm and seed only."""
    keyed = {(one.config.optimizer, one.config.seed): one for one in outcomes}
    tables, finals = (
        [
            table.assign(optimizer=name, seed=seed)
            for (name, seed), one in keyed.items()
            for table in [one.metrics if whole else pd.DataFrame([one.final])]
        ]
        for whole in (True, False)
    )
    moments = {
        key: one.second_moment.mean(axis=1) if one.second_moment.ndim == 2 else one.second_moment
        for key, one in keyed.items()
        if one.second_moment is not None
    }
    return Comparison(
        pd.concat(tables, ignore_index=True),
        pd.concat(finals, ignore_index=True),
        {key: one.diverged_at for key, one in keyed.items() if one.diverged_at is not None},
        {key: one.embedding for key, one in keyed.items() if one.embedding is not None},
        moments,
    )


def run_sweep(
    jobs: Iterable[Job],
    folder: str | Path | None = None,
    *,
    measure: Measure | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[Outcome]:
    """Make every run that does not exist yet, several at a time.

    Each run has a process and one thread to itself, which on small models is faster than one run
    on all cores, and makes the numbers independent of how many cores there are. joblib hands the
    runs out, so that within ``joblib.parallel_config("dask")`` or ``("ray")`` a cluster makes them.

    With a folder every run has a run folder in it, by its ``run_name``. A finished run is only
    read; one that was interrupted goes on; one that diverged is remembered. Several processes, on
    several machines if they share the file system, may work on one sweep: what another one is
    making is left to it, and read when it is done.

    Args:
        jobs: configuration and corpus of each run.
        folder: where the run folders lie, made if needed; None keeps nothing.
        measure: what else is to be known of a finished run; a function of a module, since other
            processes call it. Its table is kept in the run folder under the function's name, so
            a function that comes to measure something else needs another name.
        workers: processes at a time; as many as the cores, or as the cluster has, if not given.
        progress: show a progress bar.

    Returns:
        The outcomes, in the order of the jobs.

    Raises:
        RefusedError: if two jobs are the same run, or a run folder is damaged.
        OSError: if a folder cannot be written.
    """
    jobs = list(jobs)
    names = [run_name(*job) for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise RefusedError(f"two runs of the sweep are the same, {name}: give each once")
    place = None if folder is None else Path(folder)
    outcomes: dict[str, Outcome] = {}
    with tqdm(desc="runs", total=len(jobs), leave=False, disable=not progress) as bar:
        while waiting := [
            joblib.delayed(_outcome)(job, name, place, arm(job[0].optimizer), measure)
            for job, name in zip(jobs, names, strict=True)
            if name not in outcomes
        ]:
            if len(waiting) < len(jobs) and not bar.disable:
                bar.set_postfix_str(f"{len(waiting)} are being made by another process")
            parallel = joblib.Parallel(
                -1 if workers is None else workers, return_as="generator_unordered"
            )
            before = len(outcomes)
            for outcome in parallel(waiting):
                if outcome is not None:
                    outcomes[outcome.name] = outcome
                    bar.update()
            if len(outcomes) == before:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
    return [outcomes[name] for name in names]


def _outcome(
    job: Job, name: str, place: Path | None, chosen: Arm, measure: Measure | None
) -> Outcome | None:
    """One run, found or made; None if another process is making it."""
    config, corpus = job
    ARMS.setdefault(chosen.name, chosen)  # one that was added where the sweep was started
    folder = None if place is None else place / name
    if folder is not None and (folder / DIVERGED_FILE).exists():
        step = json.loads((folder / DIVERGED_FILE).read_text(encoding="utf-8"))["step"]
        return Outcome(config, name, pd.DataFrame(read_all_rows(folder)), step)
    try:
        with _one_thread():
            run = train(config, corpus, folder, progress=False)
            measured = None if measure is None else _measured(measure, run, corpus)
    except InUseError:
        return None
    except DivergedError as error:
        if folder is not None:
            write_json(folder / DIVERGED_FILE, {"step": error.step, "what": error.what})
        return Outcome(config, name, pd.DataFrame(error.rows), error.step)
    weight = run.model.output_embedding.detach().numpy()
    return Outcome(config, name, run.metrics, None, weight, run.second_moment, measured)


def _measured(measure: Measure, run: Run, corpus: Corpus) -> pd.DataFrame:
    if run.folder is None:
        return measure(run, corpus)
    path = run.folder / f"{measure.__name__}.json"
    if path.exists():
        return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
    table = measure(run, corpus)
    write_json(path, json.loads(table.to_json(orient="records", double_precision=10)))
    return table


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
