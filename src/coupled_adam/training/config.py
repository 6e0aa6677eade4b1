"""What a run is: model, recipe and seed, checked when they are put together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from coupled_adam.arms import ARMS
from coupled_adam.errors import RefusedError
from coupled_adam.gpt import GPTConfig

PRECISIONS = ("float32", "bfloat16")
_PADDING = 64  # a vocabulary may be padded to a multiple of this, which GPUs multiply faster

# How a run is computed, not what: like the number of processes, this may change on the way.
CHANGEABLE = ("accumulation", "compiled")

# Settings that came later, with a default that means what was done before: run folders and records
# from before do not name them.
_ADDED = (
    "accumulation",
    "precision",
    "compiled",
    "embedding_multiplier",
    "embedding_betas",
    "embedding_eps",
    "embedding_weight_decay",
)

_AT_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "seed": 0,
    "evaluate_every": 1,
    "evaluation_tokens": 1,
    "checkpoint_every": 1,
    "accumulation": 1,
}


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides how a run goes; the defaults are the paper's recipe.

    (Stollenwerk and Stollenwerk, 2025, for 125 million parameters; steps and batch are small.)

    Attributes:
        model: the shape of the model.
        optimizer: of the embedding matrix: the name of an arm, such as "adamw", "coupled" or
            "sgd". All other parameters are trained by AdamW in every case.
        steps: number of optimizer steps.
        batch_size: sequences in a step; a step sees batch_size x context tokens.
        learning_rate: the peak, reached after the warm-up.
        embedding_multiplier: the embeddings' learning rate as a multiple of ``learning_rate``;
            None for the arm's own, which is 300 for "sgd" and 1 for all others.
        embedding_betas: the embeddings' own decay rates, each in [0, 1); None for the arm's own,
            and where it has none, for ``betas``.
        embedding_eps: the embeddings' own epsilon, at least 0; None likewise.
        embedding_weight_decay: the embeddings' own, at least 0; None for the arm's own, and where
            it has none, for 0.
        warmup_steps: steps of linear warm-up from 0.
        final_share: the cosine ends at this share of the peak, in [0, 1].
        betas: decay rates of Adam's moments, each in [0, 1).
        eps: Adam's epsilon, at least 0.
        weight_decay: on matrices, not on the token embeddings and not on vectors; at least 0.
        gradient_clip: largest global gradient norm.
        seed: of the initial weights and the order of the batches.
        evaluate_every: steps between two measurements on the validation text.
        evaluation_tokens: about how many validation tokens are used for one measurement.
        checkpoint_every: steps between two checkpoints.
        accumulation: pieces that a step's batch is computed in, one after another, to save memory;
            the gradient is that of the whole batch. Several processes share the pieces.
        precision: "float32", or "bfloat16" to compute forward pass and loss under autocast;
            weights and optimizer state are float32 in both cases.
        compiled: compile the model with ``torch.compile``.
    """

    model: GPTConfig
    optimizer: str = "coupled"
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 6e-4
    embedding_multiplier: float | None = None
    embedding_betas: tuple[float, float] | None = None
    embedding_eps: float | None = None
    embedding_weight_decay: float | None = None
    warmup_steps: int = 100
    final_share: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 100
    evaluation_tokens: int = 16_384
    checkpoint_every: int = 100
    accumulation: int = 1
    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.optimizer not in ARMS:
            self._refuse("optimizer", f"one of {tuple(ARMS)}")
        if self.precision not in PRECISIONS:
            self._refuse("precision", f"one of {PRECISIONS}")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < least:
                self._refuse(name, f"a whole number from {least}")
        for name in ("learning_rate", "gradient_clip", "embedding_multiplier"):
            value = getattr(self, name)
            if not (name == "embedding_multiplier" and value is None) and not 0 < value < math.inf:
                self._refuse(name, "positive and finite")
        for name in ("eps", "weight_decay", "embedding_eps", "embedding_weight_decay"):
            value = getattr(self, name)
            if not (name.startswith("embedding") and value is None) and not 0 <= value < math.inf:
                self._refuse(name, "finite and at least 0")
        if not 0 <= self.final_share <= 1:
            self._refuse("final_share", "in [0, 1]")
        for name in ("betas", "embedding_betas"):
            betas = getattr(self, name)
            if name == "embedding_betas" and betas is None:
                continue
            if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
                self._refuse(name, "two numbers in [0, 1)")
        own = [name for name, value in self.embedding_settings.items() if value is not None]
        if own and ARMS[self.optimizer].optimizer is not None:
            raise RefusedError(
                f"the embeddings of {self.optimizer!r} have an optimizer of their own, which takes "
                f"no {', '.join(own)}: leave out TrainingConfig.embedding_{own[0]}"
            )
        if self.batch_size % self.accumulation:
            raise RefusedError(
                f"TrainingConfig.accumulation ({self.accumulation}) must divide batch_size "
                f"({self.batch_size}): a step's batch is computed in equal pieces"
            )

    def _refuse(self, name: str, wanted: str) -> None:
        raise RefusedError(f"TrainingConfig.{name} must be {wanted}, not {getattr(self, name)!r}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1: linear warm-up, then half a cosine."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)

    @property
    def embedding_settings(self) -> dict[str, Any]:
        """What the embeddings' group is told beside the arm's own; None where nothing is set."""
        return {
            "betas": self.embedding_betas,
            "eps": self.embedding_eps,
            "weight_decay": self.embedding_weight_decay,
        }

    @property
    def step_tokens(self) -> int:
        """The tokens that one step sees, over all processes."""
        return self.batch_size * self.model.context

    def to_json(self) -> dict[str, Any]:
        """The configuration as a JSON object, which :meth:`from_json` reads."""
        # Through text, which turns NumPy's numbers and tuples into what JSON has for them.
        values = json.loads(json.dumps(asdict(self), default=lambda number: number.item()))
        for field in fields(self):
            value = values[field.name]
            # 1 and 1.0 are one configuration, and get one name. A sweep once made 24 runs again
            # because its multipliers were whole numbers the second time.
            if "float" in str(field.type) and value is not None:
                values[field.name] = (
                    [float(one) for one in value] if isinstance(value, list) else float(value)
                )
        return values

    def decisive(self) -> dict[str, Any]:
        """What decides how the run goes, as a JSON object.

        How it is computed is left out, and so are settings that came later and have their default:
        or every new setting would give all finished runs of a sweep another name.
        """
        return {
            name: value
            for name, value in self.to_json().items()
            if name not in CHANGEABLE
            and not (name in _ADDED and value == getattr(type(self), name))
        }

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], where: str = "the configuration"
    ) -> TrainingConfig:
        """The configuration that :meth:`to_json` wrote, as in run folders and records.

        Settings that are younger than some folders get their defaults.

        Args:
            values: the object.
            where: what it was read from, for messages.

        Raises:
            RefusedError: if it lacks fields or has unknown ones, all of which the message names,
                or if a value cannot be meant.
        """
        values = {name: getattr(cls, name) for name in _ADDED} | dict(values)
        _check_fields(cls, values, where)
        if not isinstance(values["model"], Mapping):
            raise RefusedError(f"{where}: model is {values['model']!r}, not the shape of a model")
        _check_fields(GPTConfig, values["model"], f"{where}, model")
        try:
            model = GPTConfig(**values["model"])
            for name in ("betas", "embedding_betas"):
                values[name] = None if values[name] is None else tuple(values[name])
            return cls(**{**values, "model": model})
        except (TypeError, ValueError) as error:  # a text where a number should be, for example
            raise RefusedError(f"{where}: {error}") from error


def _check_fields(cls: type, values: Mapping[str, Any], where: str) -> None:
    known = [field.name for field in fields(cls)]
    complaints = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("lacks", [name for name in known if name not in values]),
            ("has the unknown", [name for name in values if name not in known]),
        )
        if names
    ]
    if complaints:
        raise RefusedError(
            f"{where} {' and '.join(complaints)}: it was written by another version of this "
            "library, or changed by hand"
        )


def padded_vocabulary(size: int) -> int:
    """A vocabulary size rounded up to a multiple of 64: 50,257 becomes GPT-2's usual 50,304."""
    return math.ceil(size / _PADDING) * _PADDING
