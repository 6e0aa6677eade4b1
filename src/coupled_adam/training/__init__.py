"""A configuration and a text in, a trained model with its run folder out."""

from coupled_adam.extras import needs

with needs("cli"):
    from coupled_adam.training.config import PRECISIONS, TrainingConfig, padded_vocabulary
    from coupled_adam.training.loop import (
        DivergedError,
        Run,
        Step,
        initial_embedding,
        load_run,
        train,
    )
    from coupled_adam.training.presets import PRESETS, commands, preset_config, small_config

__all__ = [
    "PRECISIONS",
    "PRESETS",
    "DivergedError",
    "Run",
    "Step",
    "TrainingConfig",
    "commands",
    "initial_embedding",
    "load_run",
    "padded_vocabulary",
    "preset_config",
    "small_config",
    "train",
]
