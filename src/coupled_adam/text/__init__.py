"""Plain text to tokens: where text comes from, and token files that several processes can share."""

from coupled_adam.text.corpus import END_OF_TEXT, Corpus, TextError
from coupled_adam.text.languages import synthetic
from coupled_adam.text.sources import load, wikipedia_sample

__all__ = ["END_OF_TEXT", "Corpus", "TextError", "load", "synthetic", "wikipedia_sample"]
