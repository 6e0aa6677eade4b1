"""The closed forms and small simulators behind chapters 1 to 6; numpy, nothing is trained here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def zipf_frequencies(vocabulary_size: int, exponent: float = 1.0) -> Array:
    """Word frequencies that follow Zipf's law.

    Args:
        vocabulary_size: number of tokens V, at least 1.
        exponent: the frequency falls with rank to this power; 0 makes all tokens equal.

    Returns:
        Shape [V], descending, summing to one.

    Raises:
        ValueError: if the vocabulary is empty.
    """
    if vocabulary_size < 1:
        raise ValueError(f"vocabulary_size must be at least 1, not {vocabulary_size}")
    weights = np.arange(1, vocabulary_size + 1, dtype=float) ** -exponent
    return weights / weights.sum()


def output_gradients(logits: ArrayLike, hidden_states: ArrayLike, targets: ArrayLike) -> Array:
    """Gradient of the mean cross-entropy with respect to every output embedding.

    For one position the gradient of row i is (p_i - [i = t]) h (Stollenwerk and Stollenwerk,
    2025, sec. 2); here it is averaged over N positions.

    Args:
        logits: shape [N, V].
        hidden_states: shape [N, H].
        targets: the tokens that came, whole numbers below V, shape [N].

    Returns:
        Shape [V, H]; the rows sum to zero up to rounding.
    """
    logits, hidden_states = np.asarray(logits, float), np.asarray(hidden_states, float)
    errors = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors /= errors.sum(axis=1, keepdims=True)
    errors[np.arange(len(errors)), np.asarray(targets)] -= 1
    return errors.T @ hidden_states / len(errors)


class Moments(NamedTuple):
    """Adam's view of a series of gradients; every array has the series' shape.

    Attributes:
        first: bias-corrected mean of the gradients.
        second: bias-corrected mean of the squared gradients.
        step: first / (sqrt(second) + eps), the step in units of the learning rate.
    """

    first: Array
    second: Array
    step: Array


def moments(
    gradients: ArrayLike, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Moments:
    """Follow Adam's two moments along given gradients (Kingma and Ba, 2015, algorithm 1).

    Args:
        gradients: shape [T, ...], one entry a step.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.

    Returns:
        The moments and the steps after each of the T gradients.
    """
    series = np.asarray(gradients, float)
    first, second = np.empty_like(series), np.empty_like(series)
    m, v = np.zeros(series.shape[1:]), np.zeros(series.shape[1:])
    for t, gradient in enumerate(series):
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        first[t] = m / (1 - betas[0] ** (t + 1))
        second[t] = v / (1 - betas[1] ** (t + 1))
    return Moments(first, second, first / (np.sqrt(second) + eps))


def absence(frequencies: ArrayLike, tokens_per_step: int) -> Array:
    """Probability that a token does not occur among the targets of one step.

    Args:
        frequencies: shape [V], summing to one.
        tokens_per_step: number of targets N in a step, taken as independent draws.

    Returns:
        (1 - f_i)^N, shape [V], in [0, 1].
    """
    return (1 - np.asarray(frequencies, float)) ** tokens_per_step


def expected_second_moment(
    frequencies: ArrayLike,
    probabilities: ArrayLike,
    tokens_per_step: int,
    mean_hidden: ArrayLike,
    mean_square_hidden: ArrayLike,
) -> Array:
    """Expected squared gradient of each output embedding, averaged over its coordinates.

    Targets are independent draws with the given frequencies, hidden states are independent of
    them, and the model gives token i the probability p_i everywhere. Then the gradient of row i
    is a mean of N independent terms (p_i - [t = i]) h, and with c = f (1 - p)^2 + (1 - f) p^2

        E[g^2] = (c E[h^2] + (N - 1) (p - f)^2 E[h]^2) / N.

    For a model that has learnt the frequencies (p = f) it is f (1 - f) E[h^2] / N: proportional
    to the frequency, the statement of chapter 03.

    Args:
        frequencies: f, shape [V].
        probabilities: p, shape [V], or a number.
        tokens_per_step: N.
        mean_hidden: E[h], shape [H].
        mean_square_hidden: E[h^2] of each coordinate, shape [H].

    Returns:
        Shape [V].
    """
    f, p = np.asarray(frequencies, float), np.asarray(probabilities, float)
    of_one = f * (1 - p) ** 2 + (1 - f) * p**2
    mean_square = np.mean(np.asarray(mean_square_hidden, float))
    squared_mean = np.mean(np.asarray(mean_hidden, float) ** 2)
    n = tokens_per_step
    return (of_one * mean_square + (n - 1) * (p - f) ** 2 * squared_mean) / n


def first_step_of_the_mean(
    frequencies: ArrayLike, tokens_per_step: int, mean_hidden: ArrayLike
) -> Array:
    """Adam's very first step of the mean output embedding, in units of the learning rate.

    Adam's first step is the sign of the gradient. A token that is absent from the batch has the
    gradient p_i h with the batch mean of h, so it steps against the sign of the mean hidden
    state. A token that occurs steps the other way if its own hidden states share the mean's sign,
    and somewhere else if they do not; taken as a coin toss, it adds nothing. What remains is the
    expected share of absent tokens:

        step = - sign(mean h) * mean_i (1 - f_i)^N.

    Args:
        frequencies: shape [V], summing to one.
        tokens_per_step: number of targets N in the step.
        mean_hidden: mean hidden state, shape [H].

    Returns:
        Shape [H], each entry in [-1, 1].
    """
    share = absence(frequencies, tokens_per_step).mean()
    return -np.sign(np.asarray(mean_hidden, float)) * share


def simulate_drift(
    frequencies: ArrayLike,
    tokens_per_step: int,
    learning_rates: ArrayLike,
    mean_hidden: ArrayLike,
    std_hidden: ArrayLike,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    coupled: bool = False,
    start: ArrayLike | None = None,
    learn_probabilities: bool = True,
    seed: int = 0,
) -> Array:
    """Foretell the path of the mean output embedding from word frequencies alone.

    There is no network and no text in this: at each step N targets are drawn with the given
    frequencies, each with a hidden state drawn from a normal distribution with the given mean and
    spread, whatever the target is; every token gets the gradient p_i E[h] minus the sum of the
    hidden states of its occurrences over N, and Adam (or Coupled Adam) takes its step. The
    probabilities p_i are those of a model that knows a single context, softmax(e_i . E[h]), or
    stay at 1 / V.

    Args:
        frequencies: shape [V], summing to one.
        tokens_per_step: N.
        learning_rates: shape [T], one a step.
        mean_hidden: mean hidden state, shape [T, H], or [H] if it stays the same.
        std_hidden: its spread in each coordinate, same shape.
        betas: decay rates of Adam's moments.
        eps: Adam's epsilon.
        coupled: share the second moment over the vocabulary.
        start: initial embeddings, shape [V, H]; zeros if not given.
        learn_probabilities: False keeps p_i at 1 / V.
        seed: of the draws.

    Returns:
        Displacement of the mean embedding after each step, shape [T, H].
    """
    f, rates = np.asarray(frequencies, float), np.asarray(learning_rates, float)
    f = f / f.sum()
    width = np.shape(mean_hidden)[-1]
    means = np.broadcast_to(np.asarray(mean_hidden, np.float32), (len(rates), width))
    stds = np.broadcast_to(np.asarray(std_hidden, np.float32), (len(rates), width))
    random = np.random.default_rng(seed)
    shape = (len(f), width)
    # float32 is plenty for a prediction, and halves the time.
    e = np.zeros(shape, np.float32) if start is None else np.array(start, np.float32)
    m, v = np.zeros(shape, np.float32), np.zeros(width if coupled else shape, np.float32)
    before, path = e.mean(axis=0, dtype=float), np.empty((len(rates), width))
    p = np.full(len(f), 1 / len(f), np.float32)
    for t, (rate, mean, std) in enumerate(zip(rates, means, stds, strict=True), start=1):
        if learn_probabilities:
            logits = e @ mean
            p = np.exp(logits - logits.max())
            p /= p.sum()
        count = random.multinomial(tokens_per_step, f)
        present = np.flatnonzero(count)
        gradient = (p - count / tokens_per_step).astype(np.float32)[:, None] * mean
        noise = random.standard_normal((len(present), width), dtype=np.float32) * std
        scale = np.sqrt(count[present]) / tokens_per_step
        gradient[present] -= scale.astype(np.float32)[:, None] * noise
        m += (1 - betas[0]) * (gradient - m)
        square = gradient**2
        v += (1 - betas[1]) * ((square.mean(axis=0) if coupled else square) - v)
        denominator = np.sqrt(v / (1 - betas[1] ** t)) + eps
        e -= (rate / (1 - betas[0] ** t) * (m / denominator)).astype(np.float32)
        path[t - 1] = e.mean(axis=0, dtype=float) - before
    return path


def mean_cosine_of_shifted_cloud(shift: ArrayLike) -> Array:
    """Mean cosine of two vectors of a wide, round cloud that is shifted from the origin.

    With independent rows e_i = mu + x_i, where x_i has mean zero and many equal coordinates, two
    vectors share only mu, so that their cosine is near ``|mu|^2 / (|mu|^2 + |x|^2)``.

    Args:
        shift: length of mu divided by the root mean square length of x, at least 0.

    Returns:
        shift^2 / (1 + shift^2), in [0, 1).
    """
    squared = np.asarray(shift, float) ** 2
    return squared / (1 + squared)
