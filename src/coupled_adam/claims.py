"""Claims that are measured where they are stated, and stop the notebook when they fail."""

from __future__ import annotations

import html
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

MIME_TYPE = "application/vnd.coupled-adam.claim+json"


class ClaimError(AssertionError):
    """A statement of the book is not true of what was measured."""


@dataclass(frozen=True)
class Claim:
    """One statement of fact with its threshold and what this run measured.

    Attributes:
        statement: the sentence, as the reader sees it.
        measured: the number that was measured.
        at_least: the claim holds if ``measured >= at_least``; None if there is no such bound.
        at_most: the claim holds if ``measured <= at_most``; None if there is no such bound.
    """

    statement: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the measured number keeps to every bound; NaN never does."""
        if math.isnan(self.measured):
            return False
        above = self.at_least is None or self.measured >= self.at_least
        below = self.at_most is None or self.measured <= self.at_most
        return above and below

    @property
    def anchor(self) -> str:
        """The name under which the claim's line can be linked to on its page."""
        return "claim-" + re.sub(r"[^a-z0-9]+", "-", self.statement.lower()).strip("-")

    @property
    def threshold(self) -> str:
        """The bounds in words, for example ``at least 0.90``."""
        bounds = [("at least", self.at_least), ("at most", self.at_most)]
        return " and ".join(f"{word} {_number(b)}" for word, b in bounds if b is not None)

    @property
    def value(self) -> str:
        """The measured number as the reader sees it, for example ``0.97``."""
        return _number(self.measured)

    def __str__(self) -> str:
        """The line that is printed under the cell."""
        mark = "✓" if self.holds else "✗"
        return f"{mark} {self.statement}: {self.value} ({self.threshold})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        line = html.escape(str(self))
        return {
            "text/plain": str(self),
            "text/html": f'<p class="claim" id="{self.anchor}">{line}</p>',
            MIME_TYPE: {**asdict(self), "holds": self.holds, "anchor": self.anchor},
        }


def claim(
    statement: str,
    measured: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """State a fact beside its measurement; show it, or stop with an error if it is not so.

    The result is shown as one line under the cell, and stays in the notebook's outputs in a form
    that the book's ledger collects.

    Args:
        statement: the fact as a sentence without its number, unique within a chapter.
        measured: what this run measured, as a single finite number.
        at_least: smallest value with which the statement is true.
        at_most: largest value with which the statement is true.

    Raises:
        ValueError: if neither bound is given; such a claim could not fail.
        ClaimError: if the measured number is outside its bounds or is not a number.
    """
    if at_least is None and at_most is None:
        raise ValueError(f"claim {statement!r} has no bound: give at_least=, at_most=, or both")
    result = Claim(statement, float(measured), at_least, at_most)
    if not result.holds:
        raise ClaimError(str(result))
    _show(result)


def _show(result: Claim) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(result)
    else:
        display(result)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    head, power = f"{value:.1e}".split("e")
    return f"{head.removesuffix('.0')}e{int(power)}"
