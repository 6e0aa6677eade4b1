"""The optimizer: Coupled Adam as a superset of ``torch.optim.AdamW``."""

from coupled_adam.optim.coupled_adamw import CoupledAdamW
from coupled_adam.optim.groups import param_groups

__all__ = ["CoupledAdamW", "param_groups"]
