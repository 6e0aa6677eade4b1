"""The command line: prepare, train, compare, evaluate and export; sweeps; benchmarks."""

from __future__ import annotations

import inspect
import itertools
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist

from coupled_adam.errors import RefusedError
from coupled_adam.extras import needs
from coupled_adam.files import check_writable, shown, user_path

with needs("cli"):
    import pandas as pd
    import typer

    from coupled_adam import evaluation, text
    from coupled_adam.arms import ARMS, MAIN
    from coupled_adam.console import errors_in_one_line, fail, guard_streams, say
    from coupled_adam.experiments import (
        Outcome,
        downstream,
        predictor,
        recorded,
        run_sweep,
        write_record,
    )
    from coupled_adam.experiments.evidence import memory
    from coupled_adam.report import experiment, page, plan, tables
    from coupled_adam.report.advice import PRIMARY, THRESHOLD
    from coupled_adam.report.steps import CostSheet
    from coupled_adam.text import Corpus
    from coupled_adam.text.corpus import TOKENIZER_FILE, read_tokenizer
    from coupled_adam.text.streams import COLLECTIONS
    from coupled_adam.training import (
        PRESETS,
        TrainingConfig,
        preset_config,
        small_config,
    )
    from coupled_adam.training import train as train_run
    from coupled_adam.training.folder import (
        CHECKPOINT_FILE,
        CONFIG_FILE,
        METRICS_FILE,
        read_description,
    )

SMALL = "small"
_SHAPE = ("layers", "heads", "width", "context", "tied")  # options of GPTConfig
SMALL_VOCABULARY, GPT2_VOCABULARY = 4096, 50_257

