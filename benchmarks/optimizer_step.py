"""Cost of one optimizer step on an embedding matrix: CoupledAdamW against torch's AdamW.

    python benchmarks/optimizer_step.py
    python benchmarks/optimizer_step.py --device cuda --shapes 50304x768 50304x1600 128256x4096 \
        --dtypes float32 bfloat16 --out step.json
    python benchmarks/optimizer_step.py --blocks 128 256 512 1024 2048 4096

What is measured and how is described in coupled_adam.benchmark. With --blocks the candidates are
numbers of rows that CoupledAdamW steps at once on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.optim import Optimizer

from coupled_adam import benchmark
from coupled_adam.optim import coupled_adamw


def in_blocks(rows: int) -> Callable[[list[Tensor]], Optimizer]:
    """A candidate that sums the squares of so many rows at once."""

    def make(parameters: list[Tensor]) -> Optimizer:
        optimizer = benchmark.CANDIDATES[benchmark.COUPLED](parameters)
        step = optimizer.step

        def step_in_blocks() -> None:
            coupled_adamw._ROWS_AT_ONCE = rows
            step()

        optimizer.step = step_in_blocks
        return optimizer

    return make


def shape(text: str) -> tuple[int, int]:
    """Read "50304x768"."""
    rows, width = text.split("x")
    return int(rows), int(width)


def main() -> None:
    """Measure what the command line asks for; print it, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=shape, nargs="+", default=[(4096, 128), (50304, 768)])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="float32, bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU; all of its cores if not given")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--blocks", type=int, nargs="+", default=[], help="rows at once to compare")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    candidates = dict(benchmark.CANDIDATES)
    if options.blocks:
        candidates = {benchmark.BASELINE: candidates[benchmark.BASELINE]}
        candidates |= {f"{rows} rows at once": in_blocks(rows) for rows in options.blocks}
    table = benchmark.compare_steps(
        options.shapes,
        dtypes=[getattr(torch, name) for name in options.dtypes],
        device=options.device,
        threads=options.threads,
        rounds=options.rounds,
        candidates=candidates,
    )
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(table.to_string(index=False, float_format="{:.3f}".format))
    if options.out:
        benchmark.write_record(table, options.out)


if __name__ == "__main__":
    main()
