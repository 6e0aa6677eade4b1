"""What a run is worth: a run folder in, its measures out, as one long table.

Everything that the folder and its text give without a network: the validation loss, also by the
frequency of the token that was to be predicted; calibration; the shape of the output embeddings and
of Adam's second moment; what the embeddings know of words and texts; who has moved the mean
embedding since the start; how calm the training was. The paper's accuracy on downstream tasks is
not among them: lm-eval measures it on an exported checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from coupled_adam import geometry
from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.calibration import calibration_rows, predicted_shares
from coupled_adam.evaluation.downstream import (
    LabelledTexts,
    classification,
    labelled_text_files,
    read_labelled,
    retrieval,
    text_similarity,
)
from coupled_adam.evaluation.drift import Drift, measure_drift
from coupled_adam.evaluation.losses import TokenLosses, loss_by_frequency, token_losses
from coupled_adam.evaluation.shape import second_moment, second_moment_rows, shape_rows
from coupled_adam.evaluation.stability import stability_rows
from coupled_adam.evaluation.table import (
    TRAINED,
    UNIGRAM,
    UNTRAINED,
    Measure,
    long_table,
    not_taken,
)
from coupled_adam.evaluation.usage import class_name, ppmi_agreement, spelling_variants
from coupled_adam.evaluation.variants import variants
from coupled_adam.evaluation.words import (
    ANALOGIES,
    analogy_rows,
    gensim_file,
    similarity_rows,
    word_pair_files,
    word_similarity,
)
from coupled_adam.text import Corpus, TextError
from coupled_adam.training import Run, initial_embedding, load_run
from coupled_adam.training.folder import read_description


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a run.

    Attributes:
        run: the run, with the model as of its last checkpoint.
        row: step and training tokens, ``validation_loss``, the measures of ``geometry.summary``,
            and ``r``, the mean over the word-pair sets of Pearson's correlation times 100 (NaN if
            no set could be measured).
        by_frequency: as from ``loss_by_frequency``.
        word_pairs: as from ``word_similarity``.
        drift: how the mean has moved; None if the initial weights cannot be made again, as with
            another version of torch.
        table: everything that was measured, from ``table.long_table``: the columns measure, set,
            variant, value, low, high, n, chance and note that ``table.Measure`` describes.
    """

    run: Run = field(repr=False)
    row: dict[str, float]
    by_frequency: pd.DataFrame = field(repr=False)
    word_pairs: pd.DataFrame = field(repr=False)
    drift: Drift | None
    table: pd.DataFrame = field(repr=False)


