"""Plain text to tokens: where text comes from, and token files that several processes can share."""

from coupled_adam.extras import needs

with needs("cli"):
    from coupled_adam.text.corpus import END_OF_TEXT, Corpus, TextError
    from coupled_adam.text.languages import synthetic
    from coupled_adam.text.sources import load, wikipedia_sample
    from coupled_adam.text.streams import collection, stream

__all__ = [
    "END_OF_TEXT",
    "Corpus",
    "TextError",
    "collection",
    "load",
    "stream",
    "synthetic",
    "wikipedia_sample",
]
