"""Do the vectors say how tokens are used? Measures that need nothing but the text of the run.

``ppmi_agreement`` compares cosines with those of the co-occurrences that were counted in the text,
with and without what frequencies say of both; ``spelling_variants`` asks whether ``the`` finds
``␣The``. They are taken on hundreds of tokens, and so tell two arms apart where a few dozen word
pairs with human scores do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse, stats
from torch import Tensor

from coupled_adam.evaluation.losses import FREQUENCY_BORDERS
from coupled_adam.evaluation.resampling import correlation_of_pairs, mean_of
from coupled_adam.evaluation.table import Measure, class_name, not_taken, too_few
from coupled_adam.evaluation.variants import directions
from coupled_adam.text import Corpus
from coupled_adam.text.windows import spaced_windows

WINDOW = 5  # tokens to either side; the usual one for co-occurrences
_COUNTED = 2_000_000  # tokens of the text that are counted at most, evenly spread
_PIECE = 1023
_TOKENS, _LEAST_TOKENS = 400, 30  # sampled for an agreement: 400 tokens make 79,800 pairs
_QUERIES, _LEAST_QUERIES = 2000, 100
_LEAST_LETTERS = 3  # shorter pieces are rarely a word


def cooccurrences(corpus: Corpus, window: int = WINDOW) -> sparse.csr_matrix:
    """How often two tokens stand at most ``window`` apart in the training text.

    Of a text of more than two million tokens about as many are counted, in pieces of 1,024 spread
    evenly over it. The end of a text is no neighbour, and nothing is beyond it.

    Args:
        corpus: its training part is counted.
        window: greatest distance, from 1.

    Returns:
        Symmetric, [V, V], float64.
    """
    size = corpus.vocabulary_size
    length = min(_PIECE, len(corpus.train) - 1)
    pieces = spaced_windows(corpus.train, length, _COUNTED)
    end = -1 if corpus.end_of_text is None else corpus.end_of_text
    document = np.cumsum(pieces == end, axis=1)
    counts = sparse.csr_matrix((size, size))
    for distance in range(1, min(window, length) + 1):
        left, right = pieces[:, :-distance], pieces[:, distance:]
        same = (document[:, :-distance] == document[:, distance:]) & (left != end)
        # Two tokens in one number: sorting numbers is faster than summing a matrix's entries.
        both, often = np.unique(left[same] * size + right[same], return_counts=True)
        part = sparse.csr_matrix((often.astype(float), np.divmod(both, size)), (size, size))
        counts = counts + part + part.T
    return counts.tocsr()


def ppmi(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Positive pointwise mutual information (Church and Hanks, 1990; Bullinaria and Levy, 2007).

    max(0, log(p(i, j) / (p(i) p(j)))), in nats, of the pairs that were counted.

    Args:
        counts: co-occurrences, symmetric, [V, V].

    Returns:
        The same shape, sparse.
    """
    pairs = counts.tocoo()
    total, each = counts.sum(), np.asarray(counts.sum(axis=1)).ravel()
    values = np.log(pairs.data * total / (each[pairs.row] * each[pairs.col]))
    kept = values > 0
    return sparse.csr_matrix((values[kept], (pairs.row[kept], pairs.col[kept])), counts.shape)


def ppmi_agreement(vectors: Mapping[str, Tensor], corpus: Corpus) -> list[Measure]:
    """Rank correlation of the cosines of vectors with those of the tokens' PPMI rows.

    Spearman's correlation over all pairs of up to 400 tokens, drawn from the whole vocabulary
    (``all``), and from each class of frequency. Tokens without a neighbour in the text take no
    part. The interval is over tokens.

    Both cosines depend on how frequent two tokens are: two frequent ones share many neighbours in
    any text, and in vectors frequent and rare ones may have moved apart. A correlation of two ranks
    can come from that alone. So ``ppmi_beyond_frequency`` is the correlation of what is left of
    them when a quadratic function of the two log frequencies, fitted by least squares, is taken
    off either: of what the text says about the two words and not about their counts.

    Args:
        vectors: by variant, each [V, H].
        corpus: the text that they were trained on.

    Returns:
        Rows of ``ppmi_agreement`` and of ``ppmi_beyond_frequency``, in [-1, 1], whose ``n`` is the
        number of tokens.
    """
    names = ("ppmi_agreement", "ppmi_beyond_frequency")
    rows = ppmi(cooccurrences(corpus))
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    known = np.flatnonzero(lengths > 0)
    random, measured = np.random.default_rng(0), []
    for name, members in _classes(corpus, known):
        if len(members) < _LEAST_TOKENS:
            note = too_few(len(members), _LEAST_TOKENS, "tokens")
            measured += [not_taken(one, name, note, len(members)) for one in names]
            continue
        sample = np.sort(random.permutation(members)[:_TOKENS])
        unit = sparse.diags(1 / lengths[sample]) @ rows[sample]
        of_text, n = _ranks((unit @ unit.T).toarray()), len(sample)
        frequencies = np.log(corpus.frequencies[sample])
        of_text_beyond = beyond_frequency(of_text, frequencies)
        for variant, vector in vectors.items():
            unit_vectors = directions(vector[torch.from_numpy(sample)])
            of_vectors = _ranks((unit_vectors @ unit_vectors.T).numpy())
            found = correlation_of_pairs(of_vectors, of_text)
            measured.append(Measure(names[0], name, variant, *found, n=n, chance=0))
            beyond = beyond_frequency(of_vectors, frequencies)
            if not (beyond.any() and of_text_beyond.any()):
                note = "not defined: their frequencies say all of it"
                measured.append(not_taken(names[1], name, note, n, variant))
                continue
            found = correlation_of_pairs(beyond, of_text_beyond)
            measured.append(Measure(names[1], name, variant, *found, n=n, chance=0))
    return measured