app = typer.Typer(
    help="Train small and not so small GPTs with Adam, Coupled Adam or SGD on the embeddings.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SOURCES = (
    "A file or folder of plain text; or wikipedia, a sample that is at hand; or streamed: "
    f"{', '.join(COLLECTIONS)}."
)
TextOption = Annotated[str, typer.Option("--text", help=SOURCES)]
VocabularyOption = Annotated[
    int | None,
    typer.Option(help="Number of BPE tokens; by default 4096 for small, 50257 for gpt2-*."),
]
DocumentsOption = Annotated[
    int | None, typer.Option(help="Of a streamed collection: the first so many; default: all.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")
]


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(metavar="TEXT", help=SOURCES)],
    vocabulary_size: Annotated[int, typer.Option(help="Number of BPE tokens.")] = GPT2_VOCABULARY,
    documents: DocumentsOption = None,
) -> None:
    """Turn text into tokens, kept in the cache (COUPLED_ADAM_CACHE); train finds them there.

    A streamed collection is prepared in shards; after an interruption the same command goes on.
    """
    with errors_in_one_line():
        corpus = _corpus(source, vocabulary_size, documents)
        of_documents = "" if documents is None else f"--documents {documents} "
        say(
            f"{corpus.name}: {len(corpus.train):,} tokens to train on, "
            f"{len(corpus.validation):,} to validate with, vocabulary {corpus.vocabulary_size:,}\n"
            f"folder: {corpus.folder}\n"
            f"fingerprint: {corpus.fingerprint}\n"
            f"train on it: coupled-adam train --text {shlex.quote(source)} "
            f"--vocabulary-size {vocabulary_size} {of_documents}--out FOLDER"
        )


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The run folder; one that holds a run goes on.")],
    source: TextOption = "wikipedia",
    preset: Annotated[
        Literal["small", "gpt2-124m", "gpt2-355m", "gpt2-774m"],
        typer.Option(help="Model and recipe: the book's small GPT, or the paper's."),
    ] = "small",
    optimizer: Annotated[
        str, typer.Option(help=f"Of the embeddings: {', '.join(ARMS)}.")
    ] = "coupled",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; default: preset's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences in a step, over all processes.")
    ] = None,
    accumulation: Annotated[
        int | None, typer.Option(help="Pieces of a step's batch (more need less memory).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights and batches.")] = 0,
    learning_rate: Annotated[
        float | None, typer.Option(help="The peak; default: preset's.")
    ] = None,
    embedding_multiplier: Annotated[
        float | None,
        typer.Option(help="The embeddings' learning rate as a multiple; default: the optimizer's."),
    ] = None,
    embedding_betas: Annotated[
        tuple[float, float] | None,
        typer.Option(help="The embeddings' own; default: the optimizer's."),
    ] = None,
    embedding_eps: Annotated[
        float | None, typer.Option(help="The embeddings' own; default: the optimizer's.")
    ] = None,
    embedding_weight_decay: Annotated[
        float | None, typer.Option(help="The embeddings' own; default: the optimizer's, mostly 0.")
    ] = None,
    betas: Annotated[
        tuple[float, float] | None, typer.Option(help="Decay rates of Adam's moments.")
    ] = None,
    eps: Annotated[float | None, typer.Option(help="Adam's epsilon.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the other matrices.")] = None,
    gradient_clip: Annotated[float | None, typer.Option(help="Greatest gradient norm.")] = None,
    layers: Annotated[int | None, typer.Option(help="Of the model; default: preset's.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads of a layer.")] = None,
    width: Annotated[int | None, typer.Option(help="Length of an embedding.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens that the model sees.")] = None,
    tied: Annotated[
        bool | None, typer.Option("--tied/--untied", help="One matrix for input and output.")
    ] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Of the learning rate.")] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps between two measurements.")
    ] = None,
    evaluation_tokens: Annotated[
        int | None, typer.Option(help="Validation tokens of a measurement.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between two checkpoints.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Of the computation.")
    ] = None,
    compiled: Annotated[bool | None, typer.Option(help="Use torch.compile.")] = None,
    vocabulary_size: VocabularyOption = None,
    documents: DocumentsOption = None,
    device: DeviceOption = None,
) -> None:
    """Train one model, or go on with the run in the folder. Under torchrun: on many processes."""
    changes = {
        "optimizer": optimizer,
        "steps": steps,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "seed": seed,
        "learning_rate": learning_rate,
        "embedding_multiplier": embedding_multiplier,
        "embedding_betas": embedding_betas,
        "embedding_eps": embedding_eps,
        "embedding_weight_decay": embedding_weight_decay,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "gradient_clip": gradient_clip,
        "layers": layers,
        "heads": heads,
        "width": width,
        "context": context,
        "tied": tied,
        "warmup_steps": warmup_steps,
        "evaluate_every": evaluate_every,
        "evaluation_tokens": evaluation_tokens,
        "checkpoint_every": checkpoint_every,
        "precision": precision,
        "compiled": compiled,
    }
    given: dict[str, object] = {name: value for name, value in changes.items() if value is not None}
    with errors_in_one_line(), _processes(device) as here:
        out = user_path(out)
        corpus = _corpus(source, vocabulary_size or _default_vocabulary(preset), documents)
        config = _config(preset, corpus, given)
        try:
            run = train_run(config, corpus, out, device=here)
        except KeyboardInterrupt:
            fail(f"interrupted; the same command goes on with the run in {out}", 130)
        if not dist.is_initialized() or dist.get_rank() == 0:
            final = run.final
            say(
                f"{out}: {config.steps:,} steps, {int(final.tokens):,} tokens, {optimizer}; "
                f"validation loss {final.validation_loss:.4f}, "
                f"isotropy {final.isotropy:.4f}, "
                f"relative norm of the mean embedding {final.relative_mean_norm:.4f}"
            )


