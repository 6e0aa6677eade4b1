"""The optimizer: Coupled Adam as a superset of ``torch.optim.AdamW``."""

from coupled_adam.optim.coupled_adamw import CoupledAdamW
from coupled_adam.optim.groups import param_groups
from coupled_adam.optim.transfer import transfer_state

__all__ = ["CoupledAdamW", "param_groups", "transfer_state"]
