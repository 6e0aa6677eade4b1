"""What the vectors are good for on texts: similarity, retrieval, classification.

A text's vector is the mean of the vectors of its tokens: the plainest thing that can be done with
them, and the one where a mean that all tokens share shows most. Beside the variants of the vectors
stands tf-idf on the same tokens, which has none.
"""

from __future__ import annotations

import csv
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from coupled_adam.errors import RefusedError
from coupled_adam.evaluation.resampling import correlation_of_pairs, mean_of
from coupled_adam.evaluation.table import TF_IDF, Measure, not_taken, too_few
from coupled_adam.evaluation.usage import chance_reciprocal_rank, reciprocal_ranks
from coupled_adam.files import read_text
from coupled_adam.text import Corpus, TextError
from coupled_adam.text.sources import gensim_file

# In gensim's test data. Lee, Pincombe and Welsh (2005): 50 news items, each pair judged by people.
LEE_TEXTS, LEE_SCORES = "test/test_data/lee.cor", "test/test_data/similarities0-1.txt"
# 100 postings each of alt.atheism and sci.space; 100 sentences each of good and bad film reviews
# (Pang and Lee, 2005).
NEWSGROUPS = "test/test_data/mini_newsgroup"
REVIEWS = "test/test_data/pang_lee_polarity.cor"
_HEADERS = ("Archive-name:", "From:", "Newsgroups:", "Path:", "Subject:", "To:")

_MOST_TEXTS = 2000
_LEAST_DOCUMENTS, _LEAST_HALF, _MOST_HALF = 20, 32, 1024  # tokens of a half
_FOLDS, _LEAST_OF_A_CLASS = 5, 10
_PENALTIES = np.logspace(-2, 5, 8)


class LabelledTexts(NamedTuple):
    """Texts with a class each, such as reviews that are good or bad.

    Attributes:
        texts: one string a text.
        labels: the name of its class.
    """

    texts: list[str]
    labels: list[str]


def read_labelled(path: str | Path) -> LabelledTexts:
    """Read labelled texts of the user's.

    Args:
        path: a UTF-8 file. If its name ends in ``.csv``: two columns, text and label in either
            order, with a heading that calls one of them ``label``, ``category``, ``class`` or
            ``target``, and the other one ``text``; further columns are ignored. Any other file: a
            line a text, ``label<TAB>text``. Empty lines are left out.

    Returns:
        The texts.

    Raises:
        RefusedError: if the file is neither, or holds no text.
        OSError: if it cannot be read.
    """
    path = Path(path)
    content = read_text(path)
    found = _of_csv(path, content) if path.suffix.lower() == ".csv" else _of_lines(path, content)
    if not found:
        raise RefusedError(f"{path} holds no labelled text")
    labels, texts = zip(*found, strict=True)
    return LabelledTexts([*texts], [*labels])


def _of_csv(path: Path, content: str) -> list[tuple[str, str]]:
    csv.field_size_limit(1 << 30)  # a text may be longer than the 131,072 characters of the default
    rows = csv.DictReader(StringIO(content, newline=""))
    names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    label = next((names[n] for n in ("label", "category", "class", "target") if n in names), None)
    if label is None or "text" not in names:
        raise RefusedError(
            f"{path}: its columns are {[*names]}; head one of them text and one of them label"
        )
    found = []
    for row in rows:
        if row[names["text"]] is None or row[label] is None:
            raise RefusedError(f"{path}, line {rows.line_num}: a column is missing")
        if row[names["text"]].strip():
            found.append((row[label].strip(), row[names["text"]]))
    return found


def _of_lines(path: Path, content: str) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(content.split("\n"), start=1):  # and at no other characters
        label, tab, text = line.partition("\t")
        if not line.strip():
            continue
        if not (tab and label.strip() and text.strip()):
            raise RefusedError(
                f"{path}, line {number}: {line[:60].rstrip()!r} is not a label, a tabulator and a "
                "text"
            )
        found.append((label.strip(), text.strip()))
    return found


def labelled_text_files() -> dict[str, Callable[[], LabelledTexts]]:
    """The labelled texts that gensim carries, by name: each a function that reads one.

    ``newsgroups``: is a posting from alt.atheism or from sci.space? 200 postings without their
    headers. ``reviews``: is a sentence of a film review favourable? 200 sentences.
    """
    return {"newsgroups": _newsgroups, "reviews": _reviews}


def _newsgroups() -> LabelledTexts:
    raw = zlib.decompress(gensim_file("the newsgroups", NEWSGROUPS).read_bytes())
    bunch = _Unpickler(BytesIO(raw), encoding="latin1").load()
    numbers = np.frombuffer(bunch["target"].state[-1].encode("latin1"), "<i8")
    names = bunch["target_names"]
    return LabelledTexts(
        [_without_headers(text) for text in bunch["data"]], [names[number] for number in numbers]
    )


