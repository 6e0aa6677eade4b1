"""Training throughput against nanoGPT, on the same shapes, text, batch, threads and machine.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/against_nanogpt.py --nanogpt nanoGPT --out throughput.json

Blocks of a few steps alternate in one process, so that both sides meet the same weather. Ours is
``training.train`` itself: nanoGPT's blocks run inside its observer, while our clock stands still.
Theirs is nanoGPT's own ``model.py`` and ``configure_optimizers``, in the order and with the
settings of its ``train.py`` (float32 on a CPU, compile=False): prefetch of the next batch from a
memory-mapped file, clipping, the loss read at every step. Neither side evaluates, writes a
checkpoint or prints in the timed part.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from coupled_adam.gpt import GPTConfig
from coupled_adam.text import Corpus, synthetic
from coupled_adam.training import Step, TrainingConfig, environment, train

SHAPES = {  # model, sequences in a batch
    "chapters": (GPTConfig(4096, context=128, layers=2, heads=4, width=128), 4),
    "larger": (GPTConfig(4096, context=256, layers=4, heads=4, width=256), 8),
}


def their_step(
    nanogpt: ModuleType, config: TrainingConfig, corpus: Corpus, device: str
) -> Callable[[], float]:
    """A function that makes one step of nanoGPT's training loop and returns the loss."""
    shape = config.model
    with contextlib.redirect_stdout(io.StringIO()):  # it reports numbers of parameters
        model = nanogpt.GPT(
            nanogpt.GPTConfig(
                block_size=shape.context,
                vocab_size=shape.vocabulary_size,
                n_layer=shape.layers,
                n_head=shape.heads,
                n_embd=shape.width,
                dropout=0.0,
                bias=False,
            )
        ).to(device)
        optimizer = model.configure_optimizers(
            config.weight_decay, config.learning_rate, config.betas, torch.device(device).type
        )

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(corpus.folder / "train.bin", dtype=corpus.train.dtype, mode="r")
        starts = torch.randint(len(data) - shape.context, (config.batch_size,))
        windows = [data[i : i + shape.context + 1].astype(np.int64) for i in starts]
        x = torch.stack([torch.from_numpy(window[:-1]) for window in windows])
        y = torch.stack([torch.from_numpy(window[1:]) for window in windows])
        if device.startswith("cuda"):
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(device, non_blocking=True), y.to(device, non_blocking=True)

    number, batch = 0, get_batch()

    def step() -> float:
        nonlocal number, batch
        number += 1
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(number)
        _, loss = model(*batch)
        batch = get_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def measure(
    config: TrainingConfig,
    corpus: Corpus,
    step: Callable[[], float],
    device: str,
    blocks: int,
    length: int,
) -> dict[str, Any]:
    """Alternate blocks of our steps and theirs; the first block of each is for warming up."""
    ours, theirs, losses = [], [], []
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    clock = time.perf_counter

    def observe(observed: Step) -> None:
        nonlocal started
        if observed.number % length:
            return
        synchronise()
        ours.append(clock() - started)
        started = clock()
        losses.append((observed.loss, [step() for _ in range(length)][-1]))
        synchronise()
        theirs.append(clock() - started)
        started = clock()

    started = math.nan  # the first block is not counted
    train(config, corpus, device=device, observe=observe, progress=False)
    tokens = length * config.batch_size * config.model.context
    rates = {
        "ours": tokens / np.array(ours[1:]),
        "nanogpt": tokens / np.array(theirs[1:]),
    }
    quartiles = np.percentile(rates["ours"] / rates["nanogpt"], [25, 50, 75])
    return {
        "tokens_per_second": {side: round(float(np.median(r))) for side, r in rates.items()},
        "ratio": dict(zip(("q25", "median", "q75"), quartiles.round(4).tolist(), strict=True)),
        "blocks": blocks,
        "steps_per_block": length,
        "final_losses": dict(zip(("ours", "nanogpt"), losses[-1], strict=True)),
    }


def main() -> None:
    """Measure what the command line asks for; print it, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    arms = ("adamw", "coupled")
    parser.add_argument("--optimizers", nargs="+", choices=arms, default=list(arms))
    parser.add_argument("--blocks", type=int, default=10, help="timed blocks of each side")
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not (options.nanogpt / "model.py").exists():
        parser.error(f"{options.nanogpt} holds no model.py: give a checkout of karpathy/nanoGPT")
    source = importlib.util.spec_from_file_location("nanogpt", options.nanogpt / "model.py")
    nanogpt = importlib.util.module_from_spec(source)
    source.loader.exec_module(nanogpt)

    results = []
    with tempfile.TemporaryDirectory() as cache:
        corpus = synthetic(4096, tokens=1_000_000, cache=cache)
        for shape in options.shapes:
            for optimizer in options.optimizers:
                model, batch_size = SHAPES[shape]
                steps = (options.blocks + 1) * options.steps
                config = TrainingConfig(
                    model,
                    optimizer,
                    steps=steps,
                    batch_size=batch_size,
                    warmup_steps=options.steps,
                    evaluate_every=steps,
                    evaluation_tokens=model.context,
                )
                step = their_step(nanogpt, config, corpus, options.device)
                result = measure(
                    config, corpus, step, options.device, options.blocks, options.steps
                )
                results.append({"shape": shape, "optimizer": optimizer, **result})
                rates, ratio = result["tokens_per_second"], result["ratio"]
                print(
                    f"{shape:9} {optimizer:8} ours {rates['ours']:,} tokens/s, nanoGPT "
                    f"{rates['nanogpt']:,}; ratio {ratio['median']:.3f} "
                    f"({ratio['q25']:.3f} to {ratio['q75']:.3f})",
                    flush=True,
                )
    if options.out:
        described = {"environment": environment(options.device), "results": results}
        options.out.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
