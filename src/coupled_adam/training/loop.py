"""One training loop: a configuration and a text in, a run out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from coupled_adam import geometry
from coupled_adam.arms import Arm, arm, make_optimizers
from coupled_adam.errors import RefusedError
from coupled_adam.gpt import GPT
from coupled_adam.text import Corpus
from coupled_adam.text.windows import random_windows, spaced_windows
from coupled_adam.training.config import TrainingConfig, padded_vocabulary
from coupled_adam.training.folder import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    NoFolder,
    Row,
    RunFolder,
    Storage,
    read_checkpoint,
    read_description,
    read_rows,
)
from coupled_adam.training.processes import Processes

Batch = tuple[Tensor, Tensor]


class DivergedError(RuntimeError):
    """The loss became infinite, NaN or absurd; the last good checkpoint is untouched.

    Attributes:
        step: at which it was noticed.
        what: the values that were seen.
        kept: what is left on disk.
        rows: of the metrics, of the steps before.
    """

    def __init__(self, step: int, what: str, kept: str, rows: list[Row]) -> None:
        self.step, self.what, self.kept, self.rows = step, what, kept, rows
        super().__init__(step, what, kept, rows)  # all of them, so that it can be pickled

    def __str__(self) -> str:
        """What happened, what is left, and what to try."""
        return (
            f"training diverged at step {self.step}: {self.what}; {self.kept}. "
            "Try a lower learning rate or a longer warm-up"
        )


@dataclass
class Step:
    """What an observer is shown after each optimizer step.

    Attributes:
        number: the step, from 1.
        loss: training loss of the step's batch, before the update, in nats.
        learning_rate: the step's learning rate.
        model: the model, after the update.
        optimizers: one optimizer, or two if the embedding has its own (SGD).
        hidden_states: what met the output embeddings, [B x T, H], detached.
        targets: the tokens that were to be predicted, [B x T].

    Among several processes B is the share of this one.
    """

    number: int
    loss: float
    learning_rate: float
    model: GPT
    optimizers: list[torch.optim.Optimizer]
    hidden_states: Tensor
    targets: Tensor


@dataclass
class Run:
    """A finished run.

    Attributes:
        config: what was asked for.
        metrics: one row a step: loss, learning rate, gradient norm before clipping, and at the
            evaluated steps (NaN elsewhere) validation loss and the measures of
            ``geometry.summary`` on the output embeddings. Step 0 is the untrained model.
        model: the trained model.
        optimizers: with their states; none if the run was read without them.
        folder: where the run is stored, or None.
    """

    config: TrainingConfig
    metrics: pd.DataFrame = field(repr=False)
    model: GPT = field(repr=False)
    optimizers: list[torch.optim.Optimizer] = field(repr=False, default_factory=list)
    folder: Path | None = None

    @property
    def final(self) -> pd.Series:
        """The last evaluated row of the metrics."""
        return self.metrics.dropna(subset="validation_loss").iloc[-1]

    @property
    def second_moment(self) -> np.ndarray | None:
        """Adam's second moment of the output embeddings at the end, bias-corrected.

        [V, H], or [H] if coupled; None if the embeddings were trained without one, as by SGD.
        """
        weight = self.model.output_embedding
        for optimizer in self.optimizers:
            state = optimizer.state.get(weight, {})
            if "exp_avg_sq" in state:
                (group,) = (g for g in optimizer.param_groups if _holds(g["params"], weight))
                correction = 1 - group["betas"][1] ** state["step"].item()
                return (state["exp_avg_sq"].double() / correction).cpu().numpy()
        return None


def train(
    config: TrainingConfig,
    corpus: Corpus,
    folder: str | Path | None = None,
    *,
    device: str = "cpu",
    observe: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> Run:
    """Train a model, or go on with a run that was interrupted.

    A folder gets ``config.json`` (with text, versions and machine of every session),
    ``tokenizer.json`` (the text's), ``metrics.jsonl`` and ``checkpoint.pt``. If it already holds a
    run of the same configuration, that run goes on from its checkpoint; on a CPU with the same
    number of threads it ends bit for bit where the uninterrupted run ends. A finished run is only
    loaded. Of the configuration ``accumulation`` and ``compiled`` may have changed, say on a GPU
    with less memory: the run is then the same up to rounding.

    Where ``torch.distributed`` is initialised, as under torchrun, every process calls ``train``
    and computes its share of each batch (DistributedDataParallel); the first one writes the
    folder, which all must be able to read. The run is that of one process up to rounding.

    A model may have more rows than the corpus has tokens, up to the next multiple of 64. These
    rows pad the vocabulary: they are trained and enter the coupled mean as all others do, but the
    measures of ``geometry`` leave them out.

    Args:
        config: model, recipe and seed.
        corpus: tokens to train on and to validate with.
        folder: the run folder, made if needed; None keeps the run in memory only.
        device: where to compute, for example "cpu" or "cuda".
        observe: called after every step that is computed here, with a ``Step``.
        progress: show a progress bar on stderr, with tokens per second, time left and losses. In
            a log file, the environment's TQDM_MININTERVAL=60 makes it one entry a minute.

    Returns:
        The run, with its metrics and the trained model.

    Raises:
        RefusedError: if corpus and model do not fit, the batch cannot be shared equally among the
            processes, or the folder is in use by another run, or holds something else, or files of
            the run that are damaged.
        DivergedError: if the loss stops being finite or exceeds three times that of guessing.
        OSError: if the folder cannot be written; what was there before stays as it was.
    """
    _check_corpus(config, corpus)
    chosen = arm(config.optimizer)
    processes = Processes(config.batch_size, config.accumulation)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    optimizers = _optimizers(model, config)
    storage: Storage = NoFolder() if folder is None else RunFolder(folder, config, corpus, device)

    with ExitStack() as at_end:
        at_end.callback(storage.close)
        others = storage.read if isinstance(storage, RunFolder) else storage.open
        rows, checkpoint = processes.first_then_others(storage.open, others)
        done = 0
        if checkpoint is not None:
            done = _restore(model, optimizers, checkpoint)
            del checkpoint  # or a second copy of the weights would stay in memory
        if processes.rank > 0:
            storage = NoFolder()
        trained: nn.Module = _Trained(model, chosen)
        if config.compiled:
            # Not for any shape: a second model of another shape would get slower code.
            trained = cast(nn.Module, torch.compile(trained, dynamic=False))
        trained = processes.wrap(trained)
        shown = _Progress(config, done, progress and processes.rank == 0)
        at_end.enter_context(shown.bar)
        too_large = 3 * math.log(config.model.vocabulary_size)

        def measured(step: int) -> Row:
            loss = _validation_loss(model, corpus, config, processes)
            # Here, since the geometry of weights that are not finite is not defined.
            if not math.isfinite(loss):
                what = f"validation loss {loss:.4g}"
                raise DivergedError(step, what, storage.kept(), rows)
            real_tokens = model.output_embedding.detach()[: corpus.vocabulary_size]
            return {"validation_loss": loss, **geometry.summary(real_tokens, corpus.counts)}

        def keep(row: Row) -> None:
            rows.append(row)
            storage.append(row)

        if not rows:
            keep({"step": 0, "tokens": 0, **measured(0)})
        batches = _batches(corpus, config, done + 1, device, processes)
        upcoming = next(batches, None)
        for step in range(done + 1, config.steps + 1):
            assert upcoming is not None
            rate = _set_learning_rate(optimizers, config, step)
            loss, hidden = _backward(trained, upcoming, config, processes, observe is not None)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            targets = upcoming[1]
            upcoming = next(batches, None)  # read while a GPU is still busy with this step
            # The only wait for a GPU in a step, before the update: what has diverged must neither
            # move the weights nor be stored.
            mean_loss = processes.total(loss) / processes.count
            value, length = torch.stack([mean_loss, norm.double()]).tolist()
            if not (math.isfinite(length) and value < too_large):
                what = f"loss {value:.4g}, gradient norm {length:.4g}"
                raise DivergedError(step, what, storage.kept(), rows)
            for optimizer in optimizers:
                optimizer.step()
            if chosen.repair is not None:
                chosen.repair(model)
            if observe is not None:
                states = torch.cat(hidden).flatten(0, 1)
                observe(Step(step, value, rate, model, optimizers, states, targets.flatten()))
            row: Row = {
                "step": step,
                "tokens": step * config.step_tokens,
                "loss": value,
                "learning_rate": rate,
                "gradient_norm": length,
            }
            if step % config.evaluate_every == 0 or step == config.steps:
                row |= measured(step)
            keep(row)
            shown.show(row)
            if step % config.checkpoint_every == 0 or step == config.steps:
                storage.save(step, model, optimizers)
    stored = Path(folder) if folder is not None else None
    return Run(config, pd.DataFrame(rows), model, optimizers, stored)


def load_run(folder: str | Path) -> Run:
    """Read a stored run without its text and without the states of its optimizers.

    Args:
        folder: a run folder that ``train`` wrote.

    Returns:
        The run as of its last checkpoint.

    Raises:
        FileNotFoundError: if the folder holds no run, or one without a checkpoint yet.
        RefusedError: if a file of the run is damaged.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, CHECKPOINT_FILE):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} has no {name}: it is not a run folder, or the run was interrupted "
                "before its first checkpoint; call train() again to go on"
            )
    config = TrainingConfig.from_json(read_description(folder)["config"], str(folder))
    checkpoint = read_checkpoint(folder)
    model = GPT(config.model)
    model.load_state_dict(checkpoint["model"])
    rows = read_rows(folder, checkpoint["step"])
    return Run(config, pd.DataFrame(rows), model, folder=folder)


