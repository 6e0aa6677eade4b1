"""The long table: every measure of a run as rows of one shape, also those that were not taken."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

# What a measure was taken of: the vectors of the run, or what they stand beside.
TRAINED, UNTRAINED, CENTRED, TOP_REMOVED = "trained", "untrained", "centred", "all-but-the-top"
TF_IDF, UNIGRAM, BIGRAM = "tf-idf", "unigram", "bigram"


class Measure(NamedTuple):
    """One row of the table.

    Attributes:
        measure: what was measured, such as ``retrieval``.
        set: on what: the name of a file, a class of frequencies, a direction; "" if there is only
            one possibility.
        variant: of what: ``trained``, the vectors or the model of the run; the baseline
            ``untrained``, where it began; ``centred`` and ``all-but-the-top``, the trained vectors
            after these repairs; ``tf-idf``, of texts without any vectors; ``unigram`` and
            ``bigram``, the counts of the training text.
        value: the measure, in its own unit; NaN if it could not be taken, and ``note`` says why.
        low: lower end of the 95 % interval over what was sampled (documents, queries, pairs; not
            seeds, of which a run has one); NaN where nothing was sampled, or all of it is equal.
        high: its upper end.
        n: how much was sampled, or how much there was if that was too little.
        chance: what the measure gives on average to who knows nothing; NaN if that says nothing.
        note: in words, what else must be known; "" normally.
    """

    measure: str
    set: str
    variant: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    chance: float = math.nan
    note: str = ""


def not_taken(measure: str, set: str, note: str, n: int = 0, variant: str = TRAINED) -> Measure:
    """The row of a measure that could not be taken.

    Args:
        measure: what would have been measured.
        set: on what.
        note: why it was not, for example ``too_few(41, 100, "pairs")``.
        n: how much there was.
        variant: of what.
    """
    return Measure(measure, set, variant, math.nan, n=n, note=note)


def class_name(low: float, high: float) -> str:
    """What the table calls a class of token frequencies."""
    return f"{low:g} to {high:g}"


def too_few(found: int, needed: int, what: str) -> str:
    """The note of a measure that had too little to be taken on."""
    return f"too few: {found:,} of at least {needed:,} {what}"


def long_table(rows: Iterable[Measure]) -> pd.DataFrame:
    """The rows as a table whose columns are the fields of ``Measure``.

    Args:
        rows: in the order of the table.

    Returns:
        One row a measure, ``n`` whole numbers, ``value``, ``low``, ``high`` and ``chance`` floats.

    Raises:
        ValueError: if two rows have the same measure, set and variant, or one has no value and
            does not say why.
    """
    table = pd.DataFrame([*rows], columns=[*Measure._fields])
    numbers = {"value": float, "low": float, "high": float, "n": int, "chance": float}
    table = table.astype(numbers)
    keys = table[["measure", "set", "variant"]]
    if keys.duplicated().any():
        raise ValueError(f"two rows of the table are {tuple(keys[keys.duplicated()].iloc[0])}")
    silent = table[table["value"].isna() & (table["note"] == "")]
    if len(silent):
        raise ValueError(f"{tuple(silent.iloc[0, :3])} has no value, and no note says why")
    return table
