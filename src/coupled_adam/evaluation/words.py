"""Words: cosines of embeddings beside what people say, and analogies."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.resampling import correlation_of, mean_of_pairs
from coupled_adam.evaluation.table import Measure, not_taken, too_few
from coupled_adam.evaluation.usage import chance_reciprocal_rank, reciprocal_ranks
from coupled_adam.evaluation.variants import directions
from coupled_adam.files import read_text
from coupled_adam.text import Corpus, TextError
from coupled_adam.text.sources import gensim_file

# Word pairs with human scores that gensim carries in its test data.
WORD_PAIRS = {
    "WordSim-353": "test/test_data/wordsim353.tsv",
    "SimLex-999": "test/test_data/simlex999.txt",
}
_LEAST_PAIRS = 3  # two pairs always correlate perfectly
# With fewer than these the interval of a correlation of 0.2 reaches from 0 to 0.4.
_LEAST_MEASURED = 100
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_PART_OF_SPEECH = re.compile("[A-Z]")
# Analogies in gensim's test data (Mikolov et al., 2013).
ANALOGIES = "test/test_data/questions-words.txt"


def word_pair_files() -> dict[str, Path]:
    """The sets of word pairs that gensim carries: WordSim-353 and SimLex-999, by name.

    Of the paper's sets, MEN and RW are not among them, and its WordSim is divided into similarity
    and relatedness, which this one is not. So an r over these two is not the paper's r.

    Raises:
        TextError: if gensim is not installed, or its files are missing.
    """
    return {name: gensim_file("the default word pairs", path) for name, path in WORD_PAIRS.items()}


def read_word_pairs(path: str | Path) -> pd.DataFrame:
    """Read pairs of words with a human score of their similarity.

    The files as MEN, SimLex-999, RW and WordSim-353 are published can all be read.

    Args:
        path: a UTF-8 text file, one pair a line: word, word, score, separated by white space or
            commas. A part of speech, one capital letter, may stand before the score, as in
            SimLex-999; further columns are ignored, and so are empty lines, those that begin with
            ``#``, and headings: a first line in which no column is a number.

    Returns:
        Columns first, second, score.

    Raises:
        RefusedError: if a line is something else, or the file holds no pair.
        OSError: if the file cannot be read.
    """
    pairs, first_line = [], True
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (first_line and _is_heading(line)):
            pairs.append(_pair(line, f"{path}, line {number}"))
        first_line = False
    if not pairs:
        raise RefusedError(f"{path} holds no pair of words")
    return pd.DataFrame(pairs, columns=["first", "second", "score"])


def _is_heading(line: str) -> bool:
    # A heading may have spaces and digits in it: "Word 1,Word 2,Human (mean)".
    separator = next((mark for mark in "\t," if mark in line), None)
    columns = line.split(separator)
    return len(columns) > 2 and not any(map(_is_number, columns))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))  # "nan" is a word
    except ValueError:
        return False


def _pair(line: str, where: str) -> tuple[str, str, float]:
    columns = _SEPARATOR.split(line.strip())
    if len(columns) > 3 and _PART_OF_SPEECH.fullmatch(columns[2]):
        del columns[2]
    if len(columns) < 3 or not (columns[0] and columns[1] and _is_number(columns[2])):
        raise RefusedError(
            f"{where}: {line[:60]!r} is not a pair; a line holds two words and a number, separated "
            "by white space or commas"
        )
    return columns[0], columns[1], float(columns[2])


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
        RefusedError: if a file cannot be read as word pairs, or there is none.
    """
    if not files:
        raise RefusedError("there are no word pairs: give at least one file")
    rows = []
    for name, path in files.items():
        pairs = read_word_pairs(path)
        first, second, scores = _covered(pairs, corpus)
        cosines = _cosines(embedding.double().cpu(), first, second)
        rows.append(
            {
                "name": name,
                "pairs": len(pairs),
                "covered": len(scores),
                "pearson": _correlation(stats.pearsonr, cosines, scores),
                "spearman": _correlation(stats.spearmanr, cosines, scores),
            }
        )
    return pd.DataFrame(rows)


def similarity_rows(
    vectors: Mapping[str, Tensor], corpus: Corpus, files: Mapping[str, str | Path]
) -> list[Measure]:
    """Word similarity for the table: Pearson's correlation of cosine and human score.

    Taken if at least 100 pairs are covered; the interval is over pairs. (Pairs share words, which
    the interval does not know.)

    Args:
        vectors: by variant, each [V, H].
        corpus: knows the tokens.
        files: as for ``word_similarity``.

    Returns:
        Rows of ``word_similarity``, in [-1, 1]; ``n`` is the number of covered pairs.
    """
    rows = []
    for name, path in files.items():
        first, second, scores = _covered(read_word_pairs(path), corpus)
        if len(scores) < _LEAST_MEASURED:
            note = too_few(len(scores), _LEAST_MEASURED, "pairs of single tokens")
            rows.append(not_taken("word_similarity", name, note, len(scores)))
            continue
        for variant, vector in vectors.items():
            cosines = _cosines(vector, first, second)
            if np.ptp(cosines) == 0 or np.ptp(scores) == 0:
                note = "not defined: all scores or all cosines are equal"
                rows.append(not_taken("word_similarity", name, note, len(scores), variant))
                continue
            found = correlation_of(cosines, scores)
            rows.append(Measure("word_similarity", name, variant, *found, n=len(scores), chance=0))
    return rows


