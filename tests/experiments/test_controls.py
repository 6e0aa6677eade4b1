"""A control that costs nothing: where the cloud lies cannot be what makes a loss lower.

With an untied head all logits of a position shift alike if the mean row is taken away, so softmax,
loss, gradients, moments and clipping stay as they were: centring after every step must change
nothing but the mean (the control of mu-centring, arXiv 2601.02031).
"""

import numpy as np
import torch

from coupled_adam import CoupledAdamW, param_groups
from coupled_adam.gpt import GPT, GPTConfig

STEPS = 60


def trained(*, centre: bool, tied: bool, coupled: bool = False) -> tuple[np.ndarray, torch.Tensor]:
    """Losses of some steps with clipping and decay in float64, and the output embeddings."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(60, context=8, layers=1, heads=2, width=16, tied=tied)).double()
    groups = param_groups(model, weight_decay=0.1)
    for group in groups:
        group["coupled"] = group["coupled"] and coupled
        group["weight_decay"] = 0.1
    optimizer = CoupledAdamW(groups, lr=0.01, betas=(0.9, 0.95))
    random = torch.Generator().manual_seed(1)
    ranks = torch.arange(1, 61).double()
    losses = []
    for _ in range(STEPS):
        tokens = torch.multinomial(1 / ranks, 4 * 9, replacement=True, generator=random).view(4, 9)
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if centre:
            with torch.no_grad():
                model.output_embedding.sub_(model.output_embedding.mean(dim=0))
        losses.append(loss.item())
    return np.array(losses), model.output_embedding.detach()


def relative_mean_norm(rows: torch.Tensor) -> float:
    return (rows.mean(dim=0).norm() / rows.norm(dim=1).mean()).item()


def test_centring_an_untied_head_changes_nothing_but_the_mean():
    plain, moved = trained(centre=False, tied=False)
    centred, stayed = trained(centre=True, tied=False)
    np.testing.assert_allclose(centred, plain, rtol=0, atol=1e-12)
    assert relative_mean_norm(moved) > 0.1  # there was something to take away
    assert relative_mean_norm(stayed) < 1e-14
    torch.testing.assert_close(moved - moved.mean(dim=0), stayed, rtol=0, atol=1e-12)


def test_centring_a_tied_table_changes_the_training():
    """The control can fail: a tied table is read at the input too."""
    plain, _ = trained(centre=False, tied=True)
    centred, _ = trained(centre=True, tied=True)
    assert np.abs(centred - plain).max() > 1e-4


def test_coupling_changes_the_training():
    """It changes the steps, and not only where the cloud lies."""
    plain, _ = trained(centre=False, tied=False)
    coupled, _ = trained(centre=False, tied=False, coupled=True)
    assert np.abs(coupled - plain).max() > 1e-4
