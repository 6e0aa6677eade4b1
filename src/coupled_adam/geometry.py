"""The shape of a cloud of embeddings: a matrix goes in, numbers come out.

The measures of the Coupled Adam paper (Stollenwerk and Stollenwerk, 2025) come first, computed as
its evaluation code computes them; then those that a practitioner asks for besides; then the two
repairs that leave the training alone, centring and all-but-the-top.

Every function takes a matrix of V token embeddings of H dimensions, a tensor of any floating
dtype, computes in float64 on the tensor's device, and leaves its input as it is. None of them
builds a matrix of V x V. All raise ``TypeError`` for what is not a tensor, and ``ValueError`` for a
matrix that is not two-dimensional, is empty, is not of a floating dtype, or holds NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Similarities held at a time by the neighbour search: 2^24 in float64 are 128 MiB.
_BLOCK_ELEMENTS = 2**24


class LengthFrequencyCorrelation(NamedTuple):
    """How far the length of an embedding goes with the frequency of its token.

    Attributes:
        pearson: linear correlation of length and log probability, in [-1, 1].
        spearman: rank correlation of the two, in [-1, 1].
        left_out: number of tokens that were left out because they never occur.
    """

    pearson: float
    spearman: float
    left_out: int


def isotropy(embedding: Tensor) -> float:
    """How evenly the rows of an embedding matrix fill the directions of space (Iso).

    The ratio of the smallest to the largest of Z(c) = sum_i exp(e_i . c) over the unit
    eigenvectors c of E^T E, which is not centred (Arora et al., 2016; Mu and Viswanath, 2018).

    An eigenvector has no sign of its own, but Z(c) and Z(-c) differ. The published code takes the
    sign that its solver happens to return; here the sign with the larger Z counts, so that the
    result is the same on every machine, for every rotation, and for a cloud whose mean is zero up
    to rounding. The choice hardly matters where the cloud lies symmetrically about its mean:
    Gaussian rows of length 1, shifted by 0.5, give 0.604 to 0.605 for any signs. It does where the
    rows are spread unevenly along the shift: with exponentially distributed shifts of mean 0.6 the
    published code may return about 0.4 or 0.6, by the sign of one vector; this function gives 0.4.

    Long embeddings lower the value even if no direction is preferred: Iso changes with scale.
    Where E^T E has a repeated non-zero eigenvalue, its eigenvectors, and so Iso, are not unique.

    Args:
        embedding: token embeddings, shape [V, H].

    Returns:
        A number in (0, 1]; 1: no direction is preferred (below 1e-308 it comes out as 0).

    Raises:
        ValueError: see the top of this module.
    """
    rows = _checked(embedding)
    _, directions = torch.linalg.eigh(rows.T @ rows)
    along = rows @ directions
    # The logarithm is kept until the end: exp would overflow for long vectors.
    log_z = torch.maximum(torch.logsumexp(along, dim=0), torch.logsumexp(-along, dim=0))
    return torch.exp(log_z.min() - log_z.max()).item()


def mean_norm(embedding: Tensor) -> float:
    """How far the centre of the cloud lies from the origin: the length of the mean embedding.

    Args:
        embedding: token embeddings, shape [V, H].

    Returns:
        A number >= 0, in the units of the embeddings.

    Raises:
        ValueError: see the top of this module.
    """
    return torch.linalg.vector_norm(_checked(embedding).mean(dim=0)).item()


def relative_mean_norm(embedding: Tensor) -> float:
    """The length of the mean embedding, divided by the mean length of the embeddings.

    Args:
        embedding: token embeddings, shape [V, H].

    Returns:
        A number in [0, 1]; 0 for a cloud centred at the origin, 1 if all rows point the same way.

    Raises:
        ValueError: if all rows are zero; else see the top of this module.
    """
    rows = _checked(embedding)
    mean_length = torch.linalg.vector_norm(rows, dim=1).mean()
    if mean_length == 0:
        raise ValueError("all rows of the embedding are zero; their mean has no relative length")
    return (torch.linalg.vector_norm(rows.mean(dim=0)) / mean_length).item()


def length_frequency_correlation(
    embedding: Tensor, counts: np.ndarray | Tensor | Sequence[int]
) -> LengthFrequencyCorrelation:
    """Correlation of the length of an embedding with the log probability of its token (rho).

    Tokens with count 0 have no log probability. They are left out, and the result says how many.
    (The paper's code keeps them instead, with a probability of 1e-10; that lets the padding rows
    of a vocabulary take part, far out on the axis, so compare rho with the paper's with care.)

    Args:
        embedding: token embeddings, shape [V, H].
        counts: how often each token occurs in the training text, shape [V], each >= 0.

    Returns:
        Pearson's and Spearman's coefficient, each in [-1, 1], and the number of tokens left out.
        Equal values share the mean of their ranks.

    Raises:
        ValueError: if the counts do not match the rows, are negative or not finite, or if the
            lengths or the counts of the tokens that occur are all equal, which leaves the
            correlation undefined; else see the top of this module.
    """
    rows = _checked(embedding)
    occurrences = torch.as_tensor(counts, dtype=torch.float64, device=rows.device)
    if occurrences.shape != rows.shape[:1]:
        raise ValueError(
            f"counts has shape {list(occurrences.shape)} and the embedding {len(rows)} rows; "
            "give one count for each row"
        )
    if not bool(torch.isfinite(occurrences).all()) or bool((occurrences < 0).any()):
        raise ValueError("counts holds a negative number, NaN or infinity; give counts >= 0")
    seen = occurrences > 0
    lengths = torch.linalg.vector_norm(rows[seen], dim=1)
    log_probabilities = torch.log(occurrences[seen] / occurrences.sum())
    for name, values in (("lengths of the rows", lengths), ("counts", log_probabilities)):
        if len(torch.unique(values)) < 2:
            raise ValueError(
                f"the {name} take fewer than two values among the {len(values)} tokens that "
                "occur; a correlation needs at least two"
            )
    return LengthFrequencyCorrelation(
        pearson=_pearson(lengths, log_probabilities),
        spearman=_pearson(_ranks(lengths), _ranks(log_probabilities)),
        left_out=len(rows) - len(lengths),
    )


def condition_ratio(embedding: Tensor) -> float:
    """The smallest singular value of the embedding matrix as a percentage of the largest (kappa).

    Args:
        embedding: token embeddings, shape [V, H], not centred. There are min(V, H) values.

    Returns:
        A percentage in [0, 100]; 0 for a matrix without full rank, 100 if no direction is longer.

    Raises:
        ValueError: if all rows are zero; else see the top of this module.
    """
    return _condition_ratio(_singular_values(_checked(embedding)))


def mean_cosine(embedding: Tensor) -> float:
    """The mean cosine over all pairs of two different rows.

    With unit rows u_i, the V x V cosines sum to ``|sum_i u_i|^2``, and V of them are a row's with
    itself; so one sum over the rows is enough.

    Args:
        embedding: token embeddings, shape [V, H], V >= 2.

    Returns:
        A number in [-1 / (V - 1), 1]; 0 for directions drawn at random.

    Raises:
        ValueError: if there is one row only, or if a row is zero and so has no direction; else see
            the top of this module.
    """
    directions = _directions(_checked(embedding))
    count = len(directions)
    if count < 2:
        raise ValueError("the embedding has one row; a mean over pairs needs at least two")
    return ((directions.sum(dim=0).square().sum() - count) / (count * (count - 1))).item()


def isoscore(embedding: Tensor) -> float:
    """The share of dimensions that the cloud uses evenly, about its own mean (IsoScore).

    Rudman et al. (2022) rotate the cloud to its principal axes, scale the variances to the length
    sqrt(H), take their distance from (1, ..., 1) and rescale it. For variances s that comes to
    ((sum s)^2 / sum s^2 - 1) / (H - 1), and both sums can be had from the covariance matrix
    without its axes: its trace and its Frobenius norm. A shift of the whole cloud does not change
    IsoScore; it is blind to the drift that this book is about, and a check that nothing else
    happened.

    Args:
        embedding: token embeddings, shape [V, H], V >= 2, H >= 2.

    Returns:
        A number in [0, 1]; 0 for a cloud on a line, 1 for equal variance in all directions.

    Raises:
        ValueError: if H is 1 or all rows are equal; else see the top of this module.
    """
    rows = _checked(embedding)
    width = rows.shape[1]
    if width < 2:
        raise ValueError("the embedding has one column; IsoScore compares at least two directions")
    if bool((rows == rows[0]).all()):
        raise ValueError("all rows of the embedding are equal; IsoScore needs rows that differ")
    offsets = rows - rows.mean(dim=0)
    scatter = offsets.T @ offsets
    used = scatter.trace().square() / scatter.square().sum()
    # A cloud on a line can come out below zero by a rounding error.
    return max(0.0, ((used - 1) / (width - 1)).item())


def effective_rank(embedding: Tensor) -> float:
    """How many directions the matrix uses, in effect (Roy and Vetterli, 2007).

    The exponential of the entropy of the singular values, divided by their sum.

    Args:
        embedding: token embeddings, shape [V, H], not centred.

    Returns:
        A number in [1, min(V, H)].

    Raises:
        ValueError: if all rows are zero; else see the top of this module.
    """
    return _effective_rank(_singular_values(_checked(embedding)))


def hubness(embedding: Tensor, neighbours: int = 10) -> float:
    """How unevenly the rows serve as each other's neighbours (Radovanovic et al., 2010).

    The skewness (third central moment over the cubed standard deviation, not corrected for the
    number of rows) of the k-occurrences: how often each row is among the k nearest of another one.

    Takes V^2 H steps, in blocks of rows that hold 128 MiB of similarities at a time.

    Args:
        embedding: token embeddings, shape [V, H].
        neighbours: k, from 1 to V - 1.

    Returns:
        About 0 if the occurrences lie symmetrically (0 exactly if all are equal), and the larger
        the more a few hubs are everybody's neighbours.

    Raises:
        ValueError: if a row is zero and so has no direction, or k is out of range; else see the
            top of this module.
    """
    directions = _directions(_checked(embedding))
    occurrences = torch.zeros(len(directions), dtype=torch.int64, device=directions.device)
    everyone = torch.arange(len(directions), device=directions.device)
    for nearest in _nearest_by_block(directions, everyone, neighbours):
        occurrences += torch.bincount(nearest.flatten(), minlength=len(directions))
    deviations = occurrences.double() - neighbours
    variance = deviations.square().mean()
    if variance == 0:
        return 0.0
    return (deviations.pow(3).mean() / variance.pow(1.5)).item()


def nearest_neighbours(
    embedding: Tensor, rows: Tensor | Sequence[int], neighbours: int = 10
) -> Tensor:
    """The rows whose directions are nearest to those of the given rows, by cosine.

    Args:
        embedding: token embeddings, shape [V, H].
        rows: the row numbers (token ids) that are asked about, each from 0 to V - 1.
        neighbours: how many to give for each, from 1 to V - 1.

    Returns:
        Row numbers, int64, shape [len(rows), neighbours], nearest first. A row is never its own
        neighbour, but an equal row is. The order among equal cosines is not defined.

    Raises:
        ValueError: if a row is zero and so has no direction, if a row number does not exist, or if
            ``neighbours`` is out of range; else see the top of this module.
    """
    directions = _directions(_checked(embedding))
    asked = torch.as_tensor(rows, device=directions.device)
    if asked.numel() == 0:
        asked = asked.long()  # an empty list comes as floating point
    if asked.ndim != 1 or asked.is_floating_point() or asked.dtype == torch.bool:
        raise ValueError(f"rows is {rows!r}; give a list of row numbers")
    outside = asked[(asked < 0) | (asked >= len(directions))]
    if len(outside):
        raise ValueError(
            f"there is no row {outside[0].item()}: the embedding has rows 0 to "
            f"{len(directions) - 1}"
        )
    blocks = _nearest_by_block(directions, asked.long(), neighbours)
    return torch.cat([asked.new_empty((0, neighbours), dtype=torch.int64), *blocks])


def summary(
    embedding: Tensor, counts: np.ndarray | Tensor | Sequence[int] | None = None
) -> dict[str, float]:
    """The measures that are cheap enough to take during training, by name.

    Args:
        embedding: token embeddings, shape [V, H], V >= 2, H >= 2.
        counts: how often each token occurs in the training text, shape [V]; None leaves out the
            correlations of length and frequency.

    Returns:
        ``isotropy``, ``mean_norm``, ``relative_mean_norm``, ``condition_ratio``, ``mean_cosine``,
        ``isoscore`` and ``effective_rank``; with counts also ``rho_pearson`` and
        ``rho_spearman``. Each as the function of that name gives it.

    Raises:
        ValueError: if one of the measures is not defined for this matrix.
    """
    rows = _checked(embedding)
    spectrum = _singular_values(rows)  # the dearest step; two measures share it
    measures = {
        "isotropy": isotropy(rows),
        "mean_norm": mean_norm(rows),
        "relative_mean_norm": relative_mean_norm(rows),
        "condition_ratio": _condition_ratio(spectrum),
        "mean_cosine": mean_cosine(rows),
        "isoscore": isoscore(rows),
        "effective_rank": _effective_rank(spectrum),
    }
    if counts is not None:
        rho = length_frequency_correlation(rows, counts)
        measures |= {"rho_pearson": rho.pearson, "rho_spearman": rho.spearman}
    return measures


def centred(embedding: Tensor) -> Tensor:
    """The cloud moved to the origin: every row minus the mean row (Bis et al., 2021).

    Args:
        embedding: token embeddings, shape [V, H].

    Returns:
        A new tensor of the same shape and dtype, without gradient. Rounded to the input's dtype
        at the end only.

    Raises:
        ValueError: see the top of this module.
    """
    rows = _checked(embedding)
    return (rows - rows.mean(dim=0)).to(embedding.dtype)


def without_top_components(embedding: Tensor, components: int) -> Tensor:
    """The centred cloud without its longest principal directions (all-but-the-top).

    Mu and Viswanath (2018), who suggest about H / 100 components. The components are taken out of
    the centred rows, so that the result has mean zero; implementations that take them out of the
    uncentred rows bring a part of the mean back.

    Args:
        embedding: token embeddings, shape [V, H].
        components: how many directions to remove, from 0 (which only centres) to H.

    Returns:
        A new tensor of the same shape and dtype, without gradient. Rounded to the input's dtype
        at the end only.

    Raises:
        ValueError: if ``components`` is not from 0 to H; else see the top of this module.
    """
    rows = _checked(embedding)
    width = rows.shape[1]
    if not 0 <= components <= width:
        raise ValueError(f"components is {components}; give a number from 0 to {width}")
    offsets = rows - rows.mean(dim=0)
    _, directions = torch.linalg.eigh(offsets.T @ offsets)  # in rising order of variance
    top = directions[:, width - components :]
    return (offsets - (offsets @ top) @ top.T).to(embedding.dtype)


def _checked(embedding: Tensor) -> Tensor:
    """The matrix in float64 and cut off from the graph, or an error that says what is wrong."""
    if not isinstance(embedding, Tensor):
        raise TypeError(
            f"the embedding is a {type(embedding).__name__}; give a tensor, for example "
            "model.embedding or torch.as_tensor(array)"
        )
    shape = list(embedding.shape)
    if embedding.ndim != 2:
        raise ValueError(f"the embedding has shape {shape}; give a matrix of [tokens, dimensions]")
    if embedding.numel() == 0:
        raise ValueError(f"the embedding has shape {shape} and is empty; give at least one row")
    if not embedding.is_floating_point():
        raise ValueError(
            f"the embedding is of dtype {embedding.dtype}; give floating point numbers "
            "(were these token ids, or quantised weights?)"
        )
    rows = embedding.detach().double()
    bad = ~torch.isfinite(rows).all(dim=1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"the embedding holds NaN or infinity in {int(bad.sum())} rows, the first is row "
            f"{first}; leave such rows out, or look for the step at which training diverged"
        )
    return rows


def _directions(rows: Tensor) -> Tensor:
    """The rows scaled to length 1; an error names the first row that has no direction."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    zero = (lengths[:, 0] == 0).nonzero()
    if len(zero):
        raise ValueError(
            f"{len(zero)} rows of the embedding are zero, the first is row {int(zero[0])}; a zero "
            "row has no cosine, so leave such rows out: embedding[embedding.norm(dim=1) > 0]"
        )
    return rows / lengths


def _singular_values(rows: Tensor) -> Tensor:
    """All min(V, H) singular values, largest first; an error if all are zero."""
    # Not from the eigenvalues of E^T E: squaring would lose the small ones below 1e-8.
    spectrum = torch.linalg.svdvals(rows)
    if spectrum[0] == 0:
        raise ValueError("all rows of the embedding are zero; its singular values say nothing")
    return spectrum


def _condition_ratio(spectrum: Tensor) -> float:
    return (100 * spectrum[-1] / spectrum[0]).item()


def _effective_rank(spectrum: Tensor) -> float:
    return torch.special.entr(spectrum / spectrum.sum()).sum().exp().item()


def _pearson(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    x, y = x / torch.linalg.vector_norm(x), y / torch.linalg.vector_norm(y)
    return min(1.0, max(-1.0, (x @ y).item()))  # rounding must not carry it past the ends


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, ties = torch.unique(values, return_inverse=True, return_counts=True)
    last = torch.cumsum(ties, dim=0).double()
    return (last - (ties - 1) / 2)[place]


def _nearest_by_block(directions: Tensor, asked: Tensor, neighbours: int) -> Iterator[Tensor]:
    """The nearest rows for one block of the asked rows after another, [block, neighbours]."""
    count = len(directions)
    if not 1 <= neighbours < count:
        raise ValueError(
            f"neighbours is {neighbours} and the embedding has {count} rows; give a number from 1 "
            f"to {count - 1}"
        )
    for block in asked.split(max(1, _BLOCK_ELEMENTS // count)):
        similarities = directions[block] @ directions.T
        similarities.scatter_(1, block[:, None], -torch.inf)  # a row is not its own neighbour
        yield similarities.topk(neighbours, dim=1).indices
