"""Arms at equal tuning: each gets a learning rate of its own, then fresh seeds decide.

The protocol, for every setting (a text, a length of training, a batch, a vocabulary ...):

1. *Tuning.* Each arm is trained at the same multipliers of the embeddings' learning rate, a factor
   of two apart, with the same two seeds. The one with the least loss on one half of the validation
   documents wins. A winner at the edge of its grid is not one: the grid is extended.
2. *Report.* Each arm is trained with fresh seeds at its own winner, and at the multiplier 1 that
   all arms have in common; the loss is taken on the other half of the documents.

Seeds are paired: those of one number share initial weights and batches in all arms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coupled_adam import geometry
from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.losses import (
    FREQUENCY_BORDERS,
    half_of_documents,
    loss_by_frequency,
    reference_losses,
    window_losses,
)
from coupled_adam.evaluation.stability import stability_rows
from coupled_adam.experiments.sweep import Outcome, run_sweep
from coupled_adam.statistics import interval
from coupled_adam.text import Corpus
from coupled_adam.training import Run, TrainingConfig, small_config

TUNING_SEEDS = (100, 101)
REPORT_SEEDS = (0, 1, 2, 3, 4)
MULTIPLIERS = (1.0, 2.0, 4.0)
COMMON = 1.0
_SAME_ARM_SEED = 1_000  # the first of seeds that nothing else uses

_TUNING_TOKENS, _REPORT_TOKENS = 16_384, 65_536
_EXTENSIONS = 8  # doublings of a grid before it is given up


@dataclass(frozen=True)
class Setting:
    """One point at which arms are compared.

    Attributes:
        name: of the setting, as it stands in tables.
        config: of its runs; optimizer, seed and multiplier are replaced.
        corpus: text to train on.
        columns: what the tables say of the setting, such as ``{"tokens": 102400}``.
    """

    name: str
    config: TrainingConfig
    corpus: Corpus
    columns: dict[str, float | str] = field(default_factory=dict)


def setting(name: str, corpus: Corpus, **changes: object) -> Setting:
    """The small GPT, trained once over a text.

    Args:
        name: of the setting.
        corpus: text; the number of steps is that of one pass over it unless ``steps`` is given.
        changes: fields of ``TrainingConfig`` to set otherwise.

    Returns:
        A setting whose warm-up is a tenth of the steps and which is evaluated four times on the
        way, where ``changes`` do not say otherwise, and whose columns say how the tokens lie within
        Adam's memory (see ``memory``).
    """
    config = small_config(corpus, **changes)
    if "steps" not in changes:
        config = replace(config, steps=max(1, len(corpus.train) // config.step_tokens))
    unless_given: dict[str, Any] = {
        "warmup_steps": max(1, config.steps // 10),
        "evaluate_every": max(1, config.steps // 4),
        "checkpoint_every": config.steps,
    }
    config = replace(config, **{k: v for k, v in unless_given.items() if k not in changes})
    beta2 = (config.embedding_betas or config.betas)[1]
    columns: dict[str, float | str] = {
        "text": corpus.name,
        "tokens": config.steps * config.step_tokens,
        "vocabulary": corpus.vocabulary_size,
        "step_tokens": config.step_tokens,
        "steps": config.steps,
        "beta2": beta2,
        "width": config.model.width,
        **memory(corpus.frequencies, config.step_tokens, beta2),
    }
    return Setting(name, config, corpus, columns)


def memory(frequencies: np.ndarray, step_tokens: int, beta2: float) -> dict[str, float]:
    """How often the tokens of a vocabulary occur within the memory of Adam's second moment.

    The memory is about N / (1 - beta2) tokens for steps of N, so token i occurs
    n_i = f_i N / (1 - beta2) times in it.

    Args:
        frequencies: share f of each token in the text, [V], with sum 1.
        step_tokens: N.
        beta2: decay rate of the second moment, in [0, 1).

    Returns:
        ``rare_share``: share of the vocabulary with n_i below 1; ``median_n``: the median of n_i;
        both over the tokens of the vocabulary, each counted once.
    """
    n = np.asarray(frequencies) * step_tokens / (1 - beta2)
    return {"rare_share": float((n < 1).mean()), "median_n": float(np.median(n))}


def measures(run: Run, corpus: Corpus) -> pd.DataFrame:
    """What the evidence needs to know of a finished run.

    Args:
        run: of the corpus.
        corpus: gives the validation documents, of which half 0 serves for tuning and half 1 for
            reports.

    Returns:
        Columns measure, set, value: the losses in nats (``loss`` of ``tuning``, ``report``, of each
        document and each class of frequency of the report), calibration of each class (log of
        predicted over true frequency), the measures of ``geometry.summary``, and how steady the
        training was (``stability_rows`` of the evaluation).
    """
    context = run.config.model.context
    rows: list[tuple[str, str, float]] = []
    tuning = window_losses(run.model, *half_of_documents(corpus, 0, context, _TUNING_TOKENS))
    rows.append(("loss", "tuning", float(tuning.losses.mean())))
    report = window_losses(run.model, *half_of_documents(corpus, 1, context, _REPORT_TOKENS))
    rows.append(("loss", "report", float(report.losses.mean())))
    for number in np.unique(report.documents):
        of_document = report.losses[report.documents == number]
        rows.append(("loss", f"document {number}", float(of_document.mean())))
        rows.append(("tokens", f"document {number}", float(of_document.size)))
    by_token = report.by_token
    predicted = report.predicted[: corpus.vocabulary_size]
    by_token = by_token._replace(
        sums=by_token.sums[: corpus.vocabulary_size], counts=by_token.counts[: len(predicted)]
    )
    classes = loss_by_frequency(by_token, corpus.frequencies)
    number_of_class = np.digitize(corpus.frequencies, FREQUENCY_BORDERS)
    for k, row in classes.iterrows():
        name = f"class {k}"
        true = by_token.counts[number_of_class == k].sum()
        given = predicted[number_of_class == k].sum()
        rows += [("loss", name, row["loss"]), ("share", name, row["share"])]
        rows.append(("calibration", name, math.log(given / true) if true and given else math.nan))
    embedding = run.model.output_embedding.detach()[: corpus.vocabulary_size]
    summary = geometry.summary(embedding, corpus.counts)
    rows += [("geometry", name, value) for name, value in summary.items()]
    steady = stability_rows(run.metrics, run.config.gradient_clip)
    rows += [("stability", one.measure, one.value) for one in steady if not one.note]
    return pd.DataFrame(rows, columns=["measure", "set", "value"])


def reference(where: Setting) -> dict[str, float]:
    """Losses of the report's half for models that only count: see ``reference_losses``."""
    context = where.config.model.context
    windows, _ = half_of_documents(where.corpus, 1, context, _REPORT_TOKENS)
    return reference_losses(where.corpus, windows)


