"""One run, watched step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from coupled_adam.evaluation import displacement_shares
from coupled_adam.gpt import GPT
from coupled_adam.text import Corpus
from coupled_adam.training import Step, TrainingConfig, initial_embedding, train


@dataclass
class Trajectory:
    """A run watched step by step: what the drift of its embeddings is made of.

    Attributes:
        config: of the run.
        learning_rates: shape [T].
        mean_embedding: mean output embedding before the first step and after each, [T + 1, H].
        mean_hidden: mean hidden state of each step's batch, [T, H].
        std_hidden: its standard deviation in each coordinate, [T, H].
        absent: share of the vocabulary that is not a target in the step, [T].
        embeddings: output embeddings [V, H] after selected steps; 0 is the start.
        second_moment: Adam's second moment of the output embeddings at the end, bias-corrected:
            [V, H], or [H] if coupled, or None under SGD.
        model: the trained model.
        metrics: as in ``training.Run``.
    """

    config: TrainingConfig
    learning_rates: np.ndarray
    mean_embedding: np.ndarray
    mean_hidden: np.ndarray
    std_hidden: np.ndarray
    absent: np.ndarray
    embeddings: dict[int, np.ndarray]
    second_moment: np.ndarray | None
    model: GPT
    metrics: pd.DataFrame

    @property
    def displacement(self) -> np.ndarray:
        """How far the mean embedding is from where it started, after each step, [T, H]."""
        return self.mean_embedding[1:] - self.mean_embedding[0]


def watch(
    config: TrainingConfig, corpus: Corpus, snapshots: Iterable[int] = (1, 20, 60, 120)
) -> Trajectory:
    """Train while keeping what the drift of the embeddings is made of.

    Args:
        config: the run.
        corpus: text to train on.
        snapshots: steps after which the whole embedding matrix is kept.

    Returns:
        The trajectory.
    """
    keep = set(snapshots)
    lists: dict[str, list[Any]] = {"rate": [], "mean": [], "hidden": [], "std": [], "absent": []}
    start = initial_embedding(config).double()
    embeddings = {0: start.numpy()}
    lists["mean"].append(start.mean(0).numpy())

    def observe(step: Step) -> None:
        weight = step.model.output_embedding.detach()
        lists["rate"].append(step.learning_rate)
        lists["mean"].append(weight.double().mean(0).numpy())
        lists["hidden"].append(step.hidden_states.mean(0).numpy())
        lists["std"].append(step.hidden_states.std(0).numpy())
        counts = torch.bincount(step.targets, minlength=len(weight))
        lists["absent"].append((counts == 0).double().mean().item())
        if step.number in keep:
            embeddings[step.number] = weight.double().numpy()

    run = train(config, corpus, observe=observe, progress=False)
    return Trajectory(
        config,
        np.array(lists["rate"]),
        np.array(lists["mean"]),
        np.array(lists["hidden"]),
        np.array(lists["std"]),
        np.array(lists["absent"]),
        embeddings,
        run.second_moment,
        run.model,
        run.metrics,
    )


def shares_by_step(trajectory: Trajectory, counts: np.ndarray, bins: int = 4) -> pd.DataFrame:
    """Who carries the mean embedding: each frequency class's part of the mean's displacement.

    Args:
        trajectory: with snapshots of the embeddings.
        counts: occurrences of each token in the training text, [V].
        bins: number of equally large classes, rarest first.

    Returns:
        One row per snapshot and class, with columns step, class (1 is the rarest) and share; the
        shares of a step add up to one.
    """
    start = trajectory.embeddings[0]
    rows = []
    for step, weight in trajectory.embeddings.items():
        if step == 0:
            continue
        shares = displacement_shares(start, weight, counts, bins)
        for number, share in enumerate(shares, start=1):
            rows.append({"step": step, "class": number, "share": share})
    return pd.DataFrame(rows)
