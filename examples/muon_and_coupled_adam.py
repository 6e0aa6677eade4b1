"""Muon for the matrices of the blocks, Coupled Adam for the embeddings, Adam for the rest.

    python examples/muon_and_coupled_adam.py

trains a small GPT on random tokens for a few steps. Needs torch 2.9 or later, for torch.optim.Muon.
"""

import torch

from coupled_adam import CoupledAdamW, param_groups
from coupled_adam.gpt import GPT, GPTConfig


# [adopt]
def make_optimizers(model, lr=6e-4, weight_decay=0.1):
    blocks = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
    groups = param_groups(model, weight_decay)
    muon = [p for group in groups for p in group["params"] if id(p) in blocks]
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in blocks]
    groups = [group for group in groups if group["params"]]
    return (
        torch.optim.Muon(muon, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        CoupledAdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True),
    )


# [/adopt]


def small_model_and_data(length=16, sequences=8):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary_size=96, context=length, width=32, layers=1, heads=2))
    return model, torch.randint(96, (sequences, length + 1))


def train(model, tokens, optimizers, steps):
    losses = []
    for _ in range(steps):
        loss = model(tokens[:, :-1], tokens[:, 1:])
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    model, tokens = small_model_and_data()
    print(train(model, tokens, make_optimizers(model), steps=8))
