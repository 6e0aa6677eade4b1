"""The paper's runs at GPT-2 scale, as configurations."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from coupled_adam.gpt import GPTConfig
from coupled_adam.training import TrainingConfig, padded_vocabulary

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


def preset_config(name: str, vocabulary_size: int, **changes: object) -> TrainingConfig:
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
        ValueError: for an unknown name, or an impossible value in ``changes``.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    model = GPTConfig(
        padded_vocabulary(vocabulary_size), CONTEXT, preset.layers, preset.heads, preset.width
    )
    values = {
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
        ValueError: for an unknown preset.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
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
