"""What a run is worth: a run folder in, a row with the paper's measures out.

Everything that the folder and its text give without a network: the validation loss, also by the
frequency of the token that was to be predicted; the measures of ``geometry`` on the output
embeddings; word similarity; and who has moved the mean embedding since the start. The paper's
accuracy on downstream tasks is not among them: lm-eval measures it on an exported checkpoint.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from coupled_adam import geometry
from coupled_adam.gpt import GPT
from coupled_adam.text import Corpus, TextError
from coupled_adam.training import CONFIG_FILE, Run, TrainingConfig, load_run

# Borders of the frequency classes: shares of the training text, so that texts of different
# lengths have the same classes. With 46 million tokens the rarest class occurs up to 45 times.
FREQUENCY_BORDERS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)

# Word pairs with human scores that gensim carries in its test data.
WORD_PAIRS = {
    "WordSim-353": "test/test_data/wordsim353.tsv",
    "SimLex-999": "test/test_data/simlex999.txt",
}
_LEAST_PAIRS = 3  # two pairs always correlate perfectly

_LOGITS_AT_ONCE = 1 << 27  # numbers; half a gigabyte in float32


class TokenLosses(NamedTuple):
    """What a model's predictions of a text cost, by the token that was to be predicted.

    Attributes:
        sums: losses in nats, added up over the token's occurrences as a target, float64, [V].
        counts: number of these occurrences, int64, [V].
        mean_hidden: mean of the hidden states that met the output embeddings, float64, [H].
    """

    sums: np.ndarray
    counts: np.ndarray
    mean_hidden: np.ndarray

    @property
    def mean(self) -> float:
        """The loss: the mean over all targets, in nats."""
        return float(self.sums.sum() / self.counts.sum())


class Drift(NamedTuple):
    """How the mean output embedding has moved since the run began.

    Attributes:
        distance: length of its displacement, in the units of the embeddings.
        against_hidden: cosine of the displacement with minus the sign of the mean hidden state
            that the trained model has on the validation text; near 1 if the mean went where
            Adam's absent tokens pull it.
        shares: part of the displacement that each quarter of the vocabulary contributes, rarest
            first; they add up to 1.
    """

    distance: float
    against_hidden: float
    shares: tuple[float, ...]


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
        ValueError: if a file of the run is damaged, the corpus is another one, or a file of word
            pairs cannot be read as such.
        TextError: if the default word pairs are asked for and gensim is not installed.
    """
    files = word_pair_files() if word_pairs is None else word_pairs
    run = load_run(folder)
    trained_on = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))["corpus"]
    if trained_on["fingerprint"] != corpus.fingerprint:
        raise ValueError(
            f"{folder} was trained on {trained_on['name']!r} with fingerprint "
            f"{trained_on['fingerprint'][:12]}, and this text, {corpus.name!r}, has "
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


@torch.no_grad()
def token_losses(model: GPT, corpus: Corpus, tokens: int) -> TokenLosses:
    """Predict windows of the validation text, evenly spaced, and keep the losses by target.

    Args:
        model: on any device.
        corpus: text with at most as many tokens V as the model has rows.
        tokens: about how many are predicted: whole windows of the model's context, at least one.

    Returns:
        The losses, by token of the corpus.

    Raises:
        ValueError: if the validation text is shorter than one window, or has tokens that the
            model lacks.
    """
    length, text = model.config.context, corpus.validation
    if len(text) <= length:
        raise ValueError(
            f"the validation text of {corpus.name!r} has {len(text)} tokens, but one window needs "
            f"{length + 1}: use more text"
        )
    size = corpus.vocabulary_size
    if size > model.config.vocabulary_size:
        raise ValueError(
            f"the corpus {corpus.name!r} has {size} tokens, the model only "
            f"{model.config.vocabulary_size}: this model was made for another text"
        )
    count = max(1, min(tokens, len(text) - 1) // length)
    starts = np.linspace(0, len(text) - length - 1, count).astype(np.int64)
    at_once = max(1, _LOGITS_AT_ONCE // (length * model.config.vocabulary_size))
    sums, counts = np.zeros(size), np.zeros(size, np.int64)
    hidden_sum = torch.zeros(model.config.width, dtype=torch.float64)
    for some in np.array_split(starts, math.ceil(count / at_once)):
        windows = text[some[:, None] + np.arange(length + 1)].astype(np.int64)
        both = torch.from_numpy(windows).to(model.embedding.device)
        hidden, targets = model.hidden_states(both[:, :-1]), both[:, 1:].flatten()
        losses = F.cross_entropy(model.head(hidden).flatten(0, 1), targets, reduction="none")
        found = targets.cpu().numpy()
        sums += np.bincount(found, losses.double().cpu().numpy(), minlength=size)
        counts += np.bincount(found, minlength=size)
        hidden_sum += hidden.double().sum(dim=(0, 1)).cpu()
    return TokenLosses(sums, counts, hidden_sum.numpy() / counts.sum())


def loss_by_frequency(
    losses: TokenLosses, frequencies: np.ndarray, borders: Sequence[float] = FREQUENCY_BORDERS
) -> pd.DataFrame:
    """The loss of rare and of frequent tokens.

    Args:
        losses: of a text.
        frequencies: share of each token in the training text, [V].
        borders: of the classes, rising, each in (0, 1); a token on a border belongs to the class
            above it.

    Returns:
        One row a class, rarest first: ``from`` and ``to`` (frequencies), ``vocabulary`` (tokens
        of the vocabulary in it), ``tokens`` (targets in it), ``share`` of the targets in [0, 1],
        and their mean ``loss`` in nats, NaN if there are none. The losses, weighted with the
        shares, add up to the loss of the text.

    Raises:
        ValueError: if frequencies and losses differ in length, or the borders do not rise.
    """
    if len(frequencies) != len(losses.counts):
        raise ValueError(
            f"there are {len(frequencies)} frequencies for {len(losses.counts)} tokens: give one "
            "for each token of the corpus"
        )
    ends = [0.0, *borders, 1.0]
    if not all(low < high for low, high in pairwise(ends)):
        raise ValueError(f"borders is {tuple(borders)}; give rising numbers between 0 and 1")
    number = np.digitize(frequencies, borders)
    rows = []
    for k, (low, high) in enumerate(pairwise(ends)):
        found = int(losses.counts[number == k].sum())
        rows.append(
            {
                "from": low,
                "to": high,
                "vocabulary": int((number == k).sum()),
                "tokens": found,
                "share": found / losses.counts.sum(),
                "loss": losses.sums[number == k].sum() / found if found else math.nan,
            }
        )
    return pd.DataFrame(rows)


def word_pair_files() -> dict[str, Path]:
    """The sets of word pairs that gensim carries: WordSim-353 and SimLex-999, by name.

    Of the paper's sets, MEN and RW are not among them, and its WordSim is divided into similarity
    and relatedness, which this one is not. So an r over these two is not the paper's r.

    Raises:
        TextError: if gensim is not installed, or its files are missing.
    """
    package = importlib.util.find_spec("gensim")
    if package is None or package.origin is None:
        raise TextError(
            "the default word pairs are a part of gensim, which is not installed: pip install "
            "gensim, or give files of your own"
        )
    files = {name: Path(package.origin).parent / path for name, path in WORD_PAIRS.items()}
    for path in files.values():
        if not path.is_file():
            raise TextError(
                f"word pairs are missing from the installed gensim: there is no {path}; install "
                "gensim 4 from its wheel, or give files of your own"
            )
    return files


def read_word_pairs(path: str | Path) -> pd.DataFrame:
    """Read pairs of words with a human score of their similarity.

    Args:
        path: a UTF-8 text file, one pair a line: word, word, score, separated by white space;
            further columns are ignored, and so are empty lines and those that begin with ``#``.

    Returns:
        Columns first, second, score.

    Raises:
        ValueError: if a line is something else, or the file holds no pair.
        OSError: if the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it again in UTF-8") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            first, second, score, *_ = line.split()
            pairs.append((first, second, float(score)))
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: {line[:60]!r} is not a pair; a line holds two words and "
                "a number, separated by white space"
            ) from None
    if not pairs:
        raise ValueError(f"{path} holds no pair of words")
    return pd.DataFrame(pairs, columns=["first", "second", "score"])


def word_similarity(
    embedding: Tensor, corpus: Corpus, files: Mapping[str, str | Path]
) -> pd.DataFrame:
    """Correlate cosines of embeddings with what people say of the similarity of words.

    A word is looked up as it is spelt, as the one token that it has after a space: so the words of
    a running text are mostly encoded, and in byte-level BPE a word with and without its space are
    two tokens. Pairs with a word that takes several tokens are left out and counted; how many
    these are depends on the vocabulary, so compare r only between runs with the same one.

    Args:
        embedding: token embeddings, shape [V, H], float.
        corpus: knows the tokens.
        files: files for ``read_word_pairs``, by the name of the set.

    Returns:
        One row a set: ``name``, ``pairs``, ``covered`` (pairs whose words are both single
        tokens), ``pearson`` and ``spearman`` of cosine and score over these, in [-1, 1]; NaN if
        fewer than three are covered, or all have the same score or cosine.

    Raises:
        ValueError: if a file cannot be read as word pairs, or there is none.
    """
    if not files:
        raise ValueError("there are no word pairs: give at least one file")
    rows = []
    for name, path in files.items():
        pairs = read_word_pairs(path)
        ids = pairs[["first", "second"]].map(lambda word: _token_of(word, corpus)).to_numpy()
        covered = (ids >= 0).all(axis=1)
        first, second = (torch.from_numpy(column) for column in ids[covered].T.copy())
        cosines = F.cosine_similarity(
            embedding[first].double(), embedding[second].double(), dim=1
        ).cpu()
        scores = pairs["score"].to_numpy()[covered]
        rows.append(
            {
                "name": name,
                "pairs": len(pairs),
                "covered": int(covered.sum()),
                "pearson": _correlation(stats.pearsonr, cosines.numpy(), scores),
                "spearman": _correlation(stats.spearmanr, cosines.numpy(), scores),
            }
        )
    return pd.DataFrame(rows)


def _token_of(word: str, corpus: Corpus) -> int:
    try:
        ids = corpus.encode(" " + word)
    except TextError:  # a synthetic language has no other words than its own
        return -1
    return int(ids[0]) if len(ids) == 1 else -1


def _correlation(function: Any, x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < _LEAST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(function(x, y).statistic)


def displacement_shares(
    start: np.ndarray, end: np.ndarray, counts: np.ndarray, bins: int = 4
) -> np.ndarray:
    """Who carries the mean embedding: each frequency class's part of the mean's displacement.

    Args:
        start: embeddings before, [V, H].
        end: embeddings after, [V, H].
        counts: occurrences of each token in the training text, [V].
        bins: number of equally large classes, rarest first.

    Returns:
        Shares, [bins]; they add up to one.
    """
    moved = np.asarray(end, float) - np.asarray(start, float)
    total = moved.sum(axis=0)
    classes = np.array_split(np.argsort(counts, kind="stable"), bins)
    return np.array([moved[members].sum(axis=0) @ total for members in classes]) / (total @ total)


def initial_embedding(config: TrainingConfig) -> Tensor:
    """The output embeddings with which ``train`` begins, [V, H]; a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GPT(config.model).output_embedding.detach()


def _drift(run: Run, end: Tensor, corpus: Corpus, mean_hidden: np.ndarray) -> Drift | None:
    start = initial_embedding(run.config)[: corpus.vocabulary_size]
    recorded = run.metrics.set_index("step")["mean_norm"].get(0, math.nan)
    if not math.isclose(geometry.mean_norm(start), recorded, rel_tol=1e-6):
        return None  # torch draws other numbers than it did for this run
    before, after = start.double().numpy(), end.double().numpy()
    displacement = after.mean(axis=0) - before.mean(axis=0)
    distance = float(np.linalg.norm(displacement))
    if distance == 0:
        return None
    direction = -np.sign(mean_hidden)
    cosine = displacement @ direction / (distance * np.linalg.norm(direction))
    shares = displacement_shares(before, after, corpus.counts)
    return Drift(distance, float(cosine), tuple(shares.tolist()))
