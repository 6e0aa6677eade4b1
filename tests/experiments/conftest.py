"""The text of the small run."""

import pytest
from small_run import VOCABULARY

from coupled_adam.text import synthetic


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return synthetic(VOCABULARY, tokens=10_240, cache=tmp_path_factory.mktemp("text"))