def read_analogies(path: str | Path) -> pd.DataFrame:
    """Read questions such as "boy is to girl as brother is to …".

    Args:
        path: a UTF-8 text file as of word2vec's ``questions-words.txt``: four words a line, the
            last one the answer; a line that begins with ``:`` names the section that follows.

    Returns:
        Columns section, a, b, c, d.

    Raises:
        RefusedError: if a line is something else, or the file holds no question.
        OSError: if the file cannot be read.
    """
    section, questions = "", []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if line.startswith(":"):
            section = line[1:].strip()
        elif len(words) == 4:
            questions.append((section, *words))
        elif words:
            raise RefusedError(
                f"{path}, line {number}: {line[:60]!r} is not an analogy; a line holds four words, "
                "or a colon and the name of a section"
            )
    if not questions:
        raise RefusedError(f"{path} holds no analogy")
    return pd.DataFrame(questions, columns=["section", "a", "b", "c", "d"])


def analogy_rows(vectors: Mapping[str, Tensor], corpus: Corpus, path: str | Path) -> list[Measure]:
    """Analogies: how near d is to b - a + c, of unit vectors (Mikolov et al., 2013).

    All tokens that occur in the text are candidates, but for a, b and c. A question counts if its
    four words are single tokens, and at least 100 must. Questions are made of pairs of words, each
    with every other one of its section; so the interval is over these pairs, of which there are
    far fewer than questions.

    Args:
        vectors: by variant, each [V, H].
        corpus: knows the tokens.
        path: for ``read_analogies``.

    Returns:
        Rows of ``analogy_accuracy``, the share of questions whose nearest candidate is d, and of
        ``analogy_reciprocal_rank``, the mean of one over the rank of d. ``n`` is the number of
        questions.
    """
    names = ("analogy_accuracy", "analogy_reciprocal_rank")
    questions, occurring = read_analogies(path), np.flatnonzero(corpus.counts > 0)
    place = np.full(corpus.vocabulary_size, -1)
    place[occurring] = np.arange(len(occurring))
    words = questions[["a", "b", "c", "d"]]
    token = {word: _token_of(word, corpus) for word in np.unique(words.to_numpy().ravel())}
    ids = words.map(token.__getitem__).to_numpy()
    ids = np.where(ids >= 0, place[ids], -1)
    covered = (ids >= 0).all(axis=1)
    n = int(covered.sum())
    if n < _LEAST_MEASURED:
        note = too_few(n, _LEAST_MEASURED, "questions of single tokens")
        return [not_taken(name, Path(path).stem, note, n) for name in names]
    a, b, c, d = ids[covered].T
    section = pd.factorize(questions["section"][covered])[0]
    pairs = np.concatenate([np.stack([section, a, b]), np.stack([section, c, d])], axis=1)
    _, number = np.unique(pairs, axis=1, return_inverse=True)
    first, second = np.split(number.ravel(), 2)
    right = np.zeros((n, len(occurring)), bool)
    right[np.arange(n), d] = True
    chance = (1 / (len(occurring) - 3), chance_reciprocal_rank(len(occurring) - 3, 1))
    rows = []
    for variant, vector in vectors.items():
        unit = directions(vector[torch.from_numpy(occurring)])
        cosines = ((unit[b] - unit[a] + unit[c]) @ unit.T).numpy()
        for asked in (a, b, c):
            cosines[np.arange(n), asked] = -np.inf
        ranks = reciprocal_ranks(cosines, right, np.full(n, -1))
        for name, scores, level in zip(names, (ranks == 1, ranks), chance, strict=True):
            found = mean_of_pairs(scores.astype(float), first, second)
            rows.append(Measure(name, Path(path).stem, variant, *found, n=n, chance=level))
    return rows


def _covered(pairs: pd.DataFrame, corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of the pairs whose two words are single tokens, and their scores."""
    ids = pairs[["first", "second"]].map(lambda word: _token_of(word, corpus)).to_numpy()
    covered = (ids >= 0).all(axis=1)
    first, second = ids[covered].T
    return first, second, pairs["score"].to_numpy()[covered]


def _cosines(vectors: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return F.cosine_similarity(vectors[first], vectors[second], dim=1).numpy()


def _token_of(word: str, corpus: Corpus) -> int:
    try:
        ids = corpus.encode(" " + word)
    except TextError:  # a synthetic language has no other words than its own
        return -1
    return int(ids[0]) if len(ids) == 1 else -1


def _correlation(function: Callable[..., Any], x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < _LEAST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(function(x, y).statistic)
