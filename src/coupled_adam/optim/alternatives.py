"""The other ways to step a table of embeddings, one line apart: what Coupled Adam stands beside.

For research on one device, in PyTorch's operations: clear, not fast. What is meant for real runs is
``coupled_adam.CoupledAdamW``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from coupled_adam.errors import RefusedError

SHARES = ("none", "width", "vocabulary", "all", "factored", "sign")


class SharedAdam(torch.optim.Optimizer):
    """Adam for tables of V tokens and H columns, its second moment shared over a chosen axis.

    The choices, the second moment of entry (i, j) in each, and who does it:

    - ``none``: v_ij. Adam (Kingma and Ba, 2015).
    - ``width``: the mean of v over j. Adam-mini on embeddings and head (Zhang et al., 2024).
    - ``vocabulary``: the mean of v over i. Coupled Adam (Stollenwerk and Stollenwerk, 2025).
    - ``all``: the mean over i and j, one number for the whole table.
    - ``factored``: r_i c_j / mean of r, with r and c the means over j and over i. Adafactor
      (Shazeer and Stern, 2018).
    - ``sign``: none; steps are signs of the first moment. Signum (Bernstein et al., 2018).

    Args:
        params: matrices [V, H], rows are tokens.
        lr: learning rate, at least 0.
        betas: decay rates of both moments, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: decoupled (Loshchilov and Hutter, 2019), at least 0.
        share: one of ``SHARES``.
        own: exponent a in [0, 1] of v_ij^a w_ij^(1 - a), where w is the shared moment: 0 for the
            shared one, 1 for Adam's own; between them it interpolates.
        floor: the second moment is at least this share of its mean over i, at least 0.
        bias_correction: of both moments.
        centre: take the mean over the tokens out of every update.

    Raises:
        RefusedError: if an argument is outside its range, or a parameter is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        share: str = "none",
        own: float = 0.0,
        floor: float = 0.0,
        bias_correction: bool = True,
        centre: bool = False,
    ) -> None:
        ranges = {
            "lr": lr >= 0, "betas": all(0 <= beta < 1 for beta in betas), "eps": eps >= 0,
            "weight_decay": weight_decay >= 0, "share": share in SHARES, "own": 0 <= own <= 1,
            "floor": floor >= 0,
        }  # fmt: skip
        given = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
                 "share": share, "own": own, "floor": floor}  # fmt: skip
        for name, inside in ranges.items():
            if not inside:
                wanted = f"one of {SHARES}" if name == "share" else "in its range"
                raise RefusedError(f"SharedAdam: {name} must be {wanted}, not {given[name]!r}")
        super().__init__(params, given | {"bias_correction": bias_correction, "centre": centre})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise RefusedError(
                        f"SharedAdam steps matrices [tokens, width], not a parameter of shape "
                        f"{tuple(parameter.shape)}"
                    )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every matrix that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RefusedError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._step_table(table, table.grad, group)
        return loss

    def _step_table(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if gradient.is_sparse:
            raise RefusedError("SharedAdam needs dense gradients: set sparse=False in the table")
        state = self.state[table]
        if not state:
            # A tensor as in torch.optim: who reads the state of any optimizer expects one.
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(table)
            if group["share"] != "sign":
                state["exp_avg_sq"] = torch.zeros_like(table)
        state["step"] += 1
        steps = state["step"].item()
        beta1, beta2 = group["betas"]
        first = state["exp_avg"].lerp_(gradient, 1 - beta1)
        if group["share"] == "sign":
            update = first.sign()
        else:
            second = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
            correction = 1 - beta2**steps if group["bias_correction"] else 1.0
            root = (_used(second, group) / correction).sqrt_().add_(group["eps"])
            correction = 1 - beta1**steps if group["bias_correction"] else 1.0
            update = first / correction / root
        if group["centre"]:
            update = update - update.mean(dim=0)
        table.mul_(1 - group["lr"] * group["weight_decay"])
        table.sub_(update, alpha=group["lr"])


def shared(second: Tensor, share: str) -> Tensor:
    """The second moment as it is shared.

    Args:
        second: v, [V, H], not negative.
        share: one of ``SHARES`` but "sign".

    Returns:
        The moment that every entry uses, of a shape that broadcasts to [V, H].
    """
    if share == "width":
        return second.mean(dim=1, keepdim=True)
    if share == "vocabulary":
        return second.mean(dim=0, keepdim=True)
    if share == "all":
        return second.mean(dim=(0, 1), keepdim=True)
    if share == "factored":
        rows, columns = second.mean(dim=1, keepdim=True), second.mean(dim=0, keepdim=True)
        # At the first step of a table that nothing has reached all are zero, and so is v.
        return rows * columns / rows.mean().clamp(min=torch.finfo(rows.dtype).tiny)
    return second


def _used(second: Tensor, group: dict[str, Any]) -> Tensor:
    used = shared(second, group["share"])
    if group["own"]:
        used = second.pow(group["own"]) * used.pow(1 - group["own"])
    if group["floor"]:
        used = torch.maximum(used, shared(second, "vocabulary") * group["floor"])
    return used
