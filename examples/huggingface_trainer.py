"""Coupled Adam in the Trainer of Hugging Face: make the optimizer and hand it over.

    python examples/huggingface_trainer.py

trains a small GPT-2 on random tokens for a few steps. Needs transformers and accelerate.
"""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from coupled_adam import CoupledAdamW, param_groups, transfer_state


def make_trainer(model, dataset, folder, **options):
    arguments = TrainingArguments(
        str(folder), learning_rate=6e-4, lr_scheduler_type="cosine", warmup_steps=2, **options
    )
    # [adopt]
    groups = param_groups(model, weight_decay=0.1)
    optimizer = CoupledAdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95), fused=True)
    return Trainer(model, arguments, train_dataset=dataset, optimizers=(optimizer, None))
    # [/adopt]


# [resume]
def change_over(trainer, folder):
    """Let a checkpoint that the Trainer wrote with its own AdamW resume with Coupled Adam."""
    optimizer, folder = trainer.optimizer, Path(folder)
    old = Trainer(trainer.model, trainer.args).create_optimizer()  # as the run made it
    old.load_state_dict(torch.load(folder / "optimizer.pt"))
    transfer_state(old, optimizer)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    # The scheduler keeps lists with an entry for each group, and there are other groups now.
    schedule = torch.load(folder / "scheduler.pt")
    for name, entries in schedule.items():
        if isinstance(entries, list):
            schedule[name] = entries[:1] * len(optimizer.param_groups)
    torch.save(schedule, folder / "scheduler.pt")


# [/resume]


def small_model_and_data(length=16, sequences=64):
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=96, n_positions=length, n_embd=32, n_layer=1, n_head=2)
    tokens = torch.randint(96, (sequences, length))
    return GPT2LMHeadModel(shape), [{"input_ids": row, "labels": row} for row in tokens]


if __name__ == "__main__":
    model, data = small_model_and_data()
    make_trainer(model, data, Path("trainer-run"), max_steps=8, report_to="none").train()
