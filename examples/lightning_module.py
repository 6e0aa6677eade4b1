"""Coupled Adam in Lightning: return it from configure_optimizers.

    python examples/lightning_module.py

trains a small GPT on random tokens for a few steps. Needs lightning.
"""

import lightning
import torch

from coupled_adam import CoupledAdamW, param_groups
from coupled_adam.gpt import GPT, GPTConfig


class LanguageModel(lightning.LightningModule):
    def __init__(self, model, steps=8):
        super().__init__()
        self.model, self.steps = model, steps

    def training_step(self, batch, _):
        (tokens,) = batch
        return self.model(tokens[:, :-1], tokens[:, 1:])

    # [adopt]
    def configure_optimizers(self):
        groups = param_groups(self.model, weight_decay=0.1)
        optimizer = CoupledAdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    # [/adopt]


def small_model_and_data(length=16, sequences=32):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary_size=96, context=length, width=32, layers=1, heads=2))
    tokens = torch.randint(96, (sequences, length + 1))
    return model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens), 4)


if __name__ == "__main__":
    model, data = small_model_and_data()
    lightning.Trainer(max_steps=8, accelerator="cpu", logger=False).fit(LanguageModel(model), data)