@app.command()
def sweep(
    out: Annotated[Path, typer.Option(help="The folder of the run folders; the same goes on.")],
    source: TextOption = "wikipedia",
    optimizers: Annotated[
        list[str] | None,
        typer.Option(
            "--optimizer", help=f"Many times: {', '.join(ARMS)}. Default: {', '.join(MAIN)}."
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Many times. Default: 0, 1, 2.")
    ] = None,
    embedding_multipliers: Annotated[
        list[float] | None,
        typer.Option("--embedding-multiplier", help="Many times. Default: the optimizer's own."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each run.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The peak.")] = None,
    vocabulary_size: VocabularyOption = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time; default: as many as cores.", min=1)
    ] = None,
) -> None:
    """Train the small GPT with every optimizer, seed and multiplier; what is there is not repeated.

    The same command goes on after an interruption. Several processes, also on several machines that
    share the folder, may work on one sweep.
    """
    with errors_in_one_line():
        out = user_path(out)
        corpus = _corpus(source, vocabulary_size or SMALL_VOCABULARY, None)
        given = {"steps": steps, "learning_rate": learning_rate}
        changes = {name: value for name, value in given.items() if value is not None}
        jobs = [
            (small_config(corpus, optimizer=o, seed=s, embedding_multiplier=m, **changes), corpus)
            for m, s, o in itertools.product(
                embedding_multipliers or (None,), seeds or [0, 1, 2], optimizers or MAIN
            )
        ]
        outcomes = run_sweep(jobs, out, workers=workers)
        say("\n".join(_outcome_line(out, outcome) for outcome in outcomes))


def _outcome_line(folder: Path, outcome: Outcome) -> str:
    config, multiplier = outcome.config, outcome.config.embedding_multiplier
    times = "" if multiplier is None else f" x {multiplier:g}"
    end = f"validation loss {outcome.final['validation_loss']:.4f}"
    if outcome.diverged_at is not None:
        end = f"diverged at step {outcome.diverged_at}"
    return f"{config.optimizer}{times}, seed {config.seed}: {end} ({folder / outcome.name})"


@app.command()
def evidence(
    points: Annotated[
        list[str] | None,
        typer.Argument(help="Settings by name; default: those that are recorded.", metavar="NAME"),
    ] = None,
    books: Annotated[
        str | None, typer.Option("--text", help="The larger text: a file or folder of books.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of the run folders.")] = Path("evidence"),
    out: Annotated[Path, typer.Option(help="The folder of the records.")] = Path("data/evidence"),
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time; default: as many as cores.", min=1)
    ] = None,
) -> None:
    """Repeat the recorded sweeps of the book, or make some of their settings.

    "downstream NAME" evaluates the embeddings of a setting whose sweep has been made.

    Runs that are there are found, and the same command goes on after an interruption. What is
    recorded took one core fifteen hours.
    """
    with errors_in_one_line():
        made = [point.name for point in recorded.recorded_points()] + [recorded.SAME_ARM]
        made += [f"{downstream.PREFIX}{point.name}" for point in downstream.recorded_points()]
        for name in points or ():
            _check_evidence(name)
        for name in points or made:
            say(_make_evidence(name, books, user_path(runs), user_path(out), workers))


def _check_evidence(name: str) -> None:
    known = [point.name for point in recorded.POINTS]
    of_embeddings = [point.name for point in recorded.POINTS if not point.twin_of]
    of_point = name.removeprefix(downstream.PREFIX)
    if name in (*known, recorded.SAME_ARM) or (name != of_point and of_point in of_embeddings):
        return
    raise RefusedError(
        f"there is no setting {name!r}: choose from {', '.join(known)}, {recorded.SAME_ARM}; or "
        f'"{downstream.PREFIX}NAME" with one of these but the last and the shuffled'
    )


def _make_evidence(name: str, books: str | None, runs: Path, out: Path, workers: int | None) -> str:
    """One record made, and what to say of it."""
    if name == recorded.SAME_ARM:
        table = recorded.make_same_arm(runs, out, workers=workers)
        return f"{name}: {table['called'].sum()} of {len(table)} called different ({out})"
    known = {point.name: point for point in recorded.POINTS}
    if name.startswith(downstream.PREFIX):
        point = known[name.removeprefix(downstream.PREFIX)]
        table = downstream.make(point, books, runs, out, workers=workers)
        evaluated = len(table.groupby(["optimizer", "seed"]))
        return f"{name}: {evaluated} runs evaluated ({out})"
    table = recorded.make(known[name], books, runs, out, workers=workers)
    best = ", ".join(f"{arm} x {m:g}" for arm, m in recorded.winners(table).items())
    found = f"; best {best}" if best else ""  # a twin is trained at its text's best
    return f"{name}: {len(table)} runs{found} ({out})"


@app.command()
def predict(
    source: TextOption = "wikipedia",
    step_tokens: Annotated[
        int, typer.Option("--tokens-per-step", help="Of the planned run.", min=1)
    ] = 512,
    beta2: Annotated[
        float, typer.Option(help="Of the second moment of the embeddings, in [0, 1).")
    ] = 0.95,
    steps: Annotated[
        int | None, typer.Option(help="Of the planned run; short ones are refused.", min=1)
    ] = None,
    vocabulary_size: VocabularyOption = None,
    documents: DocumentsOption = None,
) -> None:
    """Predict from word counts and a plan what coupling would change, with the forecast's error.

    The settings that it is fitted to are small networks of chapter 10. It says where it is no
    better than knowing nothing.
    """
    with errors_in_one_line():
        if not 0 <= beta2 < 1:
            raise RefusedError(f"--beta2 must be in [0, 1), not {beta2}")
        table = predictor.settings()
        corpus = _corpus(source, vocabulary_size or 4096, documents)
        found = memory(corpus.frequencies, step_tokens, beta2)
        say(
            f"{corpus.name}: {found['rare_share']:.0%} of {corpus.vocabulary_size:,} tokens occur "
            f"less than once within {step_tokens / (1 - beta2):,.0f} tokens, the memory of Adam"
        )
        for measure, what in predictor.MEASURES.items():
            one = predictor.predict(table, found["rare_share"], measure, steps)
            verdict = "" if one.better_than_mean else ": no better than the mean, do not rely on it"
            say(
                f"{what}: {one.value:.2f}; error on settings not seen {one.error:.2f}, of the mean "
                f"{one.error_of_mean:.2f} ({one.settings} settings){verdict}"
            )


@app.command()
def compare(
    source: Annotated[
        str, typer.Option("--text", help="A file or folder of plain text, or wikipedia.")
    ] = "wikipedia",
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Texts to classify: label, tab, text in each line, or a .csv with the columns "
            "label and text."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="The budget; more buy more pairs.")] = 10.0,
    arms: Annotated[
        str, typer.Option(help="With commas; coupled, or else the last one, is decided on.")
    ] = ",".join(plan.ARMS),
    planned: Annotated[
        str | None,
        typer.Option(
            "--plan",
            help="The large run: tokens-per-step=98304,beta2=0.95,vocabulary=50257,steps=200000.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the report; the same goes on.")] = Path(
        "report"
    ),
    threshold: Annotated[
        float, typer.Option(help="Nats from which on a gain counts.", min=0)
    ] = THRESHOLD,
    vocabulary_size: Annotated[
        int | None, typer.Option(help="Number of BPE tokens; default: what the text allows.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time; default: as many as cores.", min=1)
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Only the report of what is there; train nothing.")
    ] = False,
    work_hours: Annotated[float, typer.Option(help="Of the cost sheet.", min=0)] = 16.0,
    work_price: Annotated[float, typer.Option(help="Of an hour of work.", min=0)] = 80.0,
    machine_price: Annotated[float, typer.Option(help="Of an hour of machine.", min=0)] = 2.5,
    planned_hours: Annotated[
        float, typer.Option(help="Machine hours of the large run; 0 if unknown.", min=0)
    ] = 0.0,
) -> None:
    """Does Coupled Adam pay for this text? Compare it with its rivals, and recommend by rules.

    Says its plan first, keeps its budget within a tenth, and after an interruption the same command
    goes on. Writes the report, its tables as CSV, and verdict.json.
    """
    with errors_in_one_line():
        started = time.monotonic()
        out = user_path(out)
        tables.check_out(out)
        if show:
            result = experiment.found(out)
        else:
            named = plan.check_arms([name.strip() for name in arms.split(",")])
            target = None if planned is None else plan.read_target(planned)
            plan.check_minutes(minutes)
            corpus, batch = plan.open_text(source, vocabulary_size)
            labelled = None
            if labels is not None:
                labelled = evaluation.downstream.read_labelled(user_path(labels))
                experiment.check_labels(labelled, corpus, str(labels))
            out.mkdir(parents=True, exist_ok=True)
            measure = experiment.Measures(corpus, labelled)
            say(f"{corpus.name}: {len(corpus.train):,} tokens to train on. A short probe first.")
            probed = experiment.find_probe(out, corpus, named, batch, measure)
            made = plan.make_plan(
                corpus, batch, minutes, named, probed, target=target, workers=workers
            )
            say("\n".join([*made.sentences(), plan.scale_sentence(made, corpus)]))
            say(f"Primary measure: {PRIMARY}. Ctrl-C keeps what is done ({out}).")
            before = time.monotonic() - started
            result = experiment.Experiment(
                made, corpus, out, measure=measure, before=before, say=say
            ).run()
        costs = CostSheet(work_hours, result.seconds / 3600, work_price, machine_price,
                          planned_hours)  # fmt: skip
        speed_up = tables.speed_up_of(result.facts(threshold))
        costs = replace(costs, speed_up=speed_up)
        facts, advice = tables.write_tables(result, out, threshold, costs)
        page.write_report(result, out, facts, advice, costs)
        say("\n".join(tables.summary_lines(facts, advice)))
        say(f"{out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}")
        if result.stopped == "interrupted" and not show:
            fail(f"interrupted; the same command goes on in {out}", 130)


