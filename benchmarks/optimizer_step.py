"""Time of one optimizer step on an embedding matrix: CoupledAdamW against torch's AdamW.

    python benchmarks/optimizer_step.py
    python benchmarks/optimizer_step.py --blocks 128 256 512 1024 2048 4096

All candidates take turns within one process, in an order that changes from round to round, so
that they meet the same weather; what is reported is the quartiles of the ratio to torch's fused
AdamW within the same round. With --blocks the candidates are numbers of rows whose squares
CoupledAdamW sums at once.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coupled_adam import CoupledAdamW
from coupled_adam.optim import coupled_adamw
from coupled_adam.training import environment

SHAPES = ((4096, 128), (50304, 768))
TORCH = {
    "AdamW for-loop": {"foreach": False, "fused": False},
    "AdamW foreach": {"foreach": True},
    "AdamW fused": {"fused": True},
}
SETTINGS = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}


def make_parameter(shape: tuple[int, int], device: str) -> Tensor:
    """A matrix with a gradient as of a Zipf-distributed vocabulary."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator).to(device))
    gradient = torch.randn(shape, generator=generator)
    parameter.grad = (gradient / torch.arange(1, shape[0] + 1)[:, None]).to(device)
    return parameter


def candidates(
    shape: tuple[int, int], device: str, blocks: list[int]
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """A step of each candidate by name, and the bytes of its state after the first one."""
    steps, state_bytes = {}, {}

    def add(name: str, kind: type, rows: int | None = None, **options: object) -> None:
        optimizer = kind([make_parameter(shape, device)], **SETTINGS, **options)

        def step() -> None:
            if rows is not None:
                coupled_adamw._ROWS_AT_ONCE = rows
            optimizer.step()

        step()
        steps[name] = step
        (state,) = optimizer.state.values()
        state_bytes[name] = sum(value.nbytes for value in state.values())

    for name, options in TORCH.items():
        if not blocks or options.get("fused"):
            add(name, torch.optim.AdamW, **options)
    chosen = coupled_adamw._ROWS_AT_ONCE
    for rows in blocks or [chosen]:
        add(f"CoupledAdamW, {rows} rows at once", CoupledAdamW, rows, coupled=True)
    return steps, state_bytes


def measure(
    steps: dict[str, Callable[[], object]], device: str, rounds: int, seconds: float
) -> dict[str, np.ndarray]:
    """Seconds of one step of each candidate in each round, by name."""
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    order, random_order = list(steps), random.Random(0)
    start = time.perf_counter()
    for step in steps.values():
        step()
    synchronise()
    repeats = max(1, round(seconds * len(steps) / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        random_order.shuffle(order)
        for name in order:
            steps[name]()  # the caches now hold this candidate's matrices, not the last one's
            synchronise()
            start = time.perf_counter()
            for _ in range(repeats):
                steps[name]()
            synchronise()
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: np.array(values) for name, values in times.items()}


def main() -> None:
    """Measure what the command line asks for; print it, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[], help="rows at once to compare")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.05, help="of one candidate in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen, results = coupled_adamw._ROWS_AT_ONCE, []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for shape in SHAPES:
            steps, state_bytes = candidates(shape, device, options.blocks)
            times = measure(steps, device, options.rounds, options.seconds)
            coupled_adamw._ROWS_AT_ONCE = chosen
            print(f"{device}, {shape[0]} x {shape[1]}, float32, {options.threads} threads")
            for name, seconds in times.items():
                low, median, high = np.percentile(seconds / times["AdamW fused"], [25, 50, 75])
                milliseconds = 1000 * np.median(seconds)
                results.append(
                    {
                        "device": device,
                        "shape": shape,
                        "candidate": name,
                        "milliseconds": round(milliseconds, 4),
                        "ratio_to_fused": {
                            "q25": round(low, 4),
                            "median": round(median, 4),
                            "q75": round(high, 4),
                        },
                        "state_bytes": state_bytes[name],
                    }
                )
                print(
                    f"  {name:32} {milliseconds:9.3f} ms, {median:.3f} of fused "
                    f"({low:.3f} to {high:.3f}), state {state_bytes[name]:,} bytes",
                    flush=True,
                )
    if options.out:
        described = {"environment": environment(), "results": results}
        options.out.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
