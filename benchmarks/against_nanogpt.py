r"""Training throughput against nanoGPT, on the same shapes, text, batch, threads and machine.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/against_nanogpt.py --nanogpt nanoGPT --out cpu.json
    python benchmarks/against_nanogpt.py --nanogpt nanoGPT --out gpu.json --device cuda \
        --shapes gpt2-124m --pieces 8 4 2 1

Blocks of a few steps alternate in one process, so that both sides meet the same weather. Ours is
``training.train`` itself: nanoGPT's blocks run inside its observer, while our clock stands still.
Theirs is nanoGPT's own ``model.py`` and ``configure_optimizers``, in the order and with the
settings of its ``train.py``: the batch in pieces, each read from a memory-mapped file while the
one before is computed, autocast and a scaler that does nothing in bfloat16, ``torch.compile``,
clipping, the loss read at every step. Neither side evaluates, writes a checkpoint or prints in the
timed part. On a CPU the default is float32, not compiled; on a GPU bfloat16, compiled, on both.

nanoGPT computes GPT-2's batch in its own pieces of 12 sequences unless ``--their-pieces`` says
otherwise, and we in as many unless ``--pieces`` does. That our observer makes the loop keep the
hidden states counts against us.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from coupled_adam.gpt import GPTConfig
from coupled_adam.provenance import environment
from coupled_adam.text import Corpus, synthetic
from coupled_adam.training import PRECISIONS, Step, TrainingConfig, train


class Shape(NamedTuple):
    """A model, the sequences in its batch, and the pieces that nanoGPT computes a batch in."""

    model: GPTConfig
    batch_size: int
    pieces: int = 1


GPT2 = GPTConfig(50_304, context=1024, layers=12, heads=12, width=768)
SHAPES = {
    "chapters": Shape(GPTConfig(4096, context=128, layers=2, heads=4, width=128), 4),
    "larger": Shape(GPTConfig(4096, context=256, layers=4, heads=4, width=256), 8),
    "gpt2-124m": Shape(GPT2, 96, 8),  # the paper's batch in nanoGPT's pieces
    "gpt2-124m-half-million": Shape(GPT2, 480, 40),  # nanoGPT's batch
}


def their_step(
    nanogpt: ModuleType, config: TrainingConfig, corpus: Corpus, device: str, pieces: int
) -> Callable[[], float]:
    """A function that makes one step of nanoGPT's training loop and returns the last loss."""
    shape, kind = config.model, torch.device(device).type
    at_once, length = config.batch_size // pieces, config.model.context
    if at_once * pieces != config.batch_size:
        raise ValueError(f"{pieces} equal pieces do not make a batch of {config.batch_size}")
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
            config.weight_decay, config.learning_rate, config.betas, kind
        )
    if config.compiled:
        model = torch.compile(model)
    scaler = torch.amp.GradScaler(kind, enabled=False)
    # On a CPU its train.py computes in float32 whatever it is told; here it does as it is told.
    autocast = (
        torch.autocast(kind, torch.bfloat16)
        if config.precision == "bfloat16"
        else contextlib.nullcontext()
    )

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(corpus.folder / "train.bin", dtype=corpus.train.dtype, mode="r")
        starts = torch.randint(len(data) - length, (at_once,))
        x, y = (
            torch.stack(
                [torch.from_numpy(data[i + k : i + k + length].astype(np.int64)) for i in starts]
            )
            for k in (0, 1)
        )
        if kind == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(device, non_blocking=True), y.to(device, non_blocking=True)

    number, batch = 0, get_batch()

    def step() -> float:
        nonlocal number, batch
        number += 1
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(number)
        for _ in range(pieces):
            with autocast:
                _, loss = model(*batch)
                loss = loss / pieces
            batch = get_batch()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() * pieces

    return step