@app.command()
def evaluate(
    run_folder: Annotated[Path, typer.Argument(help="What train wrote.")],
    source: TextOption = "wikipedia",
    documents: DocumentsOption = None,
    tokens: Annotated[
        int | None, typer.Option(help="Validation tokens; default: as many as in training.", min=1)
    ] = None,
    word_pairs: Annotated[
        list[Path] | None,
        typer.Option(help="Word, word, score in each line; many times. Default: gensim's two."),
    ] = None,
    analogies: Annotated[
        Path | None, typer.Option(help="Four words in each line. Default: gensim's.")
    ] = None,
    labelled: Annotated[
        list[Path] | None,
        typer.Option(
            help="Texts to classify: label, tab, text in each line, or a .csv with the columns "
            "label and text; many times. Default: gensim's two."
        ),
    ] = None,
    device: DeviceOption = None,
    description: Annotated[str, typer.Option(help="What the text is, for the record.")] = "",
    out: Annotated[Path | None, typer.Option(help="A file for the record as JSON.")] = None,
) -> None:
    """Measure a run on its text, and record the numbers with what they depend on."""
    with errors_in_one_line():
        device, run_folder = _device(device), user_path(run_folder)
        files = _by_name([user_path(path) for path in word_pairs]) if word_pairs else None
        texts = _by_name([user_path(path) for path in labelled]) if labelled else None
        analogies = None if analogies is None else user_path(analogies)
        asked = [
            *(files or {}).values(),
            *(texts or {}).values(),
            *([analogies] if analogies else []),
        ]
        out = _place(out, [source, *asked, *_files_of(run_folder)])
        corpus = _corpus(source, _vocabulary_of(run_folder), documents)
        measured = evaluation.evaluate(
            run_folder,
            corpus,
            tokens=tokens,
            word_pairs=files,
            analogies=analogies,
            labelled=texts,
            device=device,
        )
        with _shown_in_the_end(lambda: _show_evaluation(measured)):
            if out is not None:
                command = _train_command(run_folder, measured.run.config, source, documents, corpus)
                write_record(measured, out, device=device, description=description, command=command)


