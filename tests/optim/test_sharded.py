"""CoupledAdamW on 2, 3 and 4 processes against one: the same training, wherever the rows are.

The processes talk over gloo on this machine. Each number of processes is started once and does all
of its cases (sharded_runs.py); the tests look at what came of them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forks
import pytest
import sharded_runs
import torch
from sharded_runs import CASES, KINDS, PLACEMENTS, Case

from coupled_adam import CoupledAdamW

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this build of torch has no gloo",
)


class Runs:
    """Starts the processes of each world when first asked for, and keeps what they returned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcomes: dict[int, list[dict[str, Any]]] = {}
        self.logs: dict[int, str] = {}

    def __call__(self, case: Case, world: int) -> list[dict[str, Any]]:
        """The outcomes of a case, one a rank; fails with what the processes said."""
        # Two processes write the checkpoints that the others resume.
        for needed in sorted({2, world}):
            if needed not in self.outcomes:
                self._run(needed)
        outcomes = [rank.get(str(case)) for rank in self.outcomes[world]]
        if any(outcome is None or "error" in outcome for outcome in outcomes):
            errors = [
                outcome["error"]
                for rank in self.outcomes[world]
                for outcome in rank.values()
                if "error" in outcome
            ]
            pytest.fail("\n".join([*errors, self.logs[world]]), pytrace=False)
        return outcomes

    def _run(self, world: int) -> None:
        logs = [self.folder / f"log-{world}-{rank}.txt" for rank in range(world)]
        processes = [
            forks.context().Process(target=sharded_runs.main, args=(self.folder, world, rank, log))
            for rank, log in enumerate(logs)
        ]
        for process, log in zip(processes, logs, strict=True):
            log.touch()
            process.start()
        # The workers end themselves before that and say where they were.
        deadline = time.monotonic() + sharded_runs.WORKER_SECONDS + 30
        try:
            for process in processes:
                process.join(max(1, deadline - time.monotonic()))
        finally:
            for process in processes:
                process.kill()  # nothing if it has ended
                process.join()
        self.logs[world] = "\n".join(
            f"process {rank} of {world} ended with {process.exitcode} and said:\n"
            + log.read_text()[-3000:]
            for rank, (process, log) in enumerate(zip(processes, logs, strict=True))
        )
        files = [self.folder / f"outcomes-{world}-{rank}.pt" for rank in range(world)]
        self.outcomes[world] = [torch.load(file) if file.exists() else {} for file in files]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("sharded"))


def cases(*kinds: str, writers_only: bool = False) -> Any:
    """Every case of these kinds, in every world, or only where it writes its checkpoint."""
    return pytest.mark.parametrize(
        ("case", "world"),
        [
            pytest.param(case, world, id=f"{case}, {world} processes")
            for case in CASES
            if case.kind in kinds
            for world in (case.worlds[:1] if writers_only else case.worlds)
        ],
    )


@functools.cache
def one_process(case: Case, world: int) -> dict[str, Any]:
    return KINDS[case.kind](dataclasses.replace(case, placement="one process"), world, Path())


def distance(outcome: dict[str, Any], expected: dict[str, Any], name: str) -> float:
    difference = outcome["parameters"][name] - expected["parameters"][name]
    return difference.abs().max().item()


@needs_gloo
@cases(
    "train",
    "missing gradients",
    "gradient placed otherwise",
    "switch",
    "resume",
    "resume from one file",
    "switch from one file",
    "zero redundancy",
    "sparse",
)
def test_many_processes_end_where_one_ends(runs, case, world):
    expected = one_process(case, world)
    for outcome in runs(case, world):
        for name in ("table", "head", "matrix", "bias"):
            assert distance(outcome, expected, name) <= 1e-6, name


@needs_gloo
@cases("local means", "broken reduction")
def test_a_wrong_mean_would_be_noticed(runs, case, world):
    expected = one_process(dataclasses.replace(case, kind="train", variant="default"), world)
    for outcome in runs(case, world):
        for name in ("table", "head"):
            assert distance(outcome, expected, name) > 1e-3, name


@needs_gloo
@cases("train", "missing gradients")
def test_a_step_takes_one_reduction_and_no_gathering(runs, case, world):
    """Two coupled matrices, and one all-reduce; two where two axes of a larger mesh hold rows."""
    for outcome in runs(case, world):
        assert outcome["collectives"] == [PLACEMENTS[case.placement].collectives]


