"""A run that takes a moment: six steps on a language of 200 words."""

from coupled_adam.gpt import GPTConfig
from coupled_adam.training import TrainingConfig

VOCABULARY, STEPS = 200, 6
MODEL = GPTConfig(VOCABULARY, context=8, layers=1, heads=2, width=16)
# What a declared setting changes to be as small.
SETTINGS = {"model": MODEL, "batch_size": 4, "learning_rate": 1e-2, "evaluation_tokens": 64}
CONFIG = TrainingConfig(
    MODEL,
    steps=STEPS,
    batch_size=3,
    learning_rate=1e-2,
    warmup_steps=2,
    evaluate_every=4,
    evaluation_tokens=64,
)
