"""Configurations by name: the small GPT of the chapters, and the paper's runs at GPT-2 scale."""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

from coupled_adam.errors import RefusedError
from coupled_adam.gpt import GPTConfig
from coupled_adam.text import Corpus
from coupled_adam.training.config import TrainingConfig, padded_vocabulary

CONTEXT = 1024
BATCH_SIZE = 96  # sequences, so that a step sees 98,304 tokens


class _Preset(NamedTuple):
    layers: int
    heads: int
    width: int
    learning_rate: float
    accumulation: int  # few, for speed; what a piece keeps for its backward pass is about 25 GB


PRESETS = {
    "gpt2-124m": _Preset(12, 12, 768, 6e-4, 2),
    "gpt2-355m": _Preset(24, 16, 1024, 3e-4, 4),
    "gpt2-774m": _Preset(36, 20, 1280, 2.5e-4, 8),
}

# The tasks of the paper's Acc, as lm-eval names them.
ACCURACY_TASKS = (
    "arc_easy",
    "arc_challenge",
    "hellaswag",
    "lambada_openai",
    "race",
    "truthfulqa_mc2",
    "winogrande",
)


def small_config(corpus: Corpus, **changes: Any) -> TrainingConfig:
    """The small GPT of the chapters: two layers of width 128, half a minute on a laptop.

    Args:
        corpus: gives the size of the vocabulary.
        changes: fields of ``TrainingConfig`` to set otherwise.

    Returns:
        A configuration: 200 steps of 512 tokens, peak learning rate 1e-3 after 20 steps of
        warm-up, and for the rest the paper's recipe.
    """
    values: dict[str, Any] = {
        "model": GPTConfig(vocabulary_size=corpus.vocabulary_size, context=128),
        "steps": 200,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 20,
        "evaluate_every": 50,
        "evaluation_tokens": 8192,
        "checkpoint_every": 200,
    }
    return TrainingConfig(**{**values, **changes})


def preset_config(name: str, vocabulary_size: int, **changes: Any) -> TrainingConfig:
    """The paper's recipe (Stollenwerk and Stollenwerk, 2025) for one of its models.

    Steps of 96 sequences of 1,024 tokens; AdamW with betas (0.9, 0.95); 100 steps of warm-up to a
    peak that depends on the size, then a cosine to a tenth; weight decay 0.1 on matrices, none on
    vectors and embeddings; gradients clipped at 1.0. Compiled, in bfloat16.

    The vocabulary is padded to a multiple of 64. The padding rows enter the mean of Coupled Adam's
    second moment and raise its step size by the root of (rows / tokens): 0.05 % for the 47 rows
    that GPT-2's 50,257 tokens get, as in the paper; at most 0.8 % from 4,096 tokens on.

    Args:
        name: "gpt2-124m", "gpt2-355m" or "gpt2-774m".
        vocabulary_size: number of tokens of the corpus.
        changes: fields of ``TrainingConfig`` to set otherwise. Without ``steps`` the run is the
            paper's tiny test: 1,000 steps, 98 million tokens.

    Returns:
        A configuration.

    Raises:
        RefusedError: for an unknown name, or an impossible value in ``changes``.
    """
    if name not in PRESETS:
        raise RefusedError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    model = GPTConfig(
        padded_vocabulary(vocabulary_size), CONTEXT, preset.layers, preset.heads, preset.width
    )
    values: dict[str, Any] = {
        "model": model,
        "steps": 1000,
        "batch_size": BATCH_SIZE,
        "learning_rate": preset.learning_rate,
        "accumulation": preset.accumulation,
        "evaluate_every": 250,
        "evaluation_tokens": 1 << 20,
        "checkpoint_every": 250,
        "precision": "bfloat16",
        "compiled": True,
    }
    return TrainingConfig(**{**values, **changes})


def commands(name: str, optimizer: str, seed: int, text: str) -> dict[str, str]:
    """The command lines of the paper's tiny test, from a text to scores, on one GPU.

    Args:
        name: of the preset.
        optimizer: "adamw", "coupled" or "sgd".
        seed: of the run.
        text: a file or folder of plain text, or the name of a streamed collection.

    Returns:
        In this order: ``prepare`` (once for all runs on the text), ``train`` (again after an
        interruption), ``evaluate`` (writes the record), ``export``, and ``lm_eval`` (the tasks
        of the paper's accuracy; it downloads them).

    Raises:
        RefusedError: for an unknown preset.
    """
    if name not in PRESETS:
        raise RefusedError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    run, source = f"{name}-{optimizer}-{seed}", shlex.quote(text)
    return {
        "prepare": f"coupled-adam prepare {source}",
        "train": f"coupled-adam train --text {source} --preset {name} --optimizer {optimizer} "
        f"--seed {seed} --out runs/{run}",
        "evaluate": f"coupled-adam evaluate runs/{run} --text {source} --out {run}.json",
        "export": f"coupled-adam export runs/{run} hf/{run}",
        "lm_eval": f"lm_eval --model hf --model_args pretrained=hf/{run} "
        f"--tasks {','.join(ACCURACY_TASKS)}",
    }
