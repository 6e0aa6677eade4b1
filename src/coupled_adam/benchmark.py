"""What an optimizer step on an embedding matrix costs: time, memory traffic, memory."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from coupled_adam.errors import RefusedError
from coupled_adam.extras import needs
from coupled_adam.files import whole_file
from coupled_adam.optim import CoupledAdamW, native
from coupled_adam.provenance import environment

with needs("cli"):
    import pandas as pd

# As in the paper's recipe, which does not decay embeddings.
_SETTINGS: dict[str, Any] = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}

COPY, BASELINE = "copy", "AdamW fused"
COUPLED, UNFUSED = "CoupledAdamW", "CoupledAdamW unfused"
CANDIDATES: Mapping[str, Callable[[list[Tensor]], Optimizer]] = {
    "AdamW for-loop": partial(AdamW, foreach=False, fused=False, **_SETTINGS),
    "AdamW foreach": partial(AdamW, foreach=True, **_SETTINGS),
    BASELINE: partial(AdamW, fused=True, **_SETTINGS),
    # In C or with Triton kernels, and in PyTorch's operations, as where there is no compiler.
    COUPLED: partial(CoupledAdamW, coupled=True, fused=True, **_SETTINGS),
    UNFUSED: partial(CoupledAdamW, coupled=True, fused=False, **_SETTINGS),
}


def bytes_moved(shape: tuple[int, int], dtype: torch.dtype, *, coupled: bool) -> int:
    """The least traffic between processor and memory that a step on a matrix can do with.

    A matrix that does not fit into the caches travels once for each time that it is read or
    written. AdamW needs seven passes: it reads parameter, gradient and both moments, and writes
    all but the gradient. A coupled step needs six: it reads the gradient for the mean of its
    squares, then parameter, gradient and first moment, and writes the last two of the three but
    the gradient. Vectors of H numbers are not counted.

    Args:
        shape: rows V and columns H.
        dtype: of the parameter, its gradient and its full-size moments.
        coupled: whether the second moment is shared over the rows.

    Returns:
        Bytes.
    """
    return (6 if coupled else 7) * shape[0] * shape[1] * dtype.itemsize


def time_in_turns(
    functions: Mapping[str, Callable[[], object]],
    *,
    device: str = "cpu",
    rounds: int = 15,
    seconds: float = 0.05,
    before: Callable[[], object] | None = None,
) -> pd.DataFrame:
    """Time functions against each other while all of them meet the same weather.

    In every round each function has its turn, in an order that changes from round to round. It is
    called once so that the caches hold its data and not those of the one before, then timed over
    as many calls as fill the time it is given. Compare within rounds; ``ratios`` does.

    Args:
        functions: what to time, by name; the calls must not depend on each other.
        device: waited for before the clock is read, if it is a "cuda" device.
        rounds: turns of each function, at least 1.
        seconds: about how long one turn lasts, with what comes before; a function that takes longer
            is called once.
        before: called before each timed call, outside the clock; in a training loop a step comes
            right after other operations, whose threads are still awake.

    Returns:
        Seconds of one call: a row for each round, a column for each function.

    Raises:
        ValueError: if there is nothing to time.
    """
    if not functions or rounds < 1:
        raise ValueError(
            f"nothing to time: got {len(functions)} functions and {rounds} rounds, and need at "
            "least one of each"
        )

    def timed(name: str, calls: int) -> float:
        spent = 0.0
        # Without anything before it, all calls under one reading of the clock.
        for _ in range(calls if before is not None else 1):
            if before is not None:
                before()
            _wait_for(device)
            start = time.perf_counter()
            for _ in range(1 if before is not None else calls):
                functions[name]()
            _wait_for(device)
            spent += time.perf_counter() - start
        return spent / calls

    calls = {}
    for name, function in functions.items():
        function()  # the first call may have to set things up
        # With what comes before it: a thousand fast steps, each after a slow product, took minutes.
        start = time.perf_counter()
        timed(name, 1)
        calls[name] = max(1, round(seconds / (time.perf_counter() - start)))
    order, shuffle = list(functions), random.Random(0).shuffle
    rows = []
    for _ in range(rounds):
        shuffle(order)
        row = {}
        for name in order:
            functions[name]()
            row[name] = timed(name, calls[name])
        rows.append(row)
    return pd.DataFrame(rows, columns=list(functions))


def ratios(times: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Quartiles of each function's time as a multiple of the baseline's in the same round.

    Args:
        times: as from ``time_in_turns``.
        baseline: the column that the others are divided by.

    Returns:
        One row a function, with columns low, median and high (25, 50 and 75 %).

    Raises:
        ValueError: if the baseline was not timed.
    """
    if baseline not in times:
        raise ValueError(f"{baseline!r} was not timed; there are {list(times)}")
    quartiles = times.div(times[baseline], axis=0).quantile([0.25, 0.5, 0.75]).T
    return quartiles.set_axis(["low", "median", "high"], axis=1)


