"""One training loop: a configuration in, a run folder out."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from coupled_adam import geometry
from coupled_adam.gpt import GPT, GPTConfig
from coupled_adam.optim import CoupledAdamW, param_groups
from coupled_adam.text import Corpus
from coupled_adam.text.corpus import TOKENIZER_FILE

try:
    import fcntl
except ImportError:  # Windows cannot lock a folder
    fcntl = None

OPTIMIZERS = ("sgd", "adamw", "coupled")
PRECISIONS = ("float32", "bfloat16")
CONFIG_FILE, METRICS_FILE, CHECKPOINT_FILE = "config.json", "metrics.jsonl", "checkpoint.pt"
_UNFINISHED = ".part"
_PADDING = 64  # a vocabulary may be padded to a multiple of this, which GPUs multiply faster
_ADDED = ("accumulation", "precision", "compiled")  # settings that older run folders do not name
# How a run is computed, not what: like the number of processes, this may change on the way.
_CHANGEABLE = ("accumulation", "compiled")


class DivergedError(RuntimeError):
    """The loss became infinite, NaN or absurd; the last good checkpoint is untouched."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides how a run goes; the defaults are the paper's recipe.

    (Stollenwerk and Stollenwerk, 2025, for 125 million parameters; steps and batch are small.)

    Attributes:
        model: the shape of the model.
        optimizer: of the embedding matrix: "adamw", "coupled" or "sgd". All other parameters are
            trained by AdamW in every case.
        steps: number of optimizer steps.
        batch_size: sequences in a step; a step sees batch_size x context tokens.
        learning_rate: the peak, reached after the warm-up.
        warmup_steps: steps of linear warm-up from 0.
        final_share: the cosine ends at this share of the peak, in [0, 1].
        betas: decay rates of Adam's moments.
        eps: Adam's epsilon.
        weight_decay: on matrices, not on the token embeddings and not on vectors.
        gradient_clip: largest global gradient norm.
        sgd_multiplier: SGD's learning rate as a multiple of ``learning_rate``.
        sgd_momentum: SGD's momentum.
        seed: of the initial weights and the order of the batches.
        evaluate_every: steps between two measurements on the validation text.
        evaluation_tokens: about how many validation tokens are used for one measurement.
        checkpoint_every: steps between two checkpoints.
        accumulation: pieces that a step's batch is computed in, one after another, to save memory;
            the gradient is that of the whole batch. Several processes share the pieces.
        precision: "float32", or "bfloat16" to compute forward pass and loss under autocast;
            weights and optimizer state are float32 in both cases.
        compiled: compile the model with ``torch.compile``.
    """

    model: GPTConfig
    optimizer: str = "coupled"
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 6e-4
    warmup_steps: int = 100
    final_share: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    sgd_multiplier: float = 300.0
    sgd_momentum: float = 0.9
    seed: int = 0
    evaluate_every: int = 100
    evaluation_tokens: int = 16_384
    checkpoint_every: int = 100
    accumulation: int = 1
    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"TrainingConfig.optimizer must be one of {OPTIMIZERS}, not {self.optimizer!r}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"TrainingConfig.precision must be one of {PRECISIONS}, not {self.precision!r}"
            )
        at_least = {"warmup_steps": 0, "seed": 0} | dict.fromkeys(
            (
                "steps",
                "batch_size",
                "evaluate_every",
                "evaluation_tokens",
                "checkpoint_every",
                "accumulation",
            ),
            1,
        )
        for name, least in at_least.items():
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(
                    f"TrainingConfig.{name} must be a whole number from {least}, not {value!r}"
                )
        for name in ("learning_rate", "gradient_clip", "sgd_multiplier"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"TrainingConfig.{name} must be positive and finite, not {getattr(self, name)}"
                )
        if not 0 <= self.final_share <= 1:
            raise ValueError(
                f"TrainingConfig.final_share must be in [0, 1], not {self.final_share}"
            )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"TrainingConfig.accumulation ({self.accumulation}) must divide batch_size "
                f"({self.batch_size}): a step's batch is computed in equal pieces"
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1: linear warm-up, then half a cosine."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)


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
        folder: where the run is stored, or None.
    """

    config: TrainingConfig
    metrics: pd.DataFrame = field(repr=False)
    model: GPT = field(repr=False)
    folder: Path | None = None

    @property
    def final(self) -> pd.Series:
        """The last evaluated row of the metrics."""
        return self.metrics.dropna(subset="validation_loss").iloc[-1]


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

    A folder gets ``config.json`` (with text, versions and machine), ``tokenizer.json`` (the
    text's), ``metrics.jsonl`` and ``checkpoint.pt``. If it already holds a run of the same
    configuration, that run goes on from its checkpoint; on a CPU with the same number of threads
    it ends bit for bit where the uninterrupted run ends. A finished run is only loaded. Of the
    configuration ``accumulation`` and ``compiled`` may have changed, say on a GPU with less
    memory: the run is then the same up to rounding.

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
        ValueError: if corpus and model do not fit, the batch cannot be shared equally among the
            processes, or the folder is in use by another run, or holds something else, or files of
            the run that are damaged.
        DivergedError: if the loss stops being finite or exceeds three times that of guessing.
        OSError: if the folder cannot be written; what was there before stays as it was.
    """
    _check_corpus(config, corpus)
    processes = _Processes(config)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    optimizers = _make_optimizers(model, config)
    store = _Store(Path(folder), config, corpus, device) if folder is not None else None
    rows: list[dict[str, float]] = []
    first = 1

    def record(row: dict[str, float]) -> None:
        rows.append(row)
        if store is not None:
            store.append(row)

    def evaluate(step: int) -> dict[str, float]:
        loss = _validation_loss(model, corpus, config, processes)
        # Here, since the geometry of weights that are not finite is not defined.
        if not math.isfinite(loss):
            raise DivergedError(_divergence(step, f"validation loss {loss:.4g}", store))
        real_tokens = model.output_embedding.detach()[: corpus.vocabulary_size]
        return {"validation_loss": loss, **geometry.summary(real_tokens, corpus.counts)}

    with ExitStack() as at_end:
        if store is not None:
            at_end.callback(store.close)
            rows, checkpoint = processes.first_then_others(store.open, store.read)
            if checkpoint is not None:
                model.load_state_dict(checkpoint["model"])
                for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
                    optimizer.load_state_dict(state)
                first = checkpoint["step"] + 1
                del checkpoint  # or a second copy of the weights would stay in memory
            if processes.rank > 0:
                store = None
        trained: nn.Module = _Trained(model)
        if config.compiled:
            # Not for any shape: a second model of another shape would get slower code.
            trained = torch.compile(trained, dynamic=False)
        trained = processes.wrap(trained)
        too_large = 3 * math.log(config.model.vocabulary_size)
        step_tokens = config.batch_size * config.model.context
        steps = range(first, config.steps + 1)
        shown: dict[str, object] = {}
        batches = (processes.share(_batch(corpus, config, step, device)) for step in steps)
        bar = tqdm(
            desc=config.optimizer,
            total=config.steps * step_tokens,
            initial=(first - 1) * step_tokens,
            unit="token",
            unit_scale=True,
            leave=False,
            disable=not progress or processes.rank > 0,
        )
        at_end.enter_context(bar)
        if first == 1:
            record({"step": 0, "tokens": 0, **evaluate(0)})
        upcoming = next(batches, None)
        for step in steps:
            rate = config.learning_rate_at(step)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["lr_multiplier"]
                optimizer.zero_grad()
            tokens, targets = upcoming
            pieces = zip(
                tokens.chunk(processes.pieces), targets.chunk(processes.pieces), strict=True
            )
            loss, hidden = torch.zeros((), device=device), []
            for number, piece in enumerate(pieces, start=1):
                with processes.reduction(trained, number == processes.pieces):
                    with _precision(config, device):
                        part, states = trained(*piece)
                    (part / processes.pieces).backward()
                loss += part.detach() / processes.pieces
                if observe is not None:
                    hidden.append(states)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            upcoming = next(batches, None)  # read while a GPU is still busy with this step
            # The only wait for a GPU in a step, before the update: what has diverged must neither
            # move the weights nor be stored.
            mean_loss = processes.total(loss) / processes.count
            value, norm = torch.stack([mean_loss, norm.double()]).tolist()
            if not (math.isfinite(norm) and value < too_large):
                what = f"loss {value:.4g}, gradient norm {norm:.4g}"
                raise DivergedError(_divergence(step, what, store))
            for optimizer in optimizers:
                optimizer.step()
            if observe is not None:
                states = torch.cat(hidden).flatten(0, 1)
                observe(Step(step, value, rate, model, optimizers, states, targets.flatten()))
            row = {
                "step": step,
                "tokens": step * step_tokens,
                "loss": value,
                "learning_rate": rate,
                "gradient_norm": norm,
            }
            if step % config.evaluate_every == 0 or step == config.steps:
                row |= evaluate(step)
                shown["validation"] = f"{row['validation_loss']:.3f}"
            record(row)
            shown |= {"step": step, "loss": f"{value:.3f}"}
            bar.set_postfix(shown, refresh=False)
            bar.update(step_tokens)
            if store is not None and (step % config.checkpoint_every == 0 or step == config.steps):
                store.save(step, model, optimizers)
    return Run(config, pd.DataFrame(rows), model, Path(folder) if folder is not None else None)


class _Trained(nn.Module):
    """The model as it is trained. A hook would not do: compiled code may pass it by."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and what met the output embeddings, [B, T, H]."""
        hidden = self.model.hidden_states(tokens)
        return self.model.loss(hidden, targets), hidden.detach()


class _Processes:
    """The processes that train together; just this one where there is no process group."""

    def __init__(self, config: TrainingConfig) -> None:
        self.rank, self.count = self.present()
        if config.batch_size % self.count:
            raise ValueError(
                f"a batch of {config.batch_size} sequences cannot be shared equally among "
                f"{self.count} processes: choose batch_size as a multiple of their number"
            )
        share = config.batch_size // self.count
        # Equal pieces, of at most the size that one process alone would compute at once.
        fewest = math.ceil(config.accumulation / self.count)
        self.pieces = next(pieces for pieces in range(fewest, share + 1) if share % pieces == 0)

    @staticmethod
    def present() -> tuple[int, int]:
        """The number of this process, from 0, and how many there are."""
        if not (dist.is_available() and dist.is_initialized()):
            return 0, 1
        return dist.get_rank(), dist.get_world_size()

    def first_then_others(self, first: Callable[[], Any], others: Callable[[], Any]) -> Any:
        """Let the first process act, and only then the others."""
        result = first() if self.rank == 0 else None
        if self.count > 1:
            dist.barrier()
        return result if self.rank == 0 else others()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it has to be called, so that gradients are averaged over processes."""
        return DistributedDataParallel(model) if self.count > 1 else model

    def reduction(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Average the gradients once a step: in the backward pass of the last piece."""
        return nullcontext() if self.count == 1 or last else model.no_sync()

    def share(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """This process's sequences."""
        tokens, targets = (part.chunk(self.count)[self.rank] for part in batch)
        return tokens, targets

    def total(self, value: Tensor) -> Tensor:
        """The sum of a number over the processes, in float64."""
        everywhere = value.double()
        if self.count > 1:
            dist.all_reduce(everywhere)
        return everywhere


def _precision(config: TrainingConfig, device: str) -> AbstractContextManager[Any]:
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def padded_vocabulary(size: int) -> int:
    """A vocabulary size rounded up to a multiple of 64: 50,257 becomes GPT-2's usual 50,304."""
    return math.ceil(size / _PADDING) * _PADDING


def _check_corpus(config: TrainingConfig, corpus: Corpus) -> None:
    padded = padded_vocabulary(corpus.vocabulary_size)
    if not corpus.vocabulary_size <= config.model.vocabulary_size <= padded:
        raise ValueError(
            f"the corpus {corpus.name!r} has {corpus.vocabulary_size} tokens, the model "
            f"{config.model.vocabulary_size}: set GPTConfig(vocabulary_size="
            f"{corpus.vocabulary_size})"
        )
    for part, tokens in (("training", corpus.train), ("validation", corpus.validation)):
        if len(tokens) <= config.model.context:
            raise ValueError(
                f"the {part} text of {corpus.name!r} has {len(tokens)} tokens, but one sequence "
                f"needs {config.model.context + 1}: use more text or a shorter context"
            )


def _make_optimizers(model: GPT, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    embeddings = {
        id(model.embedding): model.embedding,
        id(model.output_embedding): model.output_embedding,
    }
    groups = param_groups(model, config.weight_decay, embeddings=list(embeddings.values()))
    for group in groups:
        group["lr_multiplier"] = 1.0
        group["coupled"] = group["coupled"] and config.optimizer == "coupled"
    of_embeddings, *others = groups
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "sgd":
        sgd_group = {"params": of_embeddings["params"], "lr_multiplier": config.sgd_multiplier}
        optimizers.append(
            torch.optim.SGD([sgd_group], lr=config.learning_rate, momentum=config.sgd_momentum)
        )
        groups = others
    optimizers.append(
        CoupledAdamW(
            groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
        )
    )
    return optimizers


def _batch(corpus: Corpus, config: TrainingConfig, step: int, device: str) -> tuple[Tensor, Tensor]:
    """The batch of a step: a function of seed and step alone, so that resuming needs no state."""
    length = config.model.context
    random = np.random.default_rng([config.seed, step])
    starts = random.integers(0, len(corpus.train) - length, size=config.batch_size)
    return _windows(corpus.train, starts, length, device)


def _windows(
    tokens: np.ndarray, starts: np.ndarray, length: int, device: str
) -> tuple[Tensor, Tensor]:
    picked = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    both = torch.from_numpy(picked)
    if device.startswith("cuda"):
        both = both.pin_memory()  # so that the copy does not wait for the GPU
    both = both.to(device, non_blocking=True)
    return both[:, :-1], both[:, 1:]


@torch.no_grad()
def _validation_loss(
    model: GPT, corpus: Corpus, config: TrainingConfig, processes: _Processes
) -> float:
    """Mean loss on evenly spaced windows of the validation text."""
    length, device = config.model.context, str(model.embedding.device)
    count = max(1, min(config.evaluation_tokens, len(corpus.validation) - 1) // length)
    starts = np.linspace(0, len(corpus.validation) - length - 1, count).astype(np.int64)
    at_once = config.batch_size // (processes.pieces * processes.count)
    total = torch.zeros((), dtype=torch.float64, device=device)
    mine = starts[processes.rank :: processes.count]  # none, if there are fewer than processes
    for some in np.array_split(mine, math.ceil(len(mine) / at_once)) if len(mine) else ():
        with _precision(config, device):
            loss = model(*_windows(corpus.validation, some, length, device))
        total += loss.double() * len(some)
    return processes.total(total).item() / count


def _divergence(step: int, what: str, store: _Store | None) -> str:
    saved = "nothing was saved (no folder was given)"
    if store is not None:
        kept = store.saved_step
        saved = f"{store.folder} keeps the checkpoint of step {kept}" if kept else "none was saved"
    return (
        f"training diverged at step {step}: {what}; {saved}. "
        "Try a lower learning rate or a longer warm-up"
    )


class _Store:
    """A run folder. Every file in it is whole at any moment, or is mended when it is opened."""

    def __init__(self, folder: Path, config: TrainingConfig, corpus: Corpus, device: str) -> None:
        self.folder = folder
        self.saved_step = 0
        self._tokenizer = corpus.folder / TOKENIZER_FILE
        self._description = {
            "config": json.loads(json.dumps(asdict(config), default=int)),  # NumPy's too
            "corpus": {
                "name": corpus.name,
                "fingerprint": corpus.fingerprint,
                "training_tokens": len(corpus.train),
                "validation_tokens": len(corpus.validation),
            },
            "environment": environment(device),
        }
        self._metrics: Any = None
        self._locked: int | None = None

    def open(self) -> tuple[list[dict[str, float]], dict[str, Any] | None]:
        """Make the folder, or read what an earlier call left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        for name in (CONFIG_FILE, TOKENIZER_FILE, METRICS_FILE, CHECKPOINT_FILE):
            for unfinished in self.folder.glob(f".{name}.*{_UNFINISHED}"):  # of a killed process
                unfinished.unlink()
        rows, checkpoint, path = [], None, self.folder / CONFIG_FILE
        if path.exists():
            rows, checkpoint = self.read()
            if _read_description(path)["config"] != self._description["config"]:
                stored = json.loads(path.read_text(encoding="utf-8"))
                self._write_description({**stored, "config": self._description["config"]})
        elif any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} is not empty and holds no run: choose a new folder for this one"
            )
        else:
            self._write_description(self._description)
        if not (self.folder / TOKENIZER_FILE).exists():
            with whole_file(self.folder / TOKENIZER_FILE) as file:
                file.write(self._tokenizer.read_bytes())
        # What was measured after the checkpoint will be measured again.
        with whole_file(self.folder / METRICS_FILE) as file:
            file.write("".join(_line(row) for row in rows).encode())
        # Without a buffer, so that whoever follows the file sees every step when it is done.
        self._metrics = (self.folder / METRICS_FILE).open("ab", buffering=0)
        return rows, checkpoint

    def read(self) -> tuple[list[dict[str, float]], dict[str, Any] | None]:
        """The metrics up to the checkpoint, and the checkpoint; nothing and None if none is there.

        Raises:
            ValueError: if the folder holds another run, or a file is damaged.
        """
        self._check_same(_read_description(self.folder / CONFIG_FILE))
        if not (self.folder / CHECKPOINT_FILE).exists():
            return [], None
        checkpoint = _read_checkpoint(self.folder / CHECKPOINT_FILE)
        self.saved_step = checkpoint["step"]
        return _read_rows(self.folder / METRICS_FILE, self.saved_step), checkpoint

    def _lock(self) -> None:
        """Keep others from writing here; the operating system lets go when this process ends."""
        if fcntl is None:
            return
        self._locked = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.folder} is in use: another process trains there; wait for it or end it "
                "(the workers of a torchrun that was killed may still be alive)"
            ) from error
        except OSError:  # some network drives have no locks
            pass

    def _write_description(self, description: dict[str, Any]) -> None:
        with whole_file(self.folder / CONFIG_FILE) as file:
            file.write(json.dumps(description, indent=1).encode())

    def _check_same(self, found: dict[str, Any]) -> None:
        mine = self._description
        different = [
            f"{name} is {theirs!r} there and {ours!r} here"
            for part in ("config", "corpus")
            for name, ours in mine[part].items()
            if (theirs := found[part].get(name)) != ours and name not in _CHANGEABLE
        ]
        if different:
            raise ValueError(
                f"{self.folder} holds another run ({'; '.join(different)}): choose a new folder, "
                "or call with the configuration and text of that run to go on with it"
            )

    def append(self, row: dict[str, float]) -> None:
        """Write a row of the metrics."""
        line = _line(row).encode()
        try:
            while line:  # a disk that fills up may take a part of it first
                line = line[self._metrics.write(line) :]
        except OSError as error:
            raise _could_not_write(self.folder / METRICS_FILE, error) from error

    def save(self, step: int, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
        """Replace the checkpoint, with the metrics up to it safely on disk first."""
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise _could_not_write(self.folder / METRICS_FILE, error) from error
        state = {
            "step": step,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        with whole_file(self.folder / CHECKPOINT_FILE) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # What torch says when it cannot finish an archive hides why.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        self.saved_step = step

    def close(self) -> None:
        """Let go of the folder."""
        if self._metrics is not None:
            self._metrics.close()
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None


def _line(row: dict[str, float]) -> str:
    return json.dumps(row) + "\n"


def _read_rows(path: Path, last: int) -> list[dict[str, float]]:
    """The rows of steps 0 to ``last``; what follows, a line that was cut off too, is ignored."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if [row["step"] for row in rows[: last + 1]] != list(range(last + 1)):
        raise ValueError(
            f"{path} lacks steps before {last}, where the checkpoint is: the folder was changed "
            "by hand or damaged; use a new one"
        )
    return rows[: last + 1]


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        added = {name: getattr(TrainingConfig, name) for name in _ADDED}  # their defaults
        return {
            "config": {**added, **description["config"]},
            "corpus": dict(description["corpus"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not describe a run ({error}): the folder was changed by hand or "
            "damaged; use a new one"
        ) from error


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums
        if damaged is not None:
            raise ValueError(f"{damaged} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a reader stumbles over, it is the file that is wrong
        raise ValueError(
            f"{path} is damaged and cannot be read ({error}): restore it from a copy, or remove "
            "it and call train() again to start the run from its first step"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Any]:
    """Write a binary file that appears under its name whole or not at all.

    Args:
        path: the final name; an existing file is replaced in one step.

    Yields:
        The open file to write into.

    Raises:
        OSError: if it cannot be written (a full disk, say); ``path`` is then as it was.
    """
    # Not tempfile's: nobody but the owner may read what that makes.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _could_not_write(path, error) from error
        raise


def _could_not_write(path: Path, error: OSError) -> OSError:
    reason = f"could not write {path}: {error.strerror or error}"
    return OSError(error.errno, f"{reason}; free space or choose another folder, then call again")


def commit() -> str | None:
    """The library's commit, with "-dirty" if anything tracked was changed since; None if unknown.

    It is known where the library runs from a checkout of the project, and not where it was
    installed from a wheel.
    """
    here = Path(__file__)
    for arguments in (
        ["ls-files", "--error-unmatch", here.name],  # or it lies in somebody else's checkout
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    ):
        try:
            answer = subprocess.run(
                ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
    return answer.stdout.strip()


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a number depends on besides data: versions, commit, machine, threads, time."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "device": f"{device} ({name})",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "platform": platform.system(),
        "threads": torch.get_num_threads(),
        "processes": _Processes.present()[1],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def load_run(folder: str | Path) -> Run:
    """Read a stored run without its text.

    Args:
        folder: a run folder that ``train`` wrote.

    Returns:
        The run as of its last checkpoint.

    Raises:
        FileNotFoundError: if the folder holds no run, or one without a checkpoint yet.
        ValueError: if a file of the run is damaged.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, CHECKPOINT_FILE):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} has no {name}: it is not a run folder, or the run was interrupted "
                "before its first checkpoint; call train() again to go on"
            )
    config = _config_from(_read_description(folder / CONFIG_FILE)["config"])
    checkpoint = _read_checkpoint(folder / CHECKPOINT_FILE)
    model = GPT(config.model)
    model.load_state_dict(checkpoint["model"])
    rows = _read_rows(folder / METRICS_FILE, checkpoint["step"])
    return Run(config, pd.DataFrame(rows), model, folder)


def _config_from(values: dict[str, Any]) -> TrainingConfig:
    known = {f.name: values[f.name] for f in fields(TrainingConfig)}
    known["model"] = GPTConfig(**known["model"])
    known["betas"] = tuple(known["betas"])
    return TrainingConfig(**known)