class _Clock:
    """Times blocks on a device, and how much memory each takes beyond what is held anyway."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.started, self.held = math.nan, 0

    def start(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        self.started = time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """Seconds and, on a GPU, GiB since the start."""
        if not self.on_gpu:
            return time.perf_counter() - self.started, math.nan
        torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        return seconds, (torch.cuda.max_memory_allocated() - self.held) / 2**30


def measure(
    config: TrainingConfig, corpus: Corpus, step: Callable[[], float], device: str, length: int
) -> dict[str, Any]:
    """Alternate blocks of our steps and theirs; the first block of each is for warming up."""
    ours, theirs, losses = [], [], []
    clock = _Clock(device)

    def observe(observed: Step) -> None:
        if observed.number % length:
            return
        ours.append(clock.stop())
        clock.start()
        losses.append((observed.loss, [step() for _ in range(length)][-1]))
        theirs.append(clock.stop())
        clock.start()

    train(config, corpus, device=device, observe=observe, progress=False)
    tokens = length * config.batch_size * config.model.context
    blocks = {"ours": np.array(ours[1:]), "nanogpt": np.array(theirs[1:])}
    rates = {side: tokens / block[:, 0] for side, block in blocks.items()}
    quartiles = np.percentile(rates["ours"] / rates["nanogpt"], [25, 50, 75])
    memory = {side: round(float(block[:, 1].max()), 2) for side, block in blocks.items()}
    return {
        "tokens_per_second": {side: round(float(np.median(r))) for side, r in rates.items()},
        "ratio": dict(zip(("q25", "median", "q75"), quartiles.round(4).tolist(), strict=True)),
        "gib_of_a_step": memory if clock.on_gpu else None,
        "blocks": len(theirs) - 1,
        "steps_per_block": length,
        "final_losses": dict(zip(("ours", "nanogpt"), losses[-1], strict=True)),
    }


def parse() -> argparse.Namespace:
    """The command line, with what depends on the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["chapters", "larger"])
    arms = ("adamw", "coupled")
    parser.add_argument("--optimizers", nargs="+", choices=arms, default=list(arms))
    parser.add_argument("--blocks", type=int, default=10, help="timed blocks of each side")
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, help="sequences; default: the shape's")
    parser.add_argument("--pieces", type=int, nargs="+", help="ours; default: theirs")
    parser.add_argument("--their-pieces", type=int, help="default: the shape's")
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction)
    options = parser.parse_args()
    if not (options.nanogpt / "model.py").exists():
        parser.error(f"{options.nanogpt} holds no model.py: give a checkout of karpathy/nanoGPT")
    on_gpu = options.device.startswith("cuda")
    options.precision = options.precision or ("bfloat16" if on_gpu else "float32")
    options.compiled = on_gpu if options.compiled is None else options.compiled
    return options


def main() -> None:
    """Measure what the command line asks for; print it, and write it as JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    # nanoGPT's setting. In bfloat16 neither side multiplies matrices of float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    source = importlib.util.spec_from_file_location("nanogpt", options.nanogpt / "model.py")
    nanogpt = importlib.util.module_from_spec(source)
    source.loader.exec_module(nanogpt)

    results: list[dict[str, Any]] = []
    described = {"environment": environment(options.device), "results": results}
    settings = itertools.product(options.shapes, options.optimizers, options.pieces or [None])
    with tempfile.TemporaryDirectory() as cache:
        for name, optimizer, pieces in settings:
            shape = SHAPES[name]
            batch_size = options.batch_size or shape.batch_size
            their_pieces = options.their_pieces or min(shape.pieces, batch_size)
            steps = (options.blocks + 1) * options.steps
            config = TrainingConfig(
                shape.model,
                optimizer,
                steps=steps,
                batch_size=batch_size,
                warmup_steps=options.steps,
                evaluate_every=steps,
                evaluation_tokens=shape.model.context,
                accumulation=pieces or their_pieces,
                precision=options.precision,
                compiled=options.compiled,
            )
            corpus = synthetic(shape.model.vocabulary_size, tokens=1_000_000, cache=cache)
            torch.compiler.reset()  # or the compilers of later settings would know of earlier ones
            step = their_step(nanogpt, config, corpus, options.device, their_pieces)
            result = {
                "shape": name,
                "optimizer": optimizer,
                "batch_size": batch_size,
                "pieces": {"ours": config.accumulation, "nanogpt": their_pieces},
                "precision": config.precision,
                "compiled": config.compiled,
                **measure(config, corpus, step, options.device, options.steps),
            }
            results.append(result)
            print(in_one_line(result), flush=True)
            if options.out:  # after each, or an interruption would lose them all
                written = json.dumps(described, indent=1) + "\n"
                options.out.write_text(written, encoding="utf-8")


def in_one_line(result: dict[str, Any]) -> str:
    """Speed of both sides, and the ratio with its quartiles."""
    rates, pieces, ratio = result["tokens_per_second"], result["pieces"], result["ratio"]
    memory = result["gib_of_a_step"]
    needed = f"; {memory['ours']} and {memory['nanogpt']} GiB" if memory else ""
    return (
        f"{result['shape']:9} {result['optimizer']:8} ours in {pieces['ours']} pieces "
        f"{rates['ours']:,} tokens/s, nanoGPT in {pieces['nanogpt']} {rates['nanogpt']:,}; ratio "
        f"{ratio['median']:.3f} ({ratio['q25']:.3f} to {ratio['q75']:.3f}){needed}"
    )


if __name__ == "__main__":
    main()