def extra_memory(function: Callable[[], object], device: str = "cpu") -> int:
    """How much more memory a call needs at its worst moment than before it.

    Every allocation counts, also of what PyTorch's operations need for themselves: on a CPU as
    its profiler records them, on a GPU as its allocator does.

    Args:
        function: what to call, once; what it allocates and keeps counts too.
        device: where it allocates.

    Returns:
        Bytes, at least 0.
    """
    if device.startswith("cuda"):
        _wait_for(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        _wait_for(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _without_stderr(), tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            function()
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Ev Idx"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]"
    )
    most = now = 0
    for _, _, change in changes:
        now += change
        most = max(most, now)
    return most


def compare_steps(
    shapes: Sequence[tuple[int, int]] = ((50304, 768),),
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: str = "cpu",
    threads: int | None = None,
    rounds: int = 15,
    seconds: float = 0.05,
    candidates: Mapping[str, Callable[[list[Tensor]], Optimizer]] = CANDIDATES,
) -> pd.DataFrame:
    """Measure optimizer steps on embedding matrices, side by side in this process.

    Each timed step comes right after a matrix product, as in a training loop.

    Args:
        shapes: rows V and columns H of the matrices; the candidates of one shape are in memory
            together, with three to four matrices each.
        dtypes: of the parameters.
        device: "cpu", "cuda" or "cuda:1" and so on.
        threads: of PyTorch on the CPU while measuring; as they are if not given.
        rounds: as in ``time_in_turns``.
        seconds: as in ``time_in_turns``.
        candidates: from a list with one parameter to its optimizer, by name; with "AdamW fused",
            to which times are compared.

    Returns:
        One row for each shape, type and candidate, and one for a plain copy of the matrix:
        device, threads, rows, width, dtype, candidate; implementation (what the step really ran,
        in words, and why it fell back if it did); milliseconds (median);
        ratio_low, ratio_median and ratio_high (quartiles of the time over that of "AdamW fused"
        in the same round); gigabytes_per_second (``bytes_moved`` over the median time; a copy
        makes two passes); state_bytes (all tensors of the optimizer's state, the counter of 4
        bytes included); resident_bytes (parameter, gradient and state); extra_bytes (peak during
        a step, beyond those).

    Raises:
        RefusedError: for a shape, a type or a device that cannot be measured, for want of memory
            too, or if the baseline is not among the candidates.
    """
    if BASELINE not in candidates:
        raise RefusedError(f"candidates lack {BASELINE!r}, to which the times are compared: add it")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RefusedError(f"device={device!r}, but PyTorch sees no GPU here: use device='cpu'")
    for shape in shapes:
        if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
            raise RefusedError(f"shape {shape} is not that of an embedding matrix, (rows, width)")
    for dtype in dtypes:
        if not dtype.is_floating_point:
            raise RefusedError(f"{dtype} is no type of parameters: use a floating-point type")
    for shape in shapes:
        _check_memory(shape, max(dtypes, key=lambda dtype: dtype.itemsize), device, len(candidates))
    with _threads(threads):
        tables = [
            _compare((shape[0], shape[1]), dtype, device, rounds, seconds, candidates)
            for shape in shapes
            for dtype in dtypes
        ]
    return pd.concat(tables, ignore_index=True)


def _check_memory(shape: tuple[int, int], dtype: torch.dtype, device: str, candidates: int) -> None:
    """Refuse what would not fit; the system would end the process without a word."""
    # Start, gradient and a copy; of each candidate a parameter, its state, and what it puts down.
    needed = (3 + 3 * candidates + 2) * shape[0] * shape[1] * dtype.itemsize
    if device.startswith("cuda"):
        there = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if needed > there:
        raise RefusedError(
            f"to measure {shape[0]} x {shape[1]} takes about {needed / 2**30:.0f} GiB of memory, "
            f"and {device} has {there / 2**30:.0f}: measure a smaller matrix, or fewer candidates"
        )


def _compare(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    rounds: int,
    seconds: float,
    candidates: Mapping[str, Callable[[list[Tensor]], Optimizer]],
) -> pd.DataFrame:
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(shape, generator=generator)).to(device, dtype)
    # Falls with the row as in a vocabulary with Zipf's frequencies, the commonest token first.
    falling = torch.arange(1, shape[0] + 1)[:, None]
    gradient = (torch.randn(shape, generator=generator) / falling).to(device, dtype)
    steps: dict[str, Callable[[], object]] = {COPY: partial(start.clone().copy_, gradient)}
    moved = {COPY: 2 * start.nbytes}
    state = {COPY: 0}
    ran = {COPY: "PyTorch's operations"}
    for name, make in candidates.items():
        parameter = torch.nn.Parameter(start.clone())
        parameter.grad = gradient
        optimizer = make([parameter])
        ran[name] = _implementation(optimizer, parameter)
        steps[name] = optimizer.step
        coupled = optimizer.param_groups[0].get("coupled", False)
        moved[name] = bytes_moved(shape, dtype, coupled=coupled)
        state[name] = sum(value.nbytes for value in optimizer.state[parameter].values())
    left, right = torch.randn(256, 1024, device=device), torch.randn(1024, 1024, device=device)
    times = time_in_turns(
        steps,
        device=device,
        rounds=rounds,
        seconds=seconds,
        before=partial(torch.matmul, left, right),
    )
    quartiles = ratios(times)
    return pd.DataFrame(
        {
            "device": device,
            "threads": torch.get_num_threads(),
            "rows": shape[0],
            "width": shape[1],
            "dtype": str(dtype).removeprefix("torch."),
            "candidate": name,
            "implementation": ran[name],
            "milliseconds": 1e3 * times[name].median(),
            "ratio_low": quartiles.low[name],
            "ratio_median": quartiles["median"][name],
            "ratio_high": quartiles.high[name],
            "gigabytes_per_second": 1e-9 * moved[name] / times[name].median(),
            "state_bytes": state[name],
            "resident_bytes": 2 * start.nbytes + state[name],
            "extra_bytes": extra_memory(step, device),
        }
        for name, step in steps.items()
    )