def rows_of(outcomes: Iterable[Outcome], where: Setting, stage: str) -> pd.DataFrame:
    """One row a run: setting, stage, arm, multiplier, seed, and a column for each measure.

    A diverged run has an infinite loss and the step at which it diverged.
    """
    rows = []
    for one in outcomes:
        row: dict[str, object] = {
            "setting": where.name,
            "stage": stage,
            "optimizer": one.config.optimizer,
            "multiplier": one.config.embedding_multiplier,
            "seed": one.config.seed,
            "diverged_at": one.diverged_at,
            **where.columns,
        }
        if one.measured is None:
            row |= {"loss/tuning": math.inf, "loss/report": math.inf}
        else:
            values = one.measured.itertuples(index=False)
            row |= {f"{measure}/{name}": value for measure, name, value in values}
        rows.append(row)
    return pd.DataFrame(rows)


def tune(
    where: Setting,
    optimizers: Sequence[str],
    folder: str | Path | None,
    *,
    multipliers: Sequence[float] | Mapping[str, Sequence[float]] = MULTIPLIERS,
    seeds: Sequence[int] = TUNING_SEEDS,
    workers: int | None = None,
) -> tuple[dict[str, float], pd.DataFrame]:
    """The embeddings' learning rate at which each arm does best.

    Args:
        where: the setting.
        optimizers: names of arms.
        folder: of the run folders, see ``run_sweep``.
        multipliers: a grid of factors of two, at least three, to begin with; one for all arms or
            one for each.
        seeds: of the tuning runs.
        workers: see ``run_sweep``.

    Returns:
        The winning multiplier of each arm, which has a worse neighbour on either side, and the
        table of ``rows_of`` of all runs that were made for it.

    Raises:
        RefusedError: if an arm is still best at an edge after eight extensions of its grid.
    """
    grids = {
        name: sorted(multipliers[name] if isinstance(multipliers, Mapping) else multipliers)
        for name in optimizers
    }
    made: dict[tuple[str, float, int], Outcome] = {}
    for _ in range(_EXTENSIONS + 1):
        wanted = [
            (name, multiplier, seed)
            for name in optimizers
            for multiplier in grids[name]
            for seed in seeds
            if (name, multiplier, seed) not in made
        ]
        jobs = [
            (
                replace(where.config, optimizer=name, embedding_multiplier=multiplier, seed=seed),
                where.corpus,
            )
            for name, multiplier, seed in wanted
        ]
        outcomes = run_sweep(jobs, folder, measure=measures, workers=workers)
        made.update(zip(wanted, outcomes, strict=True))
        table = rows_of(made.values(), where, "tuning")
        mean = table.groupby(["optimizer", "multiplier"])["loss/tuning"].mean()
        best = {name: float(mean[name].idxmin()) for name in optimizers}
        at_an_edge = False
        for name, grid in grids.items():
            if best[name] in (grid[0], grid[-1]):
                at_an_edge = True
                beyond = best[name] / 2 if best[name] == grid[0] else best[name] * 2
                grids[name] = sorted([*grid, beyond])
        if not at_an_edge:
            return best, table
    raise RefusedError(f"{where.name}: no optimum inside the grids {grids}; the best are {best}")


