"""Coupled Adam under FSDP2: shard the model, then make the optimizer.

    torchrun --nproc-per-node 2 examples/fsdp2_torchrun.py run
    torchrun --nproc-per-node 3 examples/fsdp2_torchrun.py run

trains a small GPT on random tokens for a few steps, and goes on for as many from the checkpoint in
the folder ``run``, on more processes. They talk over nccl where there are GPUs, else over gloo.
"""

import os
import sys
from pathlib import Path

# [adopt]
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from coupled_adam import CoupledAdamW, param_groups


def shard(model):
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def make_optimizer(model):  # a model that is sharded already
    groups = param_groups(model, weight_decay=0.1)
    return CoupledAdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)


def train_step(model, optimizer, tokens):
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def save(folder, model, optimizer):
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def resume(folder, model, optimizer):  # on any number of processes
    weights, moments = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


# [/adopt]


def small_model():
    from coupled_adam.gpt import GPT, GPTConfig

    torch.manual_seed(0)
    return GPT(GPTConfig(vocabulary_size=97, context=16, width=32, layers=1, heads=2))


def batch(number, rank=0, processes=1, sequences=12, length=16):
    """The share of one process in a batch of random tokens, the first ones frequent."""
    generator = torch.Generator().manual_seed(number)
    tokens = 97 * torch.rand(sequences, length + 1, generator=generator) ** 6
    return tokens.long()[rank::processes]


def main(run, steps=4):
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()

    model = shard(small_model())
    optimizer = make_optimizer(model)
    # The file .metadata comes last: with it a checkpoint is whole.
    start = max((int(file.parent.name) for file in run.glob("*/.metadata")), default=0)
    if start > 0:
        resume(run / str(start), model, optimizer)
    for number in range(start, start + steps):
        train_step(model, optimizer, batch(number, rank, processes).to(device))
    save(run / str(start + steps), model, optimizer)
    if rank == 0:
        print(f"{processes} processes trained from step {start} to {start + steps}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "fsdp2-run"))