def _show_table(table: pd.DataFrame, numbers: str) -> None:
    with pd.option_context("display.width", 200, "display.max_columns", None):
        say(table.to_string(index=False, float_format=numbers.format))


def _show_evaluation(measured: evaluation.Evaluation) -> None:
    row = pd.Series(measured.row, dtype=object)  # or whole numbers would get decimals
    say(row.to_string(float_format="{:.4f}".format))
    for table in (measured.by_frequency, measured.word_pairs):
        say("")
        _show_table(table, "{:.4g}")
    if measured.drift is not None:
        shares = ", ".join(f"{100 * share:.0f}" for share in measured.drift.shares)
        say(
            f"\nthe mean embedding has moved by {measured.drift.distance:.4g}, cosine with minus "
            f"the sign of the mean hidden state {measured.drift.against_hidden:.2f}; shares of the "
            f"vocabulary's quarters in the move, rarest first, in percent: {shares}"
        )
    say("\neverything, with 95 % intervals over documents, queries, pairs or tokens:\n")
    table = measured.table.astype(object)
    _show_table(table.where(table.notna(), ""), "{:.4g}")


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="What train wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="HF_FOLDER", help="New or empty.")],
) -> None:
    """Write a run's model as a Hugging Face GPT-2 checkpoint."""
    with errors_in_one_line():
        from coupled_adam.export import export as export_run

        run_folder, folder = user_path(run_folder), user_path(folder)
        export_run(run_folder, folder)
        say(f"{folder}: a GPT-2 for transformers; lm_eval --model_args pretrained={folder}")