def _implementation(optimizer: Optimizer, parameter: Tensor) -> str:
    """Make a step, and say in words what it ran."""
    group = optimizer.param_groups[0]
    native.last_run = ""
    optimizer.step()
    if native.last_run:
        return native.last_run
    if not group.get("coupled", False):
        kinds = [kind for kind in ("fused", "foreach") if group.get(kind)]
        return f"PyTorch's AdamW, {(kinds or ['for-loop'])[0]}"
    if parameter.device.type == "cuda" and "coupled_adam.optim.kernel" in sys.modules:
        kernel = sys.modules["coupled_adam.optim.kernel"]
        matrices = (parameter, parameter.grad, optimizer.state[parameter]["exp_avg"])
        if group["fused"] is not False and kernel.fits(*matrices):
            return "Triton kernels"
    why_not = native.unavailable(parameter.dtype) if group["fused"] else ""
    if group["fused"] and parameter.device.type == "cpu" and parameter.dtype == torch.float64:
        why_not = "the sweeps in C are for float32 and bfloat16"
    return "PyTorch's operations" + (f" (no C: {why_not})" if why_not else "")


def write_results(table: pd.DataFrame, path: str | Path) -> None:
    """Write measurements as JSON, with what they depend on.

    Args:
        table: as from ``compare_steps``, measured in this process on one device.
        path: the file; an existing one is replaced.

    Raises:
        RefusedError: if the table is empty or holds measurements of several devices.
        OSError: if the file cannot be written.
    """
    devices = table["device"].unique()
    if len(devices) != 1:
        raise RefusedError(
            f"a record is of one device, this table has {len(devices)} {list(devices)}: write "
            "one file for each"
        )
    described = environment(devices[0])
    described["written"] = described.pop("started")
    del described["threads"]  # those of the measurements are in the table
    record = {
        "environment": described,
        "results": json.loads(table.to_json(orient="records", double_precision=6)),
    }
    with whole_file(Path(path)) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence the profiler, which reports its start and stop from beneath Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