def beyond_frequency(values: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """What two tokens' frequencies do not say of a value that each pair of them has.

    A symmetric quadratic function of the two log frequencies is fitted to the pairs by least
    squares and taken off.

    Args:
        values: symmetric, [n, n]; the diagonal is not looked at.
        frequencies: the log frequency of each token, [n].

    Returns:
        [n, n], symmetric, 0 on the diagonal; 0 everywhere if nothing but rounding is left.
    """
    first, second = np.triu_indices(len(values), 1)
    total = frequencies[first] + frequencies[second]
    apart = frequencies[first] - frequencies[second]
    known = np.stack([np.ones_like(total), total, total**2, apart**2], axis=1)
    of_pairs = values[first, second]
    left = of_pairs - known @ np.linalg.lstsq(known, of_pairs, rcond=None)[0]
    beyond = np.zeros(values.shape)
    if np.abs(left).max() > 1e-9 * np.abs(of_pairs).max():
        beyond[first, second] = left
    return beyond + beyond.T


def _classes(corpus: Corpus, known: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "all", known
    number = np.digitize(corpus.frequencies[known], FREQUENCY_BORDERS)
    for k, (low, high) in enumerate(pairwise([0.0, *FREQUENCY_BORDERS, 1.0])):
        yield class_name(low, high), known[number == k]


def _ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of a symmetric matrix's values off the diagonal, in its shape."""
    above = np.triu_indices(len(values), 1)
    ranks = np.zeros_like(values)
    ranks[above] = stats.rankdata(values[above])
    return ranks + ranks.T


def spelling_variants(vectors: Mapping[str, Tensor], corpus: Corpus) -> list[Measure]:
    """Whether a word's nearest neighbours are its own other spellings: mean reciprocal rank.

    Tokens that differ only in case or in the space before them are one word to a reader, and for
    the model as far apart as it cares to put them. Each token of at least three letters that
    occurs in the text and has such relatives there is a query; of all other tokens of the
    vocabulary that occur, sorted by cosine, the first relative counts with one over its rank. The
    interval is over queries, of which up to 2,000 are drawn.

    Args:
        vectors: by variant, each [V, H].
        corpus: knows the tokens' spelling and counts.

    Returns:
        Rows of ``spelling_variants``, in (0, 1]; ``n`` is the number of queries.
    """
    occurring = np.flatnonzero(corpus.counts > 0)
    families = np.array([_word(corpus.token_text(token)) for token in occurring.tolist()])
    members = defaultdict(list)
    for place, family in enumerate(families):
        if family:
            members[family].append(place)
    relatives = [places for places in members.values() if len(places) > 1]
    queries = np.sort([place for places in relatives for place in places]).astype(int)
    if len(queries) < _LEAST_QUERIES:
        note = too_few(len(queries), _LEAST_QUERIES, "tokens with another spelling")
        return [not_taken("spelling_variants", "", note, len(queries))]
    queries = np.sort(np.random.default_rng(0).permutation(queries)[:_QUERIES])
    right = families[queries][:, None] == families[None, :]
    right[np.arange(len(queries)), queries] = False
    known = [chance_reciprocal_rank(len(occurring) - 1, k) for k in right.sum(axis=1)]
    chance = float(np.mean(known))
    measured = []
    for variant, vector in vectors.items():
        unit = directions(vector[torch.from_numpy(occurring)])
        cosines = (unit[queries] @ unit.T).numpy()
        scores = reciprocal_ranks(cosines, right, queries)
        measured.append(
            Measure(
                "spelling_variants", "", variant, *mean_of(scores), n=len(scores), chance=chance
            )
        )
    return measured


def _word(token: str) -> str:
    """What all spellings of a word have in common; "" for what is no word."""
    word = token.removeprefix("␣")
    return word.lower() if word.isalpha() and len(word) >= _LEAST_LETTERS else ""


def reciprocal_ranks(scores: np.ndarray, right: np.ndarray, own: np.ndarray) -> np.ndarray:
    """One over the rank of the best right answer of each query.

    Among equals a right answer comes last, so that vectors that are all alike know nothing.

    Args:
        scores: of every candidate, the higher the better, [queries, candidates].
        right: which candidates are right, of the same shape; at least one a query.
        own: the candidate that a query is itself, which does not count, [queries]; -1 for none.

    Returns:
        [queries], each in (0, 1].
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = (scores >= best) & ~right
    itself = np.flatnonzero(own >= 0)
    ahead[itself, own[itself]] = False
    return 1 / (1 + ahead.sum(axis=1))


def chance_reciprocal_rank(candidates: int, right: int) -> float:
    """The mean of one over the rank of the first of some right answers in random order.

    Args:
        candidates: how many there are.
        right: how many of them are right, from 1.
    """
    ranks = np.arange(1, candidates - right + 2)
    # Nobody right among the first r: a product of (wrong ones left) / (all that are left).
    none_yet = np.cumprod((candidates - right - ranks + 1) / (candidates - ranks + 1))
    first_here = -np.diff(none_yet, prepend=1.0)
    return float((first_here / ranks).sum())