@needs_gloo
@cases("missing gradients")
def test_a_matrix_without_any_gradient_is_skipped_on_all_processes(runs, case, world):
    for outcome in runs(case, world):
        assert outcome["steps"] == one_process(case, world)["steps"] == [10, 12, 15, 15]


@needs_gloo
@cases("resume")
def test_making_the_state_for_a_checkpoint_changes_no_parameter(runs, case, world):
    """torch.distributed.checkpoint takes a step with a learning rate of 0 and gradients of 0."""
    assert all(outcome["initialisation changed nothing"] for outcome in runs(case, world))


@needs_gloo
@cases("resume", writers_only=True)
def test_resuming_on_as_many_processes_is_bitwise(runs, case, world):
    assert all(outcome["bitwise"] for outcome in runs(case, world))


@needs_gloo
@cases("zero redundancy")
def test_a_process_without_embedding_is_one_of_several(runs, case, world):
    outcomes = runs(case, world)
    assert outcomes[0]["somebody has no embedding"] == (world > 2)
    assert [shape for outcome in outcomes for shape in outcome["shapes"]] == [(6,), (6,)]


@needs_gloo
@cases("sparse")
def test_a_process_that_has_none_of_the_rows_leaves_its_own_alone(runs, case, world):
    """The process itself checks that nothing moves; here, that it came to that."""
    assert any(outcome["waited"] for outcome in runs(case, world))


@needs_gloo
@cases("transposed")
def test_tokens_may_be_spread_over_processes_along_the_columns(runs, case, world):
    """A matrix that is stored as [width, tokens]; its mean is one number a row."""
    for outcome in runs(case, world):
        for name, (found, expected) in outcome["pairs"].items():
            torch.testing.assert_close(
                found, expected, msg=lambda text, name=name: f"{name}: {text}"
            )
        along_columns, along_rows = outcome["ends along both axes"]
        assert (along_columns - along_rows).abs().max() > 1e-3


REFUSALS = {
    "partial": r"P(artial)?\(sum\): its values are sums that have not been taken yet",
    "group for DTensor": "knows by itself where its rows are",
    "DTensor of three dimensions": "needs a matrix",
    "derivative of a DTensor": "spread over processes; the sum over them has no derivative",
    "derivative of a shard": "spread over processes; the sum over them has no derivative",
    "group is None": "process_group=None is no process group .* call .*init_process_group first",
    "group of others": "is no process group of this process",
    "nothing of shared rows": "holds no parameters.*a shard of no rows",
    "plain state": "load the state with set_optimizer_state_dict",
}


@needs_gloo
@cases("refusals")
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_right_is_refused(runs, case, world, name):
    for outcome in runs(case, world):
        assert re.search(REFUSALS[name], outcome["said"].get(name, "nothing"))


@needs_gloo
@cases("contract")
@pytest.mark.parametrize(
    "fact",
    [
        "first moment is placed like the matrix",
        "shared moment is spread with the columns",
        "shared moment has the width of the whole matrix",
        "a deep copy holds the same state",
        "the process group outlives a checkpoint",
        "autograd notices the step",
        "the reduction runs under the AdamW groups",
    ],
)
def test_the_contract_of_an_optimizer_holds_for_shards(runs, case, world, fact):
    assert all(outcome["facts"][fact] for outcome in runs(case, world))


@needs_gloo
def test_flat_parameters_are_refused():
    from torch.distributed.fsdp import FlatParameter

    parameter = FlatParameter(torch.zeros(12))
    with pytest.raises(ValueError, match="fully_shard"):
        CoupledAdamW([parameter], coupled=True)


WITHOUT_DISTRIBUTED = """
import torch
import torch._dynamo  # which the optimizers of torch import, and which expects what goes here
torch.distributed.is_available = lambda: False
for name in ("ProcessGroup", "all_reduce", "group"):
    if hasattr(torch.distributed, name):
        delattr(torch.distributed, name)
from coupled_adam import CoupledAdamW
matrix = torch.nn.Parameter(torch.ones(3, 2))
optimizer = CoupledAdamW([matrix], coupled=True)
matrix.grad = torch.ones(3, 2)
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert (matrix < 1).all()
try:
    CoupledAdamW([{"params": [matrix], "coupled": True, "process_group": None}])
except ValueError:
    print("refused")
"""


def test_torch_without_distributed_is_enough_for_whole_matrices():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_DISTRIBUTED], capture_output=True, text=True, check=False
    )
    assert result.stdout == "refused\n", result.stderr