@app.command()
def bench(
    shapes: Annotated[
        list[str] | None, typer.Option("--shape", help="TOKENSxWIDTH; may be given many times.")
    ] = None,
    dtypes: Annotated[
        list[str] | None, typer.Option("--dtype", help="float32, bfloat16; many times.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Of the CPU; default: all.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="How often all take turns.", min=1)] = 15,
    out: Annotated[Path | None, typer.Option(help="A file for the results as JSON.")] = None,
) -> None:
    """Measure the optimizer's step on an embedding matrix, beside torch's AdamW.

    Each step is timed right after a matrix product, as in a training loop.
    """
    from coupled_adam import benchmark

    with errors_in_one_line():
        out = _place(out)
        table = benchmark.compare_steps(
            [_shape(shape) for shape in shapes or ["50304x768"]],
            dtypes=[_dtype(name) for name in dtypes or ["float32"]],
            device=device,
            threads=threads,
            rounds=rounds,
        )
        with _shown_in_the_end(lambda: _show_steps(table)):
            if out is not None:
                benchmark.write_results(table, out)


def _show_steps(table: pd.DataFrame) -> None:
    _show_table(table.drop(columns="implementation"), "{:.3f}")
    ran = table[["candidate", "implementation"]].drop_duplicates()
    for candidate, implementation in ran.itertuples(index=False):
        say(f"{candidate}: {implementation}")


@contextmanager
def _shown_in_the_end(show: Callable[[], None]) -> Iterator[None]:
    """Around the writing of a result, which comes first: its reader may be gone.

    It is shown also where it could not be written, or it would be lost.
    """
    try:
        yield
    except OSError:
        show()
        raise
    show()


def _shape(text: str) -> tuple[int, int]:
    rows, by, width = text.partition("x")
    if not (by and rows.isdecimal() and width.isdecimal()):
        raise RefusedError(f"--shape {text}: give tokens and width as in 50304x768")
    return int(rows), int(width)


def _dtype(name: str) -> torch.dtype:
    if name not in ("float32", "bfloat16", "float64"):
        raise RefusedError(f"--dtype {name}: choose float32, bfloat16 or float64")
    return getattr(torch, name)


def _corpus(source: str, vocabulary_size: int, documents: int | None) -> Corpus:
    if source in COLLECTIONS:
        return text.collection(source, documents, vocabulary_size)
    if documents is not None:
        raise RefusedError(f"--documents is for streamed collections ({', '.join(COLLECTIONS)})")
    if source == "wikipedia":
        return text.wikipedia_sample(vocabulary_size)
    return text.load(source, vocabulary_size)


def _default_vocabulary(preset: str) -> int:
    return SMALL_VOCABULARY if preset == SMALL else GPT2_VOCABULARY


def _config(preset: str, corpus: Corpus, given: dict[str, object]) -> TrainingConfig:
    recipe = {name: value for name, value in given.items() if name not in _SHAPE}
    if preset == SMALL:
        config = small_config(corpus, **recipe)
    else:
        config = preset_config(preset, corpus.vocabulary_size, **recipe)
    shape: dict[str, Any] = {name: value for name, value in given.items() if name in _SHAPE}
    return replace(config, model=replace(config.model, **shape))


def _settings(config: TrainingConfig) -> dict[str, object]:
    """The fields of a configuration and of its model, side by side, but for the vocabulary."""
    own = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "model"}
    return own | {name: getattr(config.model, name) for name in _SHAPE}


def _vocabulary_of(run_folder: Path) -> int:
    """The vocabulary size of the text that a run was trained on; the model's may be padded."""
    path = run_folder / TOKENIZER_FILE
    if not path.exists():
        raise FileNotFoundError(f"{run_folder} has no {TOKENIZER_FILE}: it is not a run folder")
    return int(read_tokenizer(path).get_vocab_size())


def _place(out: Path | None, inputs: Sequence[str | Path] = ()) -> Path | None:
    """Where a result shall be written; refused before the work if that cannot be."""
    if out is None:
        return None
    out = user_path(out)
    for path in inputs:
        path = os.path.expanduser(path)
        if out.exists() and os.path.exists(path) and out.samefile(path):
            raise RefusedError(f"--out {out} would replace what is read: choose another name")
    check_writable(out)
    return out


def _files_of(run_folder: Path) -> list[Path]:
    names = (CONFIG_FILE, METRICS_FILE, CHECKPOINT_FILE, TOKENIZER_FILE)
    return [run_folder / name for name in names]


def _by_name(paths: list[Path]) -> dict[str, Path]:
    """Files by their names without endings; with so much of their paths as tells them apart."""
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.resolve(), path.absolute())
    files = list(once.values())
    if len({file.stem for file in files}) == len(files):
        return {shown(file.stem): file for file in files}
    named = {}
    for file in files:
        depth = 1
        while sum(other.parts[-depth:] == file.parts[-depth:] for other in files) > 1:
            depth += 1
        named[shown("/".join(file.parts[-depth:]))] = file
    return named


