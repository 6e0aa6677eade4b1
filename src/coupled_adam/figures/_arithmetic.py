"""The live figures' arithmetic once more, in numpy: for the pictures, and to check the scripts.

Every function here has a namesake in ``common.js``, ``model.js`` or in a figure's script; the tests
run both and compare. Matrices of tokens have shape [V, 2], as the figures live in the plane.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# The arms that the figures' arithmetic knows; `update` has a line for each.
OPTIMIZERS = ("sgd", "adamw", "coupled")
CLOUD_TOKENS = 400
CLOUD_STEPS = 240
MOMENT_STEPS = 120
TOY_RARE = 6
TOY_STEPS = 40
TOY_BATCH = 32
TOY_RATES = {"sgd": 0.3, "adamw": 0.03, "coupled": 0.03}
# Length at which SGD's longest update is drawn; Adam's are drawn in learning rates.
TOY_LONGEST = 2.5


class Mulberry32:
    """Tommy Ettinger's generator mulberry32: numbers in [0, 1), the same as in the browser.

    Its state only counts upwards, so that many numbers can be drawn at once.
    """

    def __init__(self, seed: int) -> None:
        self._state = np.uint64(seed & 0xFFFFFFFF)

    def draw(self, count: int) -> Array:
        """The next ``count`` numbers, shape [count]."""
        mask = np.uint64(0xFFFFFFFF)
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x6D2B79F5)
        a = (self._state + steps) & mask
        if count:
            self._state = a[-1]
        t = ((a ^ (a >> np.uint64(15))) * (a | np.uint64(1))) & mask
        t = ((t + (((t ^ (t >> np.uint64(7))) * (t | np.uint64(61))) & mask)) & mask) ^ t
        return (t ^ (t >> np.uint64(14))).astype(np.float64) / 4294967296

    def normal(self, count: int) -> Array:
        """The next ``count`` standard normal numbers (Box and Muller), shape [count]."""
        uniform = self.draw(2 * count)
        return np.sqrt(-2 * np.log(1 - uniform[::2])) * np.cos(2 * np.pi * uniform[1::2])


def zipf(tokens: int, exponent: float) -> Array:
    """Zipf's law: probabilities proportional to rank ** -exponent, shape [tokens]."""
    weights = np.arange(1, tokens + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@dataclass
class AdamState:
    """Adam's two running moments before bias correction, and the number of steps so far."""

    m: Array
    v: Array
    t: int = 0


def adam_moments(
    gradient: Array, state: AdamState, beta1: float, beta2: float
) -> tuple[Array, Array]:
    """Both moments after one more gradient, with bias correction; changes ``state``."""
    state.t += 1
    state.m = beta1 * state.m + (1 - beta1) * gradient
    state.v = beta2 * state.v + (1 - beta2) * gradient * gradient
    return state.m / (1 - beta1**state.t), state.v / (1 - beta2**state.t)


def update(
    optimizer: str,
    gradient: Array,
    state: AdamState,
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.95,
    epsilon: float = 1e-8,
) -> Array:
    """What one optimizer adds to the weights for a gradient of shape [V, H].

    Args:
        optimizer: ``"sgd"``, ``"adamw"`` (here without weight decay) or ``"coupled"``, where the
            second moment is its mean over the V rows.
        gradient: the gradient, shape [V, H].
        state: Adam's moments, changed in place; SGD has none and leaves it alone.
        rate: learning rate.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        epsilon: added to the root of the second moment.
    """
    if optimizer == "sgd":
        return -rate * gradient
    m, v = adam_moments(gradient, state, beta1, beta2)
    if optimizer == "coupled":
        v = v.mean(axis=0, keepdims=True)
    return -rate * m / (np.sqrt(v) + epsilon)


@dataclass
class LanguageModel:
    """Fixed hidden states and target probabilities, and where the output embeddings start.

    Attributes:
        hidden: one hidden state per context, shape [C, 2].
        target: probability of each token in each context, shape [C, V].
        embeddings: output embeddings before training, shape [V, 2], with mean zero.
    """

    hidden: Array
    target: Array
    embeddings: Array


def language_model(
    frequencies: Array, *, contexts: int, spread: float, taste: float, start: float, seed: int
) -> LanguageModel:
    """A language model in the plane; hidden states lie on a circle around (1, 0.6).

    Args:
        frequencies: about how often each token occurs, shape [V], summing to one.
        contexts: how many hidden states there are.
        spread: radius of their circle.
        taste: how strongly contexts differ in the tokens that they prefer.
        start: standard deviation of the embeddings before training.
        seed: of everything random.
    """
    random = Mulberry32(seed)
    tastes = taste * random.normal(2 * len(frequencies)).reshape(-1, 2)
    embeddings = start * random.normal(2 * len(frequencies)).reshape(-1, 2)
    angles = 2 * np.pi * np.arange(contexts) / contexts
    offsets = spread * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    weights = frequencies * np.exp(offsets @ tastes.T)
    return LanguageModel(
        hidden=np.array([1, 0.6]) + offsets,
        target=weights / weights.sum(axis=1, keepdims=True),
        embeddings=embeddings - embeddings.mean(axis=0),
    )


def sample_batch(model: LanguageModel, random: Mulberry32, size: int) -> Array:
    """How often each token was drawn in each context, among ``size`` samples, shape [C, V]."""
    contexts, tokens = model.target.shape
    uniform = random.draw(2 * size)
    chosen = np.floor(uniform[::2] * contexts).astype(int)
    cumulative = model.target.cumsum(axis=1)
    drawn = (cumulative[chosen, :-1] <= uniform[1::2, None]).sum(axis=1)
    counts = np.zeros((contexts, tokens))
    np.add.at(counts, (chosen, drawn), 1)
    return counts


def gradient(model: LanguageModel, embeddings: Array, counts: Array) -> Array:
    """The batch's mean gradient of the embeddings, shape [V, 2]: sum of (p_i - [i = t]) h."""
    size = counts.sum()
    seen = counts.sum(axis=1, keepdims=True) / size
    error = seen * softmax(model.hidden @ embeddings.T) - counts / size
    return error.T @ model.hidden


def cross_entropy(model: LanguageModel, embeddings: Array) -> float:
    """Expected cross-entropy in nats over all contexts."""
    log_p = np.log(softmax(model.hidden @ embeddings.T))
    return float(-(model.target * log_p).sum(axis=1).mean())


def relative_mean_norm(embeddings: Array) -> float:
    """Norm of the mean embedding over the mean norm of the embeddings."""
    return float(
        np.linalg.norm(embeddings.mean(axis=0)) / np.linalg.norm(embeddings, axis=1).mean()
    )


@dataclass
class Run:
    """One optimizer's training: embeddings before each step and at the end, and the updates."""

    path: list[Array]
    updates: list[Array] = field(default_factory=list)


def train(
    model: LanguageModel,
    rates: dict[str, float],
    *,
    steps: int,
    size: int,
    seed: int,
    decay: bool,
) -> tuple[dict[str, Run], list[Array]]:
    """Train one copy per optimizer on the same batches from the same start.

    Args:
        model: the language model.
        rates: learning rate by optimizer.
        steps: number of steps.
        size: samples in a batch.
        seed: of the batches.
        decay: whether the learning rate falls to zero along half a cosine.

    Returns:
        The runs by optimizer, and the batches as counts of shape [C, V].
    """
    random = Mulberry32(seed)
    runs = {name: Run([model.embeddings]) for name in rates}
    zeros = np.zeros_like(model.embeddings)
    states = {name: AdamState(zeros, zeros) for name in rates}
    batches = []
    for t in range(steps):
        counts = sample_batch(model, random, size)
        batches.append(counts)
        factor = 0.5 * (1 + np.cos(np.pi * t / steps)) if decay else 1.0
        for name, run in runs.items():
            g = gradient(model, run.path[-1], counts)
            change = update(name, g, states[name], rates[name] * factor)
            run.updates.append(change)
            run.path.append(run.path[-1] + change)
    return runs, batches


def cloud_run(exponent: float, seed: int) -> tuple[LanguageModel, dict[str, Run]]:
    """The training behind the cloud figure, for a Zipf exponent in [0, 2]."""
    model = language_model(
        zipf(CLOUD_TOKENS, exponent), contexts=6, spread=0.5, taste=0.35, start=0.25, seed=seed
    )
    rates = {"sgd": 4.0, "adamw": 0.05, "coupled": 0.05}
    size = 2 * CLOUD_TOKENS
    runs, _ = train(model, rates, steps=CLOUD_STEPS, size=size, seed=seed + 1, decay=True)
    return model, runs


def toy_run(
    optimizers: tuple[str, ...], halvings: int, trainings: int, seed: int
) -> tuple[dict[str, Array], Array]:
    """The trainings behind the toy of eight tokens, six of them rare.

    Args:
        optimizers: one or more of ``OPTIMIZERS``.
        halvings: a rare token occurs once in ``8 * 2 ** halvings`` places; with none all are alike.
        trainings: how many are averaged; they differ in their batches only.
        seed: of the model; the trainings' are the numbers after it.

    Returns:
        The mean update of each token at each step by optimizer, shape [40, 8, 2]; and the mean
        number of tokens that a step's batch lacks, shape [40].
    """
    rare = 1 / (8 * 2**halvings)
    frequent = (1 - TOY_RARE * rare) / 2
    frequencies = np.array([frequent] * 2 + [rare] * TOY_RARE)
    model = language_model(frequencies, contexts=4, spread=0.5, taste=0.35, start=0.25, seed=seed)
    rates = {name: TOY_RATES[name] for name in optimizers}
    updates = {name: np.zeros((TOY_STEPS, len(frequencies), 2)) for name in optimizers}
    absent = np.zeros(TOY_STEPS)
    for k in range(1, trainings + 1):
        options: dict[str, Any] = {"steps": TOY_STEPS, "size": TOY_BATCH, "decay": False}
        runs, batches = train(model, rates, seed=seed + k, **options)
        for name, run in runs.items():
            updates[name] += np.array(run.updates) / trainings
        absent += (np.array(batches).sum(axis=1) == 0).sum(axis=1) / trainings
    return updates, absent


def head_to_tail(optimizer: str, update: Array) -> tuple[NDArray[np.intp], Array]:
    """The way along one step's updates in the order of their directions; its end is their sum.

    Args:
        optimizer: Adam's updates are measured in learning rates, SGD's so that the longest of them
            has the length 2.5.
        update: the update of each token, shape [8, 2].

    Returns:
        The token of each leg, shape [8], and where the legs begin and end, shape [9, 2].
    """
    unit = TOY_RATES[optimizer]
    if optimizer == "sgd":
        unit = float(np.linalg.norm(update, axis=1).max()) / TOY_LONGEST
    tokens = np.argsort(np.arctan2(update[:, 1], update[:, 0]), kind="stable")
    return tokens, np.vstack([np.zeros(2), np.cumsum(update[tokens] / unit, axis=0)])


def moment_series(
    *, beta1: float, beta2: float, noise: float, scale: float, seed: int
) -> dict[str, Array]:
    """A gradient whose signal changes sign half-way, its moments and Adam's step, each [120].

    Returns:
        ``g``, ``m`` and ``root`` (of the second moment), both with bias correction, and ``step`` in
        learning rates.
    """
    random = Mulberry32(seed)
    signal = np.where(np.arange(MOMENT_STEPS) < MOMENT_STEPS // 2, 1.0, -1.0)
    g = scale * (signal + noise * random.normal(MOMENT_STEPS))
    state = AdamState(np.zeros(()), np.zeros(()))
    pairs: list[Any] = [adam_moments(x, state, beta1, beta2) for x in g]
    m, v = (np.array(column) for column in zip(*pairs, strict=True))
    root = np.sqrt(v)
    return {"g": g, "m": m, "root": root, "step": m / (root + 1e-8)}


def relative_step(frequency: Array, tokens: int) -> Array:
    """Adam's step over the step with the shared moment, if v is proportional to frequency."""
    return np.sqrt(1 / (tokens * frequency))