class _Bunch(dict[str, Any]):
    """What scikit-learn packed the newsgroups in; its module has another name today."""


class _Array:
    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows the six names that the newsgroups' file asks for; any other one might do harm."""

    _known: Mapping[str, Any] = {
        "copy_reg._reconstructor": lambda cls, base, state: cls(state),
        "sklearn.datasets.base.Bunch": _Bunch,
        "__builtin__.dict": dict,
        "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
        "numpy.ndarray": _Array,
        "numpy.dtype": lambda *_: _Array(),
    }

    def find_class(self, module: str, name: str) -> Any:
        # copyreg and builtins: as Python 3 calls what the file knows as copy_reg and __builtin__.
        module = {"copyreg": "copy_reg", "builtins": "__builtin__"}.get(module, module)
        if f"{module}.{name}" not in self._known:
            raise RefusedError(f"the newsgroups in gensim ask for {module}.{name}: another file")
        return self._known[f"{module}.{name}"]


def _without_headers(posting: str) -> str:
    """The posting without its headers, which name the newsgroup; some postings have two sets."""
    head, _, body = posting.partition("\n\n")
    while body and any(line.startswith(_HEADERS) for line in head.splitlines()):
        posting = body.lstrip("\n")
        head, _, body = posting.partition("\n\n")
    return posting


def _reviews() -> LabelledTexts:
    found = []
    for line in gensim_file("the reviews", REVIEWS).read_text("cp1252").split("\n"):
        label, _, text = line.partition(" ")
        if text.strip():
            found.append((label.removeprefix("__label__"), text.strip()))
    labels, texts = zip(*found, strict=True)
    return LabelledTexts([*texts], [*labels])


def token_counts(texts: Iterable[np.ndarray], vocabulary_size: int) -> sparse.csr_matrix:
    """How often each token occurs in each text.

    Args:
        texts: token ids of each text.
        vocabulary_size: V.

    Returns:
        [texts, V], float64.
    """
    counted = [np.unique(ids, return_counts=True) for ids in texts]
    ends = np.cumsum([0, *(len(ids) for ids, _ in counted)])
    ids = np.concatenate([ids for ids, _ in counted]).astype(np.int64)
    often = np.concatenate([often for _, often in counted]).astype(float)
    return sparse.csr_matrix((often, ids, ends), (len(counted), vocabulary_size))


def text_vectors(
    counts: sparse.csr_matrix, vectors: Mapping[str, Tensor]
) -> dict[str, np.ndarray | sparse.csr_matrix]:
    """The vectors of texts: the mean of those of their tokens, and tf-idf.

    Args:
        counts: of tokens in texts, [texts, V].
        vectors: of the tokens, by variant, each [V, H].

    Returns:
        By variant [texts, H]; ``tf-idf`` sparse, [texts, V], with the frequencies of these texts.
    """
    shares = normalize(counts, norm="l1")
    means = {name: shares @ vector.numpy() for name, vector in vectors.items()}
    return {**means, TF_IDF: TfidfTransformer(sublinear_tf=True).fit_transform(counts)}


def text_similarity(vectors: Mapping[str, Tensor], corpus: Corpus) -> list[Measure]:
    """Cosines of texts beside how similar people find them: the 50 news items of Lee et al.

    Args:
        vectors: by variant, each [V, H].
        corpus: knows the tokens.

    Returns:
        Rows of ``text_similarity``, Pearson's correlation over all pairs of items, with an
        interval over items; ``n`` is their number.
    """
    try:
        news = gensim_file("the news items of Lee", LEE_TEXTS).read_text("latin-1")
        texts = news.strip().split("\n")
        scores = np.loadtxt(gensim_file("the news items of Lee", LEE_SCORES))
        counts = token_counts(map(corpus.encode, texts), corpus.vocabulary_size)
    except TextError as error:
        return [not_taken("text_similarity", "Lee", str(error))]
    human = np.triu(scores, 1)
    human = human + human.T
    rows = []
    for variant, points in text_vectors(counts, vectors).items():
        found = correlation_of_pairs(_cosines(points), human)
        rows.append(Measure("text_similarity", "Lee", variant, *found, n=len(texts), chance=0))
    return rows