def _train_command(
    run_folder: Path, config: TrainingConfig, source: str, documents: int | None, corpus: Corpus
) -> str | None:
    """The command that repeats a run; None if its settings have no options."""
    settable = inspect.signature(train).parameters
    for preset in (SMALL, *PRESETS):
        plain = _settings(_config(preset, corpus, {}))
        different = {
            name: value for name, value in _settings(config).items() if value != plain[name]
        }
        given = {name: value for name, value in different.items() if name in settable}
        if _config(preset, corpus, given) == config:
            break
    else:
        return None
    described = read_description(run_folder)["sessions"][-1]
    processes = described.get("processes", 1)
    command = ["coupled-adam"]
    if processes > 1:
        command = ["torchrun", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "coupled_adam.cli"]
    # The folder that a text lies in says nothing on another machine.
    command += ["train", "--text", Path(source).name]
    command += ["--preset", preset]
    if corpus.vocabulary_size != _default_vocabulary(preset):
        command += ["--vocabulary-size", str(corpus.vocabulary_size)]
    if documents is not None:
        command += ["--documents", str(documents)]
    # These two always, also where they are the defaults of today.
    named = {"optimizer": config.optimizer, "seed": config.seed}
    for name, value in (named | different).items():
        option = "--" + name.replace("_", "-")
        if name == "tied":
            command.append("--tied" if value else "--untied")
        elif isinstance(value, bool):
            command.append(option if value else option.replace("--", "--no-"))
        elif isinstance(value, tuple):
            command += [option, *map(str, value)]
        else:
            command += [option, str(value)]
    command += ["--device", described["device"].split()[0].split(":")[0]]
    return shlex.join([*command, "--out", run_folder.name])


def _device(device: str | None) -> str:
    """The device that is asked for, or the best there is."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RefusedError(f"--device {device}: torch finds no CUDA device here; use --device cpu")
    return device


@contextmanager
def _processes(device: str | None) -> Iterator[str]:
    """Join the other processes if torchrun has started some; yields the device to compute on."""
    device = _device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Run the command line."""
    guard_streams()
    app(prog_name="coupled-adam")


if __name__ == "__main__":
    main()
