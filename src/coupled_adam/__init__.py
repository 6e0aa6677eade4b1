"""Coupled Adam: an AdamW whose embedding groups share one second moment over the vocabulary."""

from coupled_adam.optim import CoupledAdamW, param_groups, transfer_state

__version__ = "0.1.0"

__all__ = ["CoupledAdamW", "__version__", "param_groups", "transfer_state"]
