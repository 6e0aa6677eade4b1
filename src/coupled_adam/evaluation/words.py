"""Word similarity: cosines of embeddings beside what people say."""

from __future__ import annotations

import importlib.util
import math
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
from coupled_adam.files import read_text
from coupled_adam.text import Corpus, TextError

# Word pairs with human scores that gensim carries in its test data.
WORD_PAIRS = {
    "WordSim-353": "test/test_data/wordsim353.tsv",
    "SimLex-999": "test/test_data/simlex999.txt",
}
_LEAST_PAIRS = 3  # two pairs always correlate perfectly


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
        RefusedError: if a line is something else, or the file holds no pair.
        OSError: if the file cannot be read.
    """
    lines = read_text(path).splitlines()
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            first, second, score, *_ = line.split()
            pairs.append((first, second, float(score)))
        except ValueError:
            raise RefusedError(
                f"{path}, line {number}: {line[:60]!r} is not a pair; a line holds two words and "
                "a number, separated by white space"
            ) from None
    if not pairs:
        raise RefusedError(f"{path} holds no pair of words")
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
        RefusedError: if a file cannot be read as word pairs, or there is none.
    """
    if not files:
        raise RefusedError("there are no word pairs: give at least one file")
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


def _correlation(function: Callable[..., Any], x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < _LEAST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(function(x, y).statistic)
