from __future__ import annotations

import random

import pytest

from coupled_adam.text import Corpus, wikipedia_sample


@pytest.fixture(scope="session")
def wikipedia_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("wikipedia")


@pytest.fixture(scope="session")
def wikipedia(wikipedia_cache) -> Corpus:
    return wikipedia_sample(cache=wikipedia_cache)


def prose(words: int, seed: int = 0) -> str:
    """Pronounceable nonsense in lines, with enough repetition for a BPE of some hundred tokens."""
    rng = random.Random(seed)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    lines = [" ".join(rng.choices(lexicon, k=12)) for _ in range(words // 12)]
    return "\n".join(lines)


@pytest.fixture(scope="session")
def text() -> str:
    return prose(6000)


@pytest.fixture
def text_file(tmp_path, text):
    path = tmp_path / "nonsense.txt"
    path.write_text(text, encoding="utf-8")
    return path