def initial_embedding(config: TrainingConfig) -> Tensor:
    """The output embeddings with which ``train`` begins, [V, H]; a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GPT(config.model).output_embedding.detach()


def _holds(parameters: list[Tensor], weight: Tensor) -> bool:
    return any(parameter is weight for parameter in parameters)


class _Trained(nn.Module):
    """The model as it is trained. A hook would not do: compiled code may pass it by."""

    def __init__(self, model: GPT, chosen: Arm) -> None:
        super().__init__()
        self.model = model
        self.arm = chosen

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is minimised, the loss without the arm's term, and the hidden states, [B, T, H]."""
        hidden = self.model.hidden_states(tokens)
        if self.arm.loss_term is None:
            loss = self.model.loss(hidden, targets)
            return loss, loss.detach(), hidden.detach()
        logits = self.model.head(hidden).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten())
        term = self.arm.loss_term(logits, self.model.output_embedding)
        return loss + term, loss.detach(), hidden.detach()


def _check_corpus(config: TrainingConfig, corpus: Corpus) -> None:
    padded = padded_vocabulary(corpus.vocabulary_size)
    if not corpus.vocabulary_size <= config.model.vocabulary_size <= padded:
        raise RefusedError(
            f"the corpus {corpus.name!r} has {corpus.vocabulary_size} tokens, the model "
            f"{config.model.vocabulary_size}: set GPTConfig(vocabulary_size="
            f"{corpus.vocabulary_size})"
        )
    for part, tokens in (("training", corpus.train), ("validation", corpus.validation)):
        if len(tokens) <= config.model.context:
            raise RefusedError(
                f"the {part} text of {corpus.name!r} has {len(tokens)} tokens, but one sequence "
                f"needs {config.model.context + 1}: use more text or a shorter context"
            )


