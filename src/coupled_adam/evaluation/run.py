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
from coupled_adam.evaluation.downstream import (
    LabelledTexts,
    classification,
    labelled_text_files,
    read_labelled,
    retrieval,
    text_similarity,
)
from coupled_adam.evaluation.drift import Drift, measure_drift
from coupled_adam.evaluation.losses import loss_by_frequency, token_losses
from coupled_adam.evaluation.predictions import prediction_rows
from coupled_adam.evaluation.shape import second_moment, second_moment_rows, shape_rows
from coupled_adam.evaluation.stability import stability_rows
from coupled_adam.evaluation.table import TRAINED, Measure, long_table, not_taken
from coupled_adam.evaluation.usage import ppmi_agreement, spelling_variants
from coupled_adam.evaluation.variants import variants
from coupled_adam.evaluation.words import (
    ANALOGIES,
    analogy_rows,
    similarity_rows,
    word_pair_files,
    word_similarity,
)
from coupled_adam.text import Corpus, TextError
from coupled_adam.text.sources import gensim_file
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
    start = initial_embedding(run.config)[: corpus.vocabulary_size]
    drift = _drift(run, start, embedding.cpu(), corpus, losses.mean_hidden)
    vectors = variants(embedding, start)
    moment = second_moment(folder)
    table = long_table(
        [
            *prediction_rows(model, corpus, tokens, run.metrics),
            *shape_rows(vectors, corpus.counts),
            *second_moment_rows(None if moment is None else moment[: corpus.vocabulary_size]),
            *_drift_rows(drift, corpus.vocabulary_size),
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


def _drift_rows(drift: Drift | None, n: int) -> list[Measure]:
    """How the mean embedding has moved, as rows; ``n`` is the number of tokens."""
    names = ("drift_distance", "drift_against_hidden", "drift_share")
    if drift is None:
        why = "the mean has not moved, or this torch draws other initial weights than the run's"
        return [not_taken(name, "", why) for name in names]
    rows = [
        Measure(names[0], "", TRAINED, drift.distance, n=n),
        Measure(names[1], "", TRAINED, drift.against_hidden, n=n, chance=0),
    ]
    for number, share in enumerate(drift.shares, start=1):
        quarter = f"quarter {number}, from rare to frequent"
        rows.append(Measure(names[2], quarter, TRAINED, share, n=n // 4))
    return rows


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


def _drift(
    run: Run, start: Tensor, end: Tensor, corpus: Corpus, mean_hidden: np.ndarray
) -> Drift | None:
    recorded = run.metrics.set_index("step")["mean_norm"].get(0, math.nan)
    if not math.isclose(geometry.mean_norm(start), recorded, rel_tol=1e-6):
        return None  # torch draws other numbers than it did for this run
    return measure_drift(start.numpy(), end.numpy(), corpus.counts, mean_hidden)
