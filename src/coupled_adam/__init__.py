"""Coupled Adam: an AdamW whose embedding groups share one second moment over the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coupled_adam.optim import CoupledAdamW, param_groups, transfer_state

__version__ = "0.1.0"

__all__ = ["CoupledAdamW", "__version__", "param_groups", "transfer_state"]


def __getattr__(name: str) -> Any:
    # Only when asked for: pictures, live figures and the theory do not load torch.
    if name in ("CoupledAdamW", "param_groups", "transfer_state"):
        import coupled_adam.optim

        return getattr(coupled_adam.optim, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