def _optimizers(model: GPT, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    return make_optimizers(
        model,
        config.optimizer,
        learning_rate=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        multiplier=config.embedding_multiplier,
        embedding=config.embedding_settings,
    )


def _restore(
    model: GPT, optimizers: list[torch.optim.Optimizer], checkpoint: dict[str, Any]
) -> int:
    """Take over what a checkpoint holds; returns its step."""
    model.load_state_dict(checkpoint["model"])
    for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return checkpoint["step"]


def _set_learning_rate(
    optimizers: list[torch.optim.Optimizer], config: TrainingConfig, step: int
) -> float:
    rate = config.learning_rate_at(step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_multiplier"]
    return rate


def _backward(
    trained: nn.Module, batch: Batch, config: TrainingConfig, processes: Processes, watched: bool
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of a batch; returns this process's loss, and the hidden states if watched."""
    device = batch[0].device
    trained.zero_grad()
    loss, hidden = torch.zeros((), device=device), []
    pieces = zip(*(part.chunk(processes.pieces) for part in batch), strict=True)
    for number, piece in enumerate(pieces, start=1):
        with processes.reduction(trained, number == processes.pieces):
            with _precision(config, device.type):
                minimised, part, states = trained(*piece)
            (minimised / processes.pieces).backward()
        loss += part / processes.pieces
        if watched:
            hidden.append(states)
    return loss, hidden


def _batches(
    corpus: Corpus, config: TrainingConfig, first: int, device: str, processes: Processes
) -> Iterator[Batch]:
    """This process's part of every batch, from a step on."""
    for step in range(first, config.steps + 1):
        yield processes.share(_batch(corpus, config, step, device))


def _batch(corpus: Corpus, config: TrainingConfig, step: int, device: str) -> Batch:
    """The batch of a step: a function of seed and step alone, so that resuming needs no state."""
    random = np.random.default_rng([config.seed, step])
    windows = random_windows(corpus.train, config.model.context, config.batch_size, random)
    return _on_device(windows, device)


def _on_device(windows: np.ndarray, device: str) -> Batch:
    """Windows of T + 1 tokens as the tokens that are read and those that follow, [B, T] each."""
    both = torch.from_numpy(windows)
    if device.startswith("cuda"):
        both = both.pin_memory()  # so that the copy does not wait for the GPU
    both = both.to(device, non_blocking=True)
    return both[:, :-1], both[:, 1:]


@torch.no_grad()
def _validation_loss(
    model: GPT, corpus: Corpus, config: TrainingConfig, processes: Processes
) -> float:
    """Mean loss on evenly spaced windows of the validation text."""
    device = str(model.embedding.device)
    windows = spaced_windows(corpus.validation, config.model.context, config.evaluation_tokens)
    at_once = config.batch_size // (processes.pieces * processes.count)
    total = torch.zeros((), dtype=torch.float64, device=device)
    mine = windows[processes.rank :: processes.count]  # none, if there are fewer than processes
    for some in np.array_split(mine, math.ceil(len(mine) / at_once)) if len(mine) else ():
        with _precision(config, device):
            loss = model(*_on_device(some, device))
        total += loss.double() * len(some)
    return processes.total(total).item() / len(windows)


def _precision(config: TrainingConfig, device: str) -> AbstractContextManager[object]:
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


class _Progress:
    """The progress bar, with the losses as they were last measured."""

    def __init__(self, config: TrainingConfig, done: int, shown: bool) -> None:
        self._step_tokens = config.step_tokens
        self._said: dict[str, object] = {}
        self.bar = tqdm(
            desc=config.optimizer,
            total=config.steps * config.step_tokens,
            initial=done * config.step_tokens,
            unit="token",
            unit_scale=True,
            leave=False,
            disable=not shown,
        )

    def show(self, row: Row) -> None:
        if "validation_loss" in row:
            self._said["validation"] = f"{row['validation_loss']:.3f}"
        self._said |= {"step": row["step"], "loss": f"{row['loss']:.3f}"}
        self.bar.set_postfix(self._said, refresh=False)
        self.bar.update(self._step_tokens)
