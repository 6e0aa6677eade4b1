"""Coupled Adam: an AdamW whose embedding groups share one second moment over the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coupled_adam.optim import CoupledAdamW, param_groups, transfer_state

__version__ = "0.1.0"

__all__ = ["CoupledAdamW", "__version__", "param_groups", "transfer_state"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: figures and theory work without the seconds that torch takes.
    if name in __all__:
        from coupled_adam import optim

        return getattr(optim, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
