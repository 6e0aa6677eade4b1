"""Trainings on one process and on many; test_sharded.py starts ``main`` once per rank.

The same code makes the run that is tested and, with the placement "one process", the run that it
is held against.
"""

from __future__ import annotations

import faulthandler
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from coupled_adam import CoupledAdamW
from coupled_adam.optim import coupled_adamw, sharding

# Steps: enough for every kind of missing gradient, see Training.run and missing_gradients.
WIDTH, STEPS = 6, 15
# A collective that some process does not join fails after the first, a worker after the second.
COLLECTIVE_SECONDS, WORKER_SECONDS = 60, 300


# The model: four tensors, and a loss whose gradients are the given ones.


class Model(nn.Module):
    """Two coupled matrices, and a matrix and a vector for AdamW."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = {"table": (rows, WIDTH), "head": (rows + 1, WIDTH), "matrix": (4, 6), "bias": (6,)}
        for name, shape in shapes.items():
            self.register_parameter(
                name, nn.Parameter(0.1 * torch.randn(*shape, generator=generator))
            )
        # Which rows of the whole matrices are here, and whom they are shared out with.
        self.here: dict[str, slice] = {}
        self.process_group: Any = None

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        return sum(
            _inner_product(parameter, gradients[name][self.here.get(name, slice(None))])
            for name, parameter in self.named_parameters()
        )


def _inner_product(parameter: Tensor, gradient: Tensor) -> Tensor:
    if not sharding.is_dtensor(parameter):
        return (parameter * gradient).sum()
    from torch.distributed.tensor import distribute_tensor

    gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
    return (parameter * gradient).sum().full_tensor()


def make_gradients(rows: int) -> list[dict[str, Tensor]]:
    """Frequent rows first and rare rows last, as tokens are: shards differ by magnitudes."""
    generator = torch.Generator().manual_seed(2)
    shapes = {name: p.shape for name, p in Model(rows).named_parameters()}
    gradients = []
    for _ in range(STEPS):
        step = {n: torch.randn(*shape, generator=generator) for n, shape in shapes.items()}
        for name in ("table", "head"):
            step[name] *= torch.logspace(0, -3, len(step[name]))[:, None]
        gradients.append(step)
    return gradients


# Placements: each takes a whole model and returns it placed.


@functools.cache  # torch takes equal meshes for the same one, but gives each its own groups
def _mesh(*shape: int) -> Any:
    names = ("outer", "middle", "inner")[-len(shape) :]
    return torch.distributed.init_device_mesh("cpu", shape, mesh_dim_names=names)


def _world() -> int:
    return torch.distributed.get_world_size()


def _distribute(model: Model, mesh: Any, *placements: Any) -> Model:
    from torch.distributed.tensor import Replicate, distribute_tensor

    for name, parameter in list(model.named_parameters()):
        chosen = placements if parameter.dim() == 2 else [Replicate()] * mesh.ndim
        setattr(model, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, chosen)))
    return model


def data_parallel(model: Model) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model: Model, *mesh: int, column: bool = False) -> nn.Module:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    def by_column(parameter: Tensor) -> Any:
        return Shard(1) if parameter.dim() == 2 else None

    return fully_shard(
        model,
        mesh=_mesh(*(mesh or [_world()])),
        shard_placement_fn=by_column if column else None,
    )


def tensor_parallel(model: Model, dim: int) -> nn.Module:
    from torch.distributed.tensor import Shard

    return _distribute(model, _mesh(_world()), Shard(dim))


def fsdp_over_tensor_parallel(model: Model, dim: int) -> nn.Module:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    mesh = _mesh(2, _world() // 2)
    return fully_shard(_distribute(model, mesh["inner"], Shard(dim)), mesh=mesh["middle"])


def two_axes_of_three(model: Model) -> nn.Module:
    from torch.distributed.tensor import Replicate, Shard

    return _distribute(model, _mesh(1, 2, _world() // 2), Replicate(), Shard(0), Shard(0))


def replicated(model: Model) -> nn.Module:
    from torch.distributed.tensor import Replicate

    return _distribute(model, _mesh(_world()), Replicate())


@functools.cache
def _groups_of(size: int) -> list[Any]:
    first_ranks = range(0, _world(), size)
    return [torch.distributed.new_group(list(range(r, r + size))) for r in first_ranks]


def row_shards(model: Model, size: int | None = None) -> nn.Module:
    """Plain tensors; with a size, the world is cut into groups of as many that do the same."""
    rank = torch.distributed.get_rank()
    size = size or _world()
    model.process_group = _groups_of(size)[rank // size]
    for name in ("table", "head"):
        whole = getattr(model, name).detach()
        rows = torch.arange(len(whole)).tensor_split(size)
        first = sum(len(part) for part in rows[: rank % size])
        model.here[name] = slice(first, first + len(rows[rank % size]))
        setattr(model, name, nn.Parameter(whole[model.here[name]].clone()))
    return model


@dataclass(frozen=True)
class Placement:
    """How a model is spread, on how many processes, and how many all-reduces a step then takes."""

    place: Callable[[Model], nn.Module]
    collectives: int
    worlds: tuple[int, ...] = (2, 3, 4)


PLACEMENTS = {
    "one process": Placement(lambda model: model, 0, worlds=()),
    "DDP": Placement(data_parallel, 0, worlds=(2,)),
    "FSDP2": Placement(fsdp, 1),
    "FSDP2 by column": Placement(lambda model: fsdp(model, column=True), 0, worlds=(2,)),
    "FSDP2, replicated": Placement(lambda model: fsdp(model, 2, 2), 1, worlds=(4,)),
    "tensor parallel rows": Placement(lambda model: tensor_parallel(model, 0), 1),
    "tensor parallel columns": Placement(lambda model: tensor_parallel(model, 1), 0, (2, 4)),
    "FSDP2 over rows": Placement(lambda model: fsdp_over_tensor_parallel(model, 0), 1, (4,)),
    "FSDP2 over columns": Placement(lambda model: fsdp_over_tensor_parallel(model, 1), 1, (4,)),
    "two axes of three": Placement(two_axes_of_three, 2, worlds=(4,)),
    "DTensor replicated": Placement(replicated, 0, worlds=(2,)),
    "row shards": Placement(row_shards, 1),
    "row shards in pairs": Placement(lambda model: row_shards(model, 2), 1, worlds=(4,)),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "clipped": {"clip": 0.5},
    "amsgrad, maximize": {"amsgrad": True, "maximize": True, "betas": (0.8, 0.95)},
    "fused": {"fused": True},
}

# What every placement is tried with, by the number of processes: shards of one size (10 on 2), of
# several, and one without rows (3 on 4).
TRIALS = {
    2: ((10, "clipped"), (11, "default"), (11, "amsgrad, maximize")),
    3: ((11, "fused"), (11, "clipped")),
    4: ((10, "fused"), (3, "clipped")),
}


# Training.


@dataclass
class Training:
    """A placed model with its optimizer."""

    placement: str
    rows: int
    variant: str = "default"
    coupled: bool = True
    seed: int = 0
    optimizer_class: type[torch.optim.AdamW] = CoupledAdamW
    collectives: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.bare = Model(self.rows, self.seed)
        self.model = PLACEMENTS[self.placement].place(self.bare)
        self.options = dict(VARIANTS[self.variant])
        self.clip_at = self.options.pop("clip", None)
        self.gradients = make_gradients(self.rows)
        self.optimizer = self.optimizer_class(self.groups(), lr=1e-2, **self.options)

    def groups(self) -> list[dict[str, Any]]:
        embeddings = {"params": [self.bare.table, self.bare.head], "weight_decay": 0.0}
        if self.optimizer_class is CoupledAdamW:
            embeddings["coupled"] = self.coupled
            if self.bare.process_group is not None:
                embeddings["process_group"] = self.bare.process_group
        return [embeddings, {"params": [self.bare.matrix, self.bare.bias], "weight_decay": 0.1}]

    def run(
        self, first: int, last: int, change: Callable[[int, Model], None] | None = None
    ) -> Training:
        for index in range(first, last):
            self.optimizer.zero_grad()
            self.model(self.gradients[index]).backward()
            if change is not None:
                change(index, self.bare)
            if self.clip_at is not None:
                self.clip()
            # To watch costs more than to step; these meet every kind of missing gradient.
            if self.placement == "one process" or not (1 <= index < 4 or index % 5 == 4):
                self.optimizer.step()
                continue
            from torch.distributed.tensor.debug import CommDebugMode

            with CommDebugMode() as traffic:
                self.optimizer.step()
            self.collectives.add(traffic.get_total_counts())
        return self

    def clip(self) -> None:
        if self.bare.process_group is None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_at)
            return
        gradients = {name: p.grad for name, p in self.bare.named_parameters()}
        squares = sum(gradients[name].square().sum() for name in ("table", "head"))
        torch.distributed.all_reduce(squares, group=self.bare.process_group)
        squares = squares + sum(gradients[name].square().sum() for name in ("matrix", "bias"))
        for gradient in gradients.values():
            gradient *= (self.clip_at / (squares.sqrt() + 1e-6)).clamp(max=1)

    def parameters(self) -> dict[str, Tensor]:
        """The whole parameters, on every process."""
        return {
            name: self._whole(name, p.detach()).clone() for name, p in self.bare.named_parameters()
        }

    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        if sharding.is_dtensor(tensor):
            return tensor.full_tensor()
        if name in self.bare.here:
            parts: list[Any] = [None] * self.bare.process_group.size()
            torch.distributed.all_gather_object(parts, tensor, group=self.bare.process_group)
            return torch.cat(parts)
        return tensor

    def shards(self) -> list[Tensor]:
        """What this process holds, the state of the optimizer included."""
        state = [s for p in self.bare.parameters() for s in self.optimizer.state[p].values()]
        with torch.no_grad():
            return [sharding.local(t).clone() for t in (*self.bare.parameters(), *state)]


# What is tested: each takes a case and the number of processes and returns what came of it.


@dataclass(frozen=True)
class Case:
    """One training, or a few, in one placement."""

    kind: str
    placement: str
    rows: int
    variant: str = "default"
    worlds: tuple[int, ...] = ()

    def __str__(self) -> str:
        return ", ".join([self.kind, self.placement, f"{self.rows} rows", self.variant])


def train(case: Case, world: int, folder: Path) -> dict[str, Any]:
    training = Training(case.placement, case.rows, case.variant).run(0, STEPS)
    return {"parameters": training.parameters(), "collectives": sorted(training.collectives)}


def local_means(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """The mistake that all of this is about."""
    with mock.patch.object(sharding, "row_groups", lambda *_: ()):
        training = Training(case.placement, case.rows, case.variant).run(0, STEPS)
    return {"parameters": training.parameters()}


# Lines of the reduction, each broken in a way that leaves a training that looks healthy.
REDUCTION_MUTATIONS = {
    "divided by the rows of one process": (
        "entry.rows, entry.gradients, entry.sparse_gradients = part[-_COUNTS:]",
        "entry.gradients, entry.sparse_gradients = part[1 - _COUNTS :]",
    ),
    "sum over the processes of means": (
        "part[:-_COUNTS] = entry.total",
        "part[:-_COUNTS] = entry.total / max(1, entry.rows)",
    ),
    "not added up": (
        "return torch.distributed.all_reduce(buffer, group=last, async_op=True), buffer",
        "torch.distributed.barrier(group=last); "
        "return torch.distributed.all_reduce(buffer.clone(), group=last, async_op=True), buffer",
    ),
    "divided by the processes, as gradients are": (
        "return self.total / self.rows",
        "return self.total / self.rows / torch.distributed.get_world_size()",
    ),
}


def broken_reduction(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """A training with one line of the reduction changed; the variant says which."""
    source = inspect.getsource(sharding)
    old, new = REDUCTION_MUTATIONS[case.variant]
    assert source.count(old) == 1, "the line has changed: adapt the mutation"
    try:
        exec(compile(source.replace(old, new), sharding.__file__, "exec"), sharding.__dict__)
        training = Training(case.placement, case.rows).run(0, STEPS)
    finally:
        exec(compile(source, sharding.__file__, "exec"), sharding.__dict__)
    return {"parameters": training.parameters()}


def missing_gradients(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """A gradient of rank 1 is missing now and then, and sometimes everybody's."""
    alone = case.placement == "one process"
    mine = slice(case.rows // world, 2 * case.rows // world)  # the rows of rank 1

    def change(index: int, model: Model) -> None:
        if index % 3 == 0 and alone:
            model.table.grad[mine] = 0
        elif index % 3 == 1 or (index % 3 == 0 and torch.distributed.get_rank() == 1):
            model.table.grad = None
        if index % 5 == 4:
            model.head.grad = None

    training = Training(case.placement, case.rows, case.variant).run(0, STEPS, change)
    steps = [training.optimizer.state[p]["step"].item() for p in training.bare.parameters()]
    return {
        "parameters": training.parameters(),
        "collectives": sorted(training.collectives),
        "steps": steps,
    }


def gradient_placed_otherwise(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """Tensor parallelism can leave a gradient of a replicated matrix as sums yet to be taken."""

    def change(index: int, model: Model) -> None:
        if case.placement == "one process":
            return
        from torch.distributed.tensor import DTensor, Partial

        whole = model.table.grad.full_tensor()
        mesh = model.table.device_mesh
        model.table.grad = DTensor.from_local(whole / world, mesh, [Partial()])

    training = Training(case.placement, case.rows, case.variant).run(0, STEPS, change)
    return {"parameters": training.parameters()}


def switch(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """AdamW for some steps, then Coupled Adam, then AdamW again."""
    first = Training(case.placement, case.rows, optimizer_class=torch.optim.AdamW)
    first.run(0, 6)
    state, model = first.optimizer.state_dict(), first
    for begin, end, coupled in ((6, 11, True), (11, STEPS, False)):
        model.optimizer_class, model.coupled = CoupledAdamW, coupled
        model.optimizer = CoupledAdamW(model.groups(), lr=1e-2)
        model.optimizer.load_state_dict(state)
        model.run(begin, end)
        state = model.optimizer.state_dict()
    return {"parameters": model.parameters()}


def resume(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """The first world of the case writes a checkpoint in mid-run; all its worlds go on from it."""
    straight = Training(case.placement, case.rows, case.variant)
    straight.run(0, STEPS // 2)
    if case.placement == "one process":
        return {"parameters": straight.run(STEPS // 2, STEPS).parameters()}
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    path = folder / str(case)
    if world == case.worlds[0]:
        model, optimizer = get_state_dict(straight.model, straight.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=path)
    resumed = Training(case.placement, case.rows, case.variant, seed=1)
    before = resumed.parameters()
    model, optimizer = get_state_dict(resumed.model, resumed.optimizer)
    untouched = all(torch.equal(a, before[n]) for n, a in resumed.parameters().items())
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=path)
    set_state_dict(
        resumed.model, resumed.optimizer, model_state_dict=model, optim_state_dict=optimizer
    )
    resumed.run(STEPS // 2, STEPS)
    straight.run(STEPS // 2, STEPS)
    pairs = zip(resumed.shards(), straight.shards(), strict=True)
    return {
        "parameters": resumed.parameters(),
        "initialisation changed nothing": untouched,
        "bitwise": all(torch.equal(a, b) for a, b in pairs),
    }


def resume_from_one_file(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """The whole state gathered on rank 0, and spread from there."""
    straight = Training(case.placement, case.rows, case.variant)
    straight.run(0, STEPS // 2)
    if case.placement == "one process":
        return {"parameters": straight.run(STEPS // 2, STEPS).parameters()}
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = get_state_dict(straight.model, straight.optimizer, options=options)
    resumed = Training(case.placement, case.rows, case.variant, seed=1)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    # One by one: with both in one call, torch waits for ever on the ranks that have no state.
    set_model_state_dict(resumed.model, model, options=options)
    set_optimizer_state_dict(resumed.model, resumed.optimizer, optimizer, options=options)
    return {"parameters": resumed.run(STEPS // 2, STEPS).parameters()}


def switch_from_one_file(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """AdamW's whole state on rank 0, spread from there into coupled groups."""
    first = Training(case.placement, case.rows, case.variant, optimizer_class=torch.optim.AdamW)
    first.run(0, STEPS // 2)
    if case.placement == "one process":
        state = first.optimizer.state_dict()
        first.optimizer_class = CoupledAdamW
        first.optimizer = CoupledAdamW(first.groups(), lr=1e-2, **first.options)
        first.optimizer.load_state_dict(state)
        return {"parameters": first.run(STEPS // 2, STEPS).parameters()}
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = get_state_dict(first.model, first.optimizer, options=options)
    switched = Training(case.placement, case.rows, case.variant, seed=1)
    if case.rows % 2:
        switched.run(0, 1)  # there may be a state already
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(switched.model, model, options=options)
    set_optimizer_state_dict(switched.model, switched.optimizer, optimizer, options=options)
    return {"parameters": switched.run(STEPS // 2, STEPS).parameters()}


def zero_redundancy(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """Each process steps some of the parameters: one may have no embedding."""
    if case.placement == "one process":
        return train(case, world, folder)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def start(seed: int) -> Training:
        training = Training(case.placement, case.rows, case.variant, seed=seed)
        training.optimizer = ZeroRedundancyOptimizer(
            training.groups(), CoupledAdamW, lr=1e-2, **training.options
        )
        return training

    first, again = start(0), start(1)
    first.run(0, STEPS // 2)
    states: list[Any] = [None]
    first.optimizer.consolidate_state_dict(to=0)
    if torch.distributed.get_rank() == 0:
        states = [first.optimizer.state_dict()]
    torch.distributed.broadcast_object_list(states, src=0)
    again.model.load_state_dict(first.model.state_dict())
    again.optimizer.load_state_dict(states[0])
    here = [len(group["params"]) for group in again.optimizer.optim.param_groups]
    counts: list[Any] = [None] * world
    torch.distributed.all_gather_object(counts, here)
    return {
        "parameters": again.run(STEPS // 2, STEPS).parameters(),
        "somebody has no embedding": any(count[0] == 0 for count in counts),
        "shapes": [
            tuple(again.optimizer.optim.state[parameter]["exp_avg_sq"].shape)
            for parameter in again.optimizer.optim.param_groups[0]["params"]
        ],
    }


def sparse(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """Sparse gradients of the table's rows; now and then a process has none of them."""
    waited = False

    def change(index: int, model: Model) -> None:
        nonlocal waited
        generator = torch.Generator().manual_seed(index)
        occurs = torch.rand(case.rows, generator=generator) < 0.4
        occurs[0] = index % 7 != 6
        if index % 3 == 0:
            occurs[case.rows // world : 2 * case.rows // world] = False  # the rows of rank 1
        if index % 7 == 6:
            occurs[:] = False
        mine = occurs[model.here.get("table", slice(None))]
        rows = mine.nonzero()[:, 0]
        # Absent rows are an empty gradient in one step and no gradient in another.
        if len(rows) == 0 and (index % 2 or index % 7 == 6):
            model.table.grad = None
            waited = waited or bool(occurs.any())
            return
        values = model.table.grad[rows]
        model.table.grad = torch.sparse_coo_tensor(
            rows[None], values, model.table.shape, check_invariants=True
        )

    training = Training(case.placement, case.rows, case.variant)
    before = training.bare.table.detach().clone()
    for index in range(STEPS):
        training.run(index, index + 1, change)
        gradient = training.bare.table.grad
        # What is absent here stays where it is, whatever the others have.
        if gradient is None and not torch.equal(before, training.bare.table):
            raise AssertionError(f"rows that were absent moved in step {index}")
        before = training.bare.table.detach().clone()
    return {"parameters": training.parameters(), "waited": waited}


def refusals(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """What each of them says."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = _mesh(world)
    whole = torch.ones(4, 3)
    everyone = torch.distributed.group.WORLD
    others = torch.distributed.new_group([world - 1 - torch.distributed.get_rank()])
    matrices = {
        "partial": ({}, DTensor.from_local(whole, mesh, [Partial()])),
        "group for DTensor": (
            {"process_group": everyone},
            DTensor.from_local(whole, mesh, [Replicate()]),
        ),
        "DTensor of three dimensions": ({}, DTensor.from_local(whole[None], mesh, [Replicate()])),
        "derivative of a DTensor": (
            {"differentiable": True},
            DTensor.from_local(whole, mesh, [Replicate()]),
        ),
        "derivative of a shard": ({"differentiable": True, "process_group": everyone}, whole),
        "group is None": ({"process_group": None}, whole),
        "group of others": ({"process_group": others}, whole),
    }
    said = {}
    for name, (options, matrix) in matrices.items():
        try:
            CoupledAdamW([{"params": [nn.Parameter(matrix)], "coupled": True, **options}])
        except ValueError as error:
            said[name] = str(error)
    try:
        CoupledAdamW([{"params": [], "coupled": True, "process_group": everyone}])
    except ValueError as error:
        said["nothing of shared rows"] = str(error)
    sharded = Training("FSDP2", 4).run(0, 1)
    alone = Training("one process", 4).run(0, 1)
    try:
        sharded.optimizer.load_state_dict(alone.optimizer.state_dict())
    except ValueError as error:
        said["plain state"] = str(error)
    return {"said": said}


def contract(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """What else a user of a sharded optimizer relies on; one entry each."""
    import copy
    import io

    facts = {}
    uneven = Training("FSDP2", 3).run(0, 1)
    table = uneven.bare.table
    state = uneven.optimizer.state[table]
    facts["first moment is placed like the matrix"] = (
        state["exp_avg"].placements == table.placements and state["exp_avg"].shape == table.shape
    )
    columns = Training("tensor parallel columns", 3).run(0, 1)
    shared = columns.optimizer.state[columns.bare.table]["exp_avg_sq"]
    facts["shared moment is spread with the columns"] = shared.placements[0].is_shard(0)
    facts["shared moment has the width of the whole matrix"] = shared.shape == (WIDTH,)

    uneven.optimizer.zero_grad()  # torch cannot copy the gradient of a DTensor
    twin = copy.deepcopy(uneven.optimizer)
    facts["a deep copy holds the same state"] = all(
        torch.equal(sharding.local(a), sharding.local(b))
        for p, q in zip(uneven.bare.parameters(), copied_parameters(twin), strict=True)
        for a, b in zip(uneven.optimizer.state[p].values(), twin.state[q].values(), strict=True)
    )

    shards = Training("row shards", 5).run(0, 1)
    file = io.BytesIO()
    torch.save(shards.optimizer.state_dict(), file)
    file.seek(0)
    group = shards.optimizer.param_groups[0]["process_group"]
    shards.optimizer.load_state_dict(torch.load(file))
    facts["the process group outlives a checkpoint"] = (
        shards.optimizer.param_groups[0]["process_group"] is group
    )

    loss = (uneven.bare.table**2).sum()
    uneven.run(1, 2)
    try:
        loss.backward()
        facts["autograd notices the step"] = False
    except RuntimeError as error:
        facts["autograd notices the step"] = "modified by an inplace operation" in str(error)
    events: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            events.append(name)
            return function(*arguments, **options)

        return call

    with (
        mock.patch.object(sharding, "_start", noted("start", sharding._start)),
        mock.patch.object(coupled_adamw, "_plain_step", noted("AdamW", coupled_adamw._plain_step)),
        mock.patch.object(sharding.Reduction, "wait", noted("wait", sharding.Reduction.wait)),
    ):
        shards.run(1, 2)
    facts["the reduction runs under the AdamW groups"] = events == ["start", "AdamW", "wait"]
    return {"facts": {name: bool(fact) for name, fact in facts.items()}}


def transposed(case: Case, world: int, folder: Path) -> dict[str, Any]:
    """A matrix of [width, tokens] in every placement, from AdamW's state and back to AdamW."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    rank = torch.distributed.get_rank()
    generator = torch.Generator().manual_seed(0)
    # Tokens that cannot be shared out evenly.
    start, adam, *steps = torch.randn(6, WIDTH, case.rows, generator=generator)

    def ends(place: Callable[[Tensor], Tensor], axis: int = 1) -> tuple[Tensor, ...]:
        def whole(tensor: Tensor) -> Tensor:
            return tensor.full_tensor() if sharding.is_dtensor(tensor) else tensor

        parameter = nn.Parameter(place(start.clone()))
        old = torch.optim.AdamW([parameter])
        parameter.grad = place(adam.clone())
        old.step()
        options = {"coupled": True, "vocabulary_dim": axis, "amsgrad": True}
        optimizer = CoupledAdamW([parameter], lr=1e-2, **options)
        optimizer.load_state_dict(old.state_dict())  # the mean of its moments over all processes
        for gradient in steps:
            parameter.grad = place(gradient.clone())
            optimizer.step()
        shared = optimizer.state[parameter]["exp_avg_sq"]
        back = CoupledAdamW([parameter], coupled=False)
        back.load_state_dict(optimizer.state_dict())
        second = back.state[parameter]["exp_avg_sq"]
        return whole(parameter.detach()), whole(shared), whole(second)

    mesh = _mesh(world)
    expected = ends(lambda tensor: tensor)
    pairs = {
        "and back to AdamW": (expected[2], expected[1][:, None].expand_as(start).contiguous()),
        **{
            str(placement): (
                ends(lambda tensor, at=placement: distribute_tensor(tensor, mesh, [at])),
                expected,
            )
            for placement in (Shard(1), Shard(0), Replicate())
        },
    }
    # Plain shards of columns: AdamW's state of them has no other processes, so from its own start.
    mine = torch.arange(case.rows).tensor_split(world)[rank]
    everyone = {"process_group": torch.distributed.group.WORLD}
    stepped = []
    for part, group in ((torch.arange(case.rows), {}), (mine, everyone)):
        parameter = nn.Parameter(start[:, part].clone())
        groups = [{"params": [parameter], **group}]
        optimizer = CoupledAdamW(groups, lr=1e-2, coupled=True, vocabulary_dim=1)
        for gradient in steps:
            parameter.grad = gradient[:, part].clone()
            optimizer.step()
        stepped.append(parameter.detach())
    pairs["process_group"] = (stepped[1], stepped[0][:, mine])
    return {
        "pairs": pairs,
        "ends along both axes": (expected[0], ends(lambda tensor: tensor, axis=0)[0]),
    }


def copied_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


KINDS: dict[str, Callable[[Case, int, Path], dict[str, Any]]] = {
    "train": train,
    "local means": local_means,
    "broken reduction": broken_reduction,
    "missing gradients": missing_gradients,
    "gradient placed otherwise": gradient_placed_otherwise,
    "switch": switch,
    "resume": resume,
    "resume from one file": resume_from_one_file,
    "switch from one file": switch_from_one_file,
    "zero redundancy": zero_redundancy,
    "sparse": sparse,
    "refusals": refusals,
    "contract": contract,
    "transposed": transposed,
}


def _cases() -> list[Case]:
    cases = [
        Case("train", name, rows, variant, (world,))
        for name, placement in PLACEMENTS.items()
        for world in placement.worlds
        for rows, variant in TRIALS[world]
    ]
    cases += [
        Case("local means", name, 10, worlds=placement.worlds[:1])
        for name, placement in PLACEMENTS.items()
        if placement.collectives
    ]
    cases += [
        Case("broken reduction", name, 10, mutation, worlds=(2,))
        for mutation in REDUCTION_MUTATIONS
        for name in ("FSDP2", "row shards")
    ]
    # The first of these worlds writes a checkpoint, all of them resume from it.
    cases += [
        Case("resume", "FSDP2", 11, "amsgrad, maximize", (2, 3, 4)),
        Case("resume", "FSDP2", 3, worlds=(2, 3, 4)),
        Case("resume", "tensor parallel rows", 11, worlds=(2, 3)),
        Case("resume", "tensor parallel columns", 11, "amsgrad, maximize", (2, 3)),
        Case("resume", "DTensor replicated", 11, worlds=(2, 3)),
        Case("resume", "FSDP2 over rows", 11, worlds=(4,)),
        Case("resume", "FSDP2 over columns", 11, worlds=(4,)),
        Case("resume from one file", "FSDP2", 11, worlds=(3,)),
        Case("resume from one file", "tensor parallel columns", 11, worlds=(3,)),
        Case("switch from one file", "FSDP2", 11, "amsgrad, maximize", worlds=(2, 3)),
        Case("switch from one file", "FSDP2", 3, worlds=(4,)),
        Case("switch from one file", "FSDP2 by column", 10, worlds=(2,)),
        Case("switch from one file", "tensor parallel rows", 11, worlds=(2,)),
        Case("switch from one file", "tensor parallel columns", 11, worlds=(3,)),
        Case("switch from one file", "FSDP2 over rows", 11, worlds=(4,)),
        Case("switch from one file", "FSDP2 over columns", 11, worlds=(4,)),
        Case("zero redundancy", "DDP", 10, worlds=(2, 3, 4)),
        Case("zero redundancy", "DDP", 11, "amsgrad, maximize", worlds=(3,)),
        Case("sparse", "row shards", 12, worlds=(2, 3, 4)),
        Case("sparse", "row shards", 11, "amsgrad, maximize", worlds=(3,)),
        Case("sparse", "row shards in pairs", 12, worlds=(4,)),
        Case("switch", "FSDP2", 11, worlds=(3,)),
        Case("switch", "tensor parallel columns", 11, worlds=(2,)),
        Case("switch", "row shards", 11, worlds=(3,)),
        Case("switch", "FSDP2 over rows", 11, worlds=(4,)),
        Case("missing gradients", "tensor parallel rows", 12, worlds=(2,)),
        Case("missing gradients", "row shards", 12, worlds=(2, 3)),
        Case("gradient placed otherwise", "DTensor replicated", 10, worlds=(2,)),
        Case("gradient placed otherwise", "tensor parallel rows", 10, worlds=(2,)),
        Case("refusals", "one process", 4, worlds=(2,)),
        Case("contract", "one process", 4, worlds=(2,)),
        Case("transposed", "one process", 7, worlds=(2,)),
    ]
    return cases


CASES = _cases()


def main(folder: Path, world: int, rank: int, log: Path) -> None:
    """Do all cases of a number of processes; the outcomes go to a file for each rank."""
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    faulthandler.dump_traceback_later(WORKER_SECONDS, exit=True)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{world}",
        world_size=world,
        rank=rank,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
    outcomes: dict[str, Any] = {}
    failed = False
    for case in CASES:
        if world not in case.worlds:
            continue
        try:
            outcomes[str(case)] = KINDS[case.kind](case, world, folder)
        except Exception:
            outcomes[str(case)] = {"error": traceback.format_exc()}
            failed = True
            # The others may wait in a collective that this process has left.
            break
    torch.save(outcomes, folder / f"outcomes-{world}-{rank}.pt")
    if failed:
        os._exit(1)
    torch.distributed.destroy_process_group()
