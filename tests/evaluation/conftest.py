"""A small run on a text of made-up words, for all measures."""

import numpy as np
import pytest

from coupled_adam import text
from coupled_adam.evaluation import evaluate
from coupled_adam.gpt import GPTConfig
from coupled_adam.training import TrainingConfig, padded_vocabulary, train

VOCABULARY, LENGTH = 400, 16
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
# Common words twice as often as all others together, so that they are tokens of their own.
COMMON = ["cat", "dog", "house", "tree", "stone", "water", "bird", "fish"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    chosen = random.choice([*WORDS, *COMMON], 30_000, p=[1 / 450] * 150 + [1 / 12] * 8)
    (folder / "words.txt").write_text(" ".join(chosen))
    return text.load(folder / "words.txt", VOCABULARY, cache=folder / "cache")


@pytest.fixture(scope="session")
def config():
    return TrainingConfig(
        GPTConfig(padded_vocabulary(VOCABULARY), LENGTH, layers=1, heads=2, width=32),
        optimizer="adamw",
        steps=12,
        batch_size=4,
        warmup_steps=2,
        learning_rate=1e-2,
        evaluate_every=6,
        evaluation_tokens=700,
    )


@pytest.fixture(scope="session")
def run(corpus, config, tmp_path_factory):
    return train(config, corpus, tmp_path_factory.mktemp("run") / "run", progress=False)


@pytest.fixture(scope="session")
def measured(run, corpus):
    return evaluate(run.folder, corpus)
