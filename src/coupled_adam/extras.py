"""What to say when a part of the library is used whose packages are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

ADDRESS = "https://github.com/coupled-adam/coupled-adam"
# An installation without them is broken, and no extra mends it.
ALWAYS_THERE = ("coupled_adam", "numpy", "torch")


class MissingExtraError(ImportError):
    """A package is missing that comes with an extra of the library; the message names it."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of packages that the optimizer does without.

    ``pip install coupled-adam`` brings torch and numpy only. ``with needs("cli"): import pandas``
    says what to install, where the bare import would say that there is no module of that name.

    Args:
        extra: the extra of pyproject.toml that brings the packages: cli, book or streams.

    Raises:
        MissingExtraError: if one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in ALWAYS_THERE:
            raise
        raise MissingExtraError(
            f"This part of Coupled Adam needs {package}, which is not installed here. "
            f'It comes with: pip install "coupled-adam[{extra}] @ git+{ADDRESS}"',
            name=error.name,
        ) from None
