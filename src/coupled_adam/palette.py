"""How each arm looks and what it is called in every picture; read from ``arms``."""

from __future__ import annotations

from collections.abc import Iterable

from coupled_adam.arms import ARMS, GREY, Arm, arm

# For what is no arm; a third one is black.
NEUTRAL, ACCENT = "#4d4d4d", "#CC79A7"


def colour(name: str) -> str:
    """The colour of an arm, as #rrggbb.

    Raises:
        RefusedError: if there is no such arm, so that none is left out of a picture.
    """
    return arm(name).colour


def label(name: str) -> str:
    """What an arm is called.

    Raises:
        RefusedError: if there is no such arm.
    """
    return arm(name).label


def coloured() -> list[Arm]:
    """The arms that have a colour of their own, in the book's order.

    Live figures know these: with all the grey ones, each would carry twice as much.
    """
    return [one for one in ARMS.values() if one.colour != GREY]


def labels() -> dict[str, str]:
    """What every arm is called, by its name, in the book's order."""
    return {one.name: one.label for one in ARMS.values()}


def marker(name: str) -> str:
    """Matplotlib's marker of an arm.

    Raises:
        RefusedError: if there is no such arm.
    """
    return arm(name).marker


def in_order(names: Iterable[str]) -> list[str]:
    """The arms that occur among names, each once, in the book's order.

    Raises:
        RefusedError: if one of them is no arm.
    """
    there = {arm(name).name for name in names}
    return [name for name in ARMS if name in there]


def css(*, dark: bool = False) -> str:
    """Custom properties with the colours: ``--adamw: #D55E00;`` and so on, one line each.

    Args:
        dark: for a dark page.
    """
    return "\n".join(
        f"--{one.name}: {one.colour_on_dark or one.colour if dark else one.colour};"
        for one in coloured()
    )
