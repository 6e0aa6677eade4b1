"""What a run is worth: a run folder in, a row with the paper's measures out.

Everything that the folder and its text give without a network: the validation loss, also by the
frequency of the token that was to be predicted; the measures of ``geometry`` on the output
embeddings; word similarity; and who has moved the mean embedding since the start. The paper's
accuracy on downstream tasks is not among them: lm-eval measures it on an exported checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from coupled_adam import geometry
from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.drift import Drift, measure_drift
from coupled_adam.evaluation.losses import loss_by_frequency, token_losses
from coupled_adam.evaluation.words import word_pair_files, word_similarity
from coupled_adam.text import Corpus
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
    """

    run: Run = field(repr=False)
    row: dict[str, float]
    by_frequency: pd.DataFrame = field(repr=False)
    word_pairs: pd.DataFrame = field(repr=False)
    drift: Drift | None


def evaluate(
    folder: str | Path,
    corpus: Corpus,
    *,
    tokens: int | None = None,
    word_pairs: Mapping[str, str | Path] | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Measure the last checkpoint of a run, in float32 whatever the run computed in.

    Args:
        folder: a run folder that ``train`` wrote.
        corpus: the text that the run was trained on.
        tokens: about how many validation tokens the loss is taken on; as many as during training
            if not given, and then on the same windows.
        word_pairs: files for ``word_similarity``, by name; those of gensim if not given.
        device: where to compute, for example "cpu" or "cuda".

    Returns:
        The measures.

    Raises:
        FileNotFoundError: if the folder holds no run, or one without a checkpoint yet.
        RefusedError: if a file of the run is damaged, the corpus is another one, or a file of word
            pairs cannot be read as such.
        TextError: if the default word pairs are asked for and gensim is not installed.
    """
    files = word_pair_files() if word_pairs is None else word_pairs
    run = load_run(folder)
    trained_on = read_description(Path(folder))["corpus"]
    if trained_on.get("fingerprint") != corpus.fingerprint:
        raise RefusedError(
            f"{folder} was trained on {trained_on.get('name')!r} with fingerprint "
            f"{str(trained_on.get('fingerprint'))[:12]}, and this text, {corpus.name!r}, has "
            f"{corpus.fingerprint[:12]}: give the text and vocabulary size of the run"
        )
    model = run.model.to(device)
    losses = token_losses(model, corpus, tokens or run.config.evaluation_tokens)
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
    return Evaluation(
        run,
        row,
        loss_by_frequency(losses, corpus.frequencies),
        similarity,
        _drift(run, embedding.cpu(), corpus, losses.mean_hidden),
    )


def _drift(run: Run, end: Tensor, corpus: Corpus, mean_hidden: np.ndarray) -> Drift | None:
    start = initial_embedding(run.config)[: corpus.vocabulary_size]
    recorded = run.metrics.set_index("step")["mean_norm"].get(0, math.nan)
    if not math.isclose(geometry.mean_norm(start), recorded, rel_tol=1e-6):
        return None  # torch draws other numbers than it did for this run
    return measure_drift(start.numpy(), end.numpy(), corpus.counts, mean_hidden)