def report(
    where: Setting,
    best: dict[str, float],
    folder: str | Path | None,
    *,
    seeds: Sequence[int] = REPORT_SEEDS,
    common: float | None = COMMON,
    stage: str = "report",
    workers: int | None = None,
) -> pd.DataFrame:
    """Fresh seeds at each arm's own best multiplier, and at the common one.

    Args:
        where: the setting.
        best: the multiplier of each arm, as from ``tune``.
        folder: of the run folders, see ``run_sweep``.
        seeds: of the runs; none of those that were used for tuning.
        common: the multiplier that all arms have in common; None leaves it out.
        stage: what the rows are called.
        workers: see ``run_sweep``.

    Returns:
        The table of ``rows_of``; a run at the common multiplier is in stage "common" unless it is
        the arm's best too.
    """
    wanted = [
        (name, multiplier, seed)
        for seed in seeds
        for name in best
        for multiplier in dict.fromkeys([best[name], common])
        if multiplier is not None
    ]
    jobs = [
        (replace(where.config, optimizer=name, embedding_multiplier=value, seed=seed), where.corpus)
        for name, value, seed in wanted
    ]
    outcomes = run_sweep(jobs, folder, measure=measures, workers=workers)
    table = rows_of(outcomes, where, stage)
    own = table["multiplier"] == table["optimizer"].map(best)
    return table.assign(stage=table["stage"].where(own, "common"))


def gains(
    table: pd.DataFrame, ours: str, theirs: str, stage: str = "report", column: str = "loss/report"
) -> pd.Series:
    """How much lower one arm's loss is than another's, seed by seed.

    Args:
        table: of one setting, as from ``report``.
        ours: arm whose lower loss counts as a gain.
        theirs: arm that it is compared with.
        stage: "report" (each at its own best multiplier), "common" or "shuffled".
        column: the measure.

    Returns:
        Theirs minus ours by seed, in nats for losses.

    Raises:
        RefusedError: if the stage has no pair of the two arms.
    """
    of_stage = table[table["stage"] == stage]
    if stage == "common":  # where the best multiplier is the common one, the run is made once
        of_stage = table[
            table["stage"].isin(["report", "common"]) & (table["multiplier"] == COMMON)
        ]
    wide = of_stage.pivot(index="seed", columns="optimizer", values=column)
    if not {ours, theirs} <= set(wide.columns):
        raise RefusedError(
            f"stage {stage!r} has no pairs of {ours!r} and {theirs!r}, only {', '.join(wide)}"
        )
    return (wide[theirs] - wide[ours]).rename(column)


def gains_by_document(table: pd.DataFrame, ours: str, theirs: str) -> pd.Series:
    """The gain on each document of the report, mean over the seeds.

    Arguments as for ``gains``; the spread of these over documents is another one than that over
    seeds, and says what other documents might have shown.
    """
    reported = table[table["stage"] == "report"].dropna(axis=1)  # a shuffled twin has others
    columns = [name for name in reported if name.startswith("loss/document")]
    return pd.Series({name: gains(table, ours, theirs, column=name).mean() for name in columns})


def gains_by_frequency(table: pd.DataFrame, ours: str, theirs: str) -> pd.DataFrame:
    """What each class of frequency contributes to the gain.

    Returns:
        One row a class, rarest first: ``share`` of the targets, ``gain`` in nats within the class,
        and ``contribution``, the product; the contributions add up to the gain.
    """
    rows = []
    for column in [name for name in table if name.startswith("loss/class")]:
        share = table[column.replace("loss", "share")].dropna().iloc[0]
        if share > 0:
            gain = gains(table, ours, theirs, column=column).mean()
            rows.append(
                {"class": column[5:], "share": share, "gain": gain, "contribution": share * gain}
            )
    return pd.DataFrame(rows).set_index("class")


def same_arm(
    where: Setting,
    optimizer: str,
    folder: str | Path | None,
    *,
    comparisons: int = 20,
    pairs: int = 5,
    workers: int | None = None,
) -> pd.DataFrame:
    """An arm against itself: what the machinery calls a difference where there is none.

    Every comparison has seeds of its own, two for each pair, so that its pairs differ as runs of
    one arm differ.

    Args:
        where: the setting.
        optimizer: the arm.
        folder: of the run folders, see ``run_sweep``.
        comparisons: how many.
        pairs: of runs in a comparison, from 2.
        workers: see ``run_sweep``.

    Returns:
        One row a comparison: ``comparison``, mean, low and high of the paired interval in nats, and
        whether it was ``called`` a difference, which should happen in 5 % of cases.
    """
    seeds = [_SAME_ARM_SEED + number for number in range(comparisons * pairs * 2)]
    jobs = [(replace(where.config, optimizer=optimizer, seed=seed), where.corpus) for seed in seeds]
    outcomes = run_sweep(jobs, folder, workers=workers)
    losses = np.array([one.final["validation_loss"] for one in outcomes])
    rows = []
    for number, (one, other) in enumerate(losses.reshape(comparisons, 2, pairs)):
        found = interval(one - other)
        called = not found.low <= 0 <= found.high
        rows.append({"comparison": number, **found._asdict(), "called": called})
    return pd.DataFrame(rows)
