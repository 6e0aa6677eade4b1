"""Live figures in plain JavaScript and SVG: no library, no kernel, no network.

Each function returns a :class:`LiveFigure`. As the last value of a notebook cell it shows itself;
on a page of prose, ``figures.cloud().html()`` is the same figure as a string.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coupled_adam.figures import page
from coupled_adam.figures._arithmetic import OPTIMIZERS
from coupled_adam.figures._pictures import picture

__all__ = ["LiveFigure", "cloud", "moments", "step_size", "toy_updates"]


@dataclass(frozen=True)
class LiveFigure:
    """A figure that is live wherever scripts run, and a picture where they do not.

    Attributes:
        kind: which figure it is, the name of the function that makes it.
        config: what its script is given; plain values only.
        alt: the text alternative.
    """

    kind: str
    config: dict[str, Any]
    alt: str

    def html(self) -> str:
        """The figure as one self-contained piece of HTML; the same call gives the same string."""
        return page.piece(self.kind, self.config, self.alt)

    def png(self) -> bytes:
        """The figure's first view as an opaque picture. Needs matplotlib."""
        return picture(self.kind, self.config)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/html": self.html(),
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": self.alt,
        }


def cloud(exponent: float = 1.0, alt: str | None = None) -> LiveFigure:
    """A cloud of 400 tokens, trained in the reader's browser by SGD, Adam and Coupled Adam.

    Args:
        exponent: Zipf exponent of the token frequencies to begin with, in [0, 2].
        alt: text alternative, if the default does not fit the place.

    Raises:
        ValueError: if the exponent is outside [0, 2].
    """
    if not 0 <= exponent <= 2:
        raise ValueError(f"exponent is {exponent}; the figure's knob goes from 0 to 2")
    default = (
        "Three panels, each with the embeddings of the same 400 tokens in the plane, trained step "
        "by step on the same batches, at learning rates that lead them all to about the same loss. "
        "With word frequencies as skewed as in natural text, Adam's cloud leaves the origin as a "
        "block, against the mean hidden state, and an arrow from the origin to its mean grows; "
        "the clouds of SGD and of Coupled Adam spread too, but their mean stays on the origin. "
        "Below are a play button and sliders for the skew and for the training step."
    )
    return LiveFigure("cloud", {"exponent": exponent, "seed": 1}, alt or default)


def moments(alt: str | None = None) -> LiveFigure:
    """A noisy gradient, its two moments, and the step that Adam makes of them.

    Args:
        alt: text alternative, if the default does not fit the place.
    """
    default = (
        "Left, 120 noisy gradients whose signal changes sign half-way, with the running first "
        "moment as a line and the root of the second moment as a band. Right, Adam's step, the "
        "ratio of the two, which stays between about -1 and 1 learning rates. Below, the mean size "
        "of a step: scaling the gradient by a power of ten moves SGD's as far, and leaves Adam's "
        "where it is. Sliders set the scale, the noise and both betas."
    )
    config = {"beta1": 0.9, "beta2": 0.95, "noise": 1.0, "power": 0, "seed": 4}
    return LiveFigure("moments", config, alt or default)


def step_size(alt: str | None = None, frequencies: Sequence[float] | None = None) -> LiveFigure:
    """The skew of a vocabulary against the step size that Adam gives each token.

    Assumes what the chapter measures: a token's second moment is proportional to its frequency.

    Args:
        alt: text alternative, if the default does not fit the place.
        frequencies: counts or frequencies of the tokens of a text, in any order, to be drawn beside
            Zipf's law; tokens that never occur are left out. Without it the vocabulary has 50,257
            tokens, as GPT-2's.

    Raises:
        ValueError: if a frequency is negative or not finite, or if fewer than two are positive.
    """
    config: dict[str, Any] = {"exponent": 1.0, "tokens": 50257, "frequencies": None, "ratio": None}
    if frequencies is not None:
        values = np.asarray(frequencies, dtype=np.float64).ravel()
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("frequencies must be finite and not negative: give counts per token")
        values = np.sort(values[values > 0])[::-1]
        if len(values) < 2:
            raise ValueError(f"frequencies has {len(values)} positive entries; at least 2 needed")
        values = values / values.sum()
        ranks = np.unique(np.geomspace(1, len(values), 60).round().astype(int))
        config["tokens"] = len(values)
        config["frequencies"] = [[int(r), float(f"{values[r - 1]:.4g}")] for r in ranks]
        config["ratio"] = float(np.sqrt(values[0] / values[-1]))
    tokens = config["tokens"]
    smallest = min(float(tokens) ** -2 / 2, *(f for _, f in config["frequencies"] or [[1, 1.0]]))
    config["lowest"] = int(np.floor(np.log10(smallest)))
    default = (
        "Left, the frequency of each token by rank, a falling straight line on logarithmic axes. "
        "Right, the size of the step that each optimizer allows it: Adam's line rises by half the "
        "slope, so that the rarest token steps many times as far as the most frequent one; "
        "Coupled Adam and SGD have one flat line for all. Sliders set the skew and pick a rank."
    )
    return LiveFigure("step_size", config, alt or default)


def toy_updates(
    optimizers: Sequence[str] = ("sgd", "adamw"), trainings: int = 64, alt: str | None = None
) -> LiveFigure:
    """The updates of eight tokens in the plane at one step, laid head to tail, and their sum.

    Args:
        optimizers: one panel each, from ``"sgd"``, ``"adamw"`` and ``"coupled"``.
        trainings: over how many trainings the updates are averaged to begin with, a power of two
            up to 64; they differ in their batches only. 1 shows one batch.
        alt: text alternative, if the default does not fit the place.

    Raises:
        ValueError: if an optimizer is unknown, given twice, or none is given; if ``trainings`` is
            no place of the figure's knob.
    """
    chosen = tuple(optimizers)
    unknown = [name for name in chosen if name not in OPTIMIZERS]
    if unknown or not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"optimizers is {chosen}; choose from {OPTIMIZERS}, each at most once")
    places = [2**k for k in range(7)]
    if trainings not in places:
        raise ValueError(f"trainings is {trainings}; the figure's knob has {places}")
    ends = {
        "sgd": "With SGD the arrows close to a polygon at every step, and the sum is zero.",
        "adamw": "With Adam the six rare tokens step together against the mean hidden state, and "
        "the sum is as long as several single updates; it shrinks to almost nothing when all "
        "tokens are made equally frequent.",
        "coupled": "With Coupled Adam the arrows close to a polygon at every step.",
    }
    default = (
        "The updates of eight tokens, two frequent and six rare, at one training step, as arrows "
        "in the plane of which each begins where the last one ends; a broad arrow from the origin "
        "to the end is their sum. "
        + " ".join(ends[name] for name in chosen)
        + " Sliders set how rare the rare tokens are, the training step, and over how many "
        "trainings the updates are averaged."
    )
    config = {
        "optimizers": list(chosen),
        "halvings": 7,
        "doublings": places.index(trainings),
        "seed": 3,
    }
    return LiveFigure("toy_updates", config, alt or default)