def retrieval(vectors: Mapping[str, Tensor], corpus: Corpus) -> list[Measure]:
    """Find the other half of a document: mean reciprocal rank.

    The query is the first half of a document of the run's own text, the candidates are all second
    halves; of a half, the first 1,024 tokens. Documents come from both parts of the text (most of
    it was trained on, but no halves were), up to 2,000, spread evenly. The interval is over
    queries.

    Args:
        vectors: by variant, each [V, H].
        corpus: the text.

    Returns:
        Rows of ``retrieval``, in (0, 1]; ``n`` is the number of documents.
    """
    documents = [
        document
        for part in (corpus.train, corpus.validation)
        for document in _documents(part, corpus.end_of_text)
    ]
    n = len(documents)
    if n < _LEAST_DOCUMENTS:
        note = too_few(n, _LEAST_DOCUMENTS, f"documents of {2 * _LEAST_HALF} tokens")
        return [not_taken("retrieval", "halves of documents", note, n)]
    chosen = [documents[i] for i in _spread(n, _MOST_TEXTS)]
    halves = [document[: len(document) // 2][:_MOST_HALF] for document in chosen]
    halves += [document[len(document) // 2 :][:_MOST_HALF] for document in chosen]
    n, note = len(chosen), _part_of(len(chosen), n, "documents")
    counts = token_counts(halves, corpus.vocabulary_size)
    chance, rows = chance_reciprocal_rank(n, 1), []
    for variant, points in text_vectors(counts, vectors).items():
        cosines = _cosines(points[:n], points[n:])
        ranks = reciprocal_ranks(cosines, np.eye(n, dtype=bool), np.full(n, -1))
        found = mean_of(ranks)
        rows.append(Measure("retrieval", "halves of documents", variant, *found, n, chance, note))
    return rows


def _documents(tokens: np.ndarray, end: int | None) -> list[np.ndarray]:
    """The documents of a part of a text that are long enough; none in a synthetic language."""
    if end is None:
        return []
    borders = np.flatnonzero(tokens == end)
    starts = np.concatenate([[0], borders + 1])
    places = zip(starts, [*borders, len(tokens)], strict=True)
    return [tokens[a:b] for a, b in places if b - a >= 2 * _LEAST_HALF]


def classification(
    vectors: Mapping[str, Tensor], corpus: Corpus, name: str, labelled: LabelledTexts
) -> list[Measure]:
    """A linear probe: accuracy of ridge classification, cross-validated in five folds.

    Vectors of texts are standardised (tf-idf is not), and the penalty is chosen inside each
    training part, so that no variant is favoured by its scale. A shift of all vectors changes
    nothing here: ``centred`` must come out as ``trained``. Of more than 2,000 texts so many are
    drawn. The interval is over texts.

    Args:
        vectors: by variant, each [V, H].
        corpus: knows the tokens.
        name: of the texts.
        labelled: the texts.

    Returns:
        Rows of ``classification``, the share of texts that are put into their class; ``chance``
        is the share of the most frequent class, ``n`` the number of texts.
    """
    classes = Counter(labelled.labels)
    least = min(classes.values()) if len(classes) > 1 else 0
    if least < _LEAST_OF_A_CLASS:
        what = f"texts in each of at least two classes ({len(classes)} are there)"
        note = too_few(least, _LEAST_OF_A_CLASS, what)
        return [not_taken("classification", name, note, len(labelled.texts))]
    chosen = _spread(len(labelled.texts), _MOST_TEXTS)
    if len(chosen) < len(labelled.texts):  # files are often sorted by class, and so is the spread
        chosen = np.sort(np.random.default_rng(0).permutation(len(labelled.texts))[: len(chosen)])
    note = _part_of(len(chosen), len(labelled.texts), "texts")
    labels = np.array(labelled.labels)[chosen]
    try:
        ids = [corpus.encode(labelled.texts[i]) for i in chosen]
    except TextError as error:  # a synthetic language has no other words than its own
        return [not_taken("classification", name, str(error))]
    counts = token_counts(ids, corpus.vocabulary_size)
    chance = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    folds, rows = StratifiedKFold(_FOLDS, shuffle=True, random_state=0), []
    for variant, points in text_vectors(counts, vectors).items():
        probe = RidgeClassifierCV(_PENALTIES)
        if not sparse.issparse(points):
            probe = make_pipeline(StandardScaler(), probe)
        right = cross_val_predict(probe, points, labels, cv=folds) == labels
        found = mean_of(right.astype(float))
        rows.append(Measure("classification", name, variant, *found, len(labels), chance, note))
    return rows


def _spread(n: int, most: int) -> np.ndarray:
    """Up to so many of n numbers, spaced evenly."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)


def _part_of(chosen: int, all_of_them: int, what: str) -> str:
    return "" if chosen == all_of_them else f"{chosen:,} of {all_of_them:,} {what}"


def _cosines(points: Any, others: Any = None) -> np.ndarray:
    """Cosines of rows, dense or sparse; 0 where a row is zero."""
    left = normalize(points)
    right = left if others is None else normalize(others)
    product = left @ right.T
    return product.toarray() if sparse.issparse(product) else product