def evaluate(
    folder: str | Path,
    corpus: Corpus,
    *,
    tokens: int | None = None,
    word_pairs: Mapping[str, str | Path] | None = None,
    analogies: str | Path | None = None,
    labelled: Mapping[str, str | Path] | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Measure the last checkpoint of a run, in float32 whatever the run computed in.

    Args:
        folder: a run folder that ``train`` wrote.
        corpus: the text that the run was trained on.
        tokens: about how many validation tokens the loss is taken on; as many as during training
            if not given, and then on the same windows.
        word_pairs: files for ``word_similarity``, by name; those of gensim if not given.
        analogies: a file for ``words.read_analogies``; that of gensim if not given.
        labelled: files for ``downstream.read_labelled``, by name; those of gensim if not given.
        device: where to compute, for example "cpu" or "cuda".

    Returns:
        The measures.

    Raises:
        FileNotFoundError: if the folder holds no run, or one without a checkpoint yet.
        RefusedError: if a file of the run is damaged, the corpus is another one, or a file of word
            pairs, analogies or labelled texts cannot be read as such.
        TextError: if the default word pairs are asked for and gensim is not installed.
    """
    files = word_pair_files() if word_pairs is None else word_pairs
    # Before the work, so that a file that cannot be read is refused at once.
    texts = None if labelled is None else {n: read_labelled(path) for n, path in labelled.items()}
    run = load_run(folder)
    trained_on = read_description(Path(folder))["corpus"]
    if trained_on.get("fingerprint") != corpus.fingerprint:
        raise RefusedError(
            f"{folder} was trained on {trained_on.get('name')!r} with fingerprint "
            f"{str(trained_on.get('fingerprint'))[:12]}, and this text, {corpus.name!r}, has "
            f"{corpus.fingerprint[:12]}: give the text and vocabulary size of the run"
        )
    model = run.model.to(device)
    tokens = tokens or run.config.evaluation_tokens
    losses = token_losses(model, corpus, tokens)
    # Rows that only pad the vocabulary belong to no token.
    embedding = model.output_embedding.detach()[: corpus.vocabulary_size]
    similarity = word_similarity(embedding, corpus, files)
    measured = similarity["pearson"].dropna()
    row = {
        "step": int(run.metrics["step"].iloc[-1]),
        "tokens": int(run.metrics["tokens"].iloc[-1]),
        "validation_loss": losses.mean,
        "validation_tokens": int(losses.counts.sum()),
        **geometry.summary(embedding, corpus.counts),
        "r": 100 * float(measured.mean()) if len(measured) else math.nan,
    }
    by_frequency = loss_by_frequency(losses, corpus.frequencies)
    drift = _drift(run, embedding.cpu(), corpus, losses.mean_hidden)
    start = initial_embedding(run.config)[: corpus.vocabulary_size]
    vectors = variants(embedding, start)
    moment = second_moment(folder)
    table = long_table(
        [
            *_loss_rows(losses, by_frequency, corpus, run.metrics),
            *calibration_rows(predicted_shares(model, corpus, tokens), corpus.frequencies),
            *shape_rows(vectors, corpus.counts),
            *second_moment_rows(None if moment is None else moment[: corpus.vocabulary_size]),
            *_drift_rows(drift),
            *ppmi_agreement(vectors, corpus),
            *spelling_variants(vectors, corpus),
            *similarity_rows(vectors, corpus, files),
            *_analogy_rows(vectors, corpus, analogies),
            *text_similarity(vectors, corpus),
            *retrieval(vectors, corpus),
            *_classification_rows(vectors, corpus, texts),
            *stability_rows(run.metrics, run.config.gradient_clip),
        ]
    )
    return Evaluation(run, row, by_frequency, similarity, drift, table)


def _loss_rows(
    losses: TokenLosses, by_frequency: pd.DataFrame, corpus: Corpus, metrics: pd.DataFrame
) -> Iterator[Measure]:
    """The loss beside what guessing, the untrained model and the counts of the text cost."""
    n, chance = int(losses.counts.sum()), math.log(corpus.vocabulary_size)
    unknown = "the losses are kept by token, not by document: no interval"
    yield Measure("loss", "all", TRAINED, losses.mean, n=n, chance=chance, note=unknown)
    start = metrics.loc[metrics["step"] == 0, "validation_loss"]
    if len(start):
        note = "on the validation tokens of the training"
        yield Measure("loss", "all", UNTRAINED, float(start.iloc[0]), chance=chance, note=note)
    # One added to every count: a token that the training text lacks would cost infinitely much.
    smoothed = (corpus.counts + 1) / (corpus.counts.sum() + corpus.vocabulary_size)
    cost = float(-(losses.counts * np.log(smoothed)).sum() / n)
    yield Measure("loss", "all", UNIGRAM, cost, n=n, chance=chance)
    for low, high, found, loss in by_frequency[["from", "to", "tokens", "loss"]].itertuples(
        index=False
    ):
        name = class_name(low, high)
        if math.isnan(loss):
            yield not_taken("loss", name, "no token of this class was to be predicted")
        else:
            yield Measure("loss", name, TRAINED, loss, n=found, chance=chance, note=unknown)


def _drift_rows(drift: Drift | None) -> Iterator[Measure]:
    names = ("drift_distance", "drift_against_hidden")
    if drift is None:
        why = "the mean has not moved, or this torch draws other initial weights than the run's"
        yield from (not_taken(name, "", why) for name in (*names, "drift_share"))
        return
    yield Measure(names[0], "", TRAINED, drift.distance)
    yield Measure(names[1], "", TRAINED, drift.against_hidden, chance=0)
    for number, share in enumerate(drift.shares, start=1):
        quarter = f"quarter {number} of the vocabulary, from rare to frequent"
        yield Measure("drift_share", quarter, TRAINED, share)


def _analogy_rows(
    vectors: Mapping[str, Tensor], corpus: Corpus, path: str | Path | None
) -> list[Measure]:
    try:
        path = gensim_file("the analogies", ANALOGIES) if path is None else path
    except TextError as error:
        return [not_taken("analogy_accuracy", "", str(error))]
    return analogy_rows(vectors, corpus, path)


def _classification_rows(
    vectors: Mapping[str, Tensor], corpus: Corpus, texts: Mapping[str, LabelledTexts] | None
) -> Iterator[Measure]:
    if texts is not None:
        for name, labelled in texts.items():
            yield from classification(vectors, corpus, name, labelled)
        return
    for name, read in labelled_text_files().items():
        try:
            yield from classification(vectors, corpus, name, read())
        except TextError as error:  # gensim is not installed
            yield not_taken("classification", name, str(error))


def _drift(run: Run, end: Tensor, corpus: Corpus, mean_hidden: np.ndarray) -> Drift | None:
    start = initial_embedding(run.config)[: corpus.vocabulary_size]
    recorded = run.metrics.set_index("step")["mean_norm"].get(0, math.nan)
    if not math.isclose(geometry.mean_norm(start), recorded, rel_tol=1e-6):
        return None  # torch draws other numbers than it did for this run
    return measure_drift(start.numpy(), end.numpy(), corpus.counts, mean_hidden)
