"""The run folder: every file in it is whole at any moment, or is mended when it is opened.

``config.json`` says what is trained on which text, and where it was computed; ``tokenizer.json`` is
the text's; ``metrics.jsonl`` has a line a step; ``checkpoint.pt`` holds model and optimizers.
"""

from __future__ import annotations

import json
import os
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import nn

from coupled_adam import files, provenance
from coupled_adam.errors import RefusedError
from coupled_adam.text import Corpus
from coupled_adam.text.corpus import TOKENIZER_FILE
from coupled_adam.training.config import CHANGEABLE, TrainingConfig

CONFIG_FILE, METRICS_FILE, CHECKPOINT_FILE = "config.json", "metrics.jsonl", "checkpoint.pt"
_LOCK_FILE = ".lock"
_BY_HAND = "the folder was changed by hand or damaged; use a new one"

Row = dict[str, float]
Checkpoint = dict[str, Any]


class Storage(Protocol):
    """What the training loop asks of the place where a run is kept."""

    def open(self) -> tuple[list[Row], Checkpoint | None]:
        """The rows up to the checkpoint, and the checkpoint, of what was done before."""

    def append(self, row: Row) -> None:
        """Keep a row of the metrics."""

    def save(self, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Keep a checkpoint."""

    def kept(self) -> str:
        """What would be left if the run ended now, for messages."""

    def close(self) -> None:
        """Let go."""


class NoFolder:
    """The storage of a run that is kept in memory only, and of all processes but the first."""

    def open(self) -> tuple[list[Row], Checkpoint | None]:
        """Nothing was done before."""
        return [], None

    def append(self, row: Row) -> None:
        """Nothing to do."""

    def save(self, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Nothing to do."""

    def kept(self) -> str:
        """Nothing."""
        return "nothing was saved (no folder was given)"

    def close(self) -> None:
        """Nothing to do."""


class RunFolder:
    """The storage of a run in a folder."""

    def __init__(
        self, path: str | Path, config: TrainingConfig, corpus: Corpus, device: str
    ) -> None:
        self.path = Path(path)
        self._config = config
        self._tokenizer = corpus.folder / TOKENIZER_FILE
        self._corpus = {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "training_tokens": len(corpus.train),
            "validation_tokens": len(corpus.validation),
        }
        self._device = device
        self._saved_step = 0
        self._metrics: BinaryIO | None = None
        self._held = ExitStack()

    def open(self) -> tuple[list[Row], Checkpoint | None]:
        """Make the folder, or read what an earlier call left in it; and keep others out of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_another_folder()  # before anything is put into it
        self._lock()
        files.remove_unfinished(
            self.path, CONFIG_FILE, TOKENIZER_FILE, METRICS_FILE, CHECKPOINT_FILE
        )
        rows: list[Row] = []
        checkpoint, sessions = None, []
        if (self.path / CONFIG_FILE).exists():
            rows, checkpoint = self.read()
            sessions = read_description(self.path)["sessions"]
        if self._saved_step < self._config.steps:  # else it is only read
            session = {**provenance.environment(self._device), "first_step": self._saved_step + 1}
            description = {
                "config": self._config.to_json(),
                "corpus": self._corpus,
                "sessions": [*sessions, session],
            }
            files.write_json(self.path / CONFIG_FILE, description)
        if not (self.path / TOKENIZER_FILE).exists():
            files.write_whole(self.path / TOKENIZER_FILE, self._tokenizer.read_bytes())
        # What was measured after the checkpoint will be measured again.
        files.write_whole(self.path / METRICS_FILE, "".join(map(_line, rows)).encode())
        # Without a buffer, so that whoever follows the file sees every step when it is done.
        self._metrics = self._held.enter_context((self.path / METRICS_FILE).open("ab", buffering=0))
        return rows, checkpoint

    def read(self) -> tuple[list[Row], Checkpoint | None]:
        """The metrics up to the checkpoint, and the checkpoint; nothing and None if none is there.

        Raises:
            RefusedError: if the folder holds another run, or a file is damaged.
        """
        self._check_same(read_description(self.path))
        if not (self.path / CHECKPOINT_FILE).exists():
            return [], None
        checkpoint = read_checkpoint(self.path)
        self._saved_step = checkpoint["step"]
        return read_rows(self.path, self._saved_step), checkpoint

    def append(self, row: Row) -> None:
        """Write a row of the metrics."""
        assert self._metrics is not None, "open() comes first"
        line = _line(row).encode()
        try:
            while line:  # a disk that fills up may take a part of it first
                line = line[self._metrics.write(line) :]
        except OSError as error:
            raise files.could_not_write(self.path / METRICS_FILE, error) from error

    def save(self, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Replace the checkpoint, with the metrics up to it safely on disk first."""
        assert self._metrics is not None, "open() comes first"
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise files.could_not_write(self.path / METRICS_FILE, error) from error
        state = {
            "step": step,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        with files.whole_file(self.path / CHECKPOINT_FILE) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # What torch says when it cannot finish an archive hides why.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        self._saved_step = step

    def kept(self) -> str:
        """Which checkpoint is in the folder."""
        if not self._saved_step:
            return "none was saved"
        return f"{self.path} keeps the checkpoint of step {self._saved_step}"

    def close(self) -> None:
        """Let go of the folder."""
        self._held.close()

    def _refuse_another_folder(self) -> None:
        ours = (_LOCK_FILE, CONFIG_FILE, TOKENIZER_FILE, METRICS_FILE, CHECKPOINT_FILE)
        others = [
            file.name
            for file in self.path.iterdir()
            if file.name not in ours and not file.name.endswith(files.UNFINISHED)
        ]
        if others and not (self.path / CONFIG_FILE).exists():
            raise RefusedError(
                f"{self.path} is not empty and holds no run: choose a new folder for this one"
            )

    def _lock(self) -> None:
        try:
            self._held.enter_context(files.locked(self.path / _LOCK_FILE, wait=False))
        except files.InUseError as error:
            raise files.InUseError(
                f"{self.path} is in use: another process trains there; wait for it or end it "
                "(the workers of a torchrun that was killed may still be alive)"
            ) from error

    def _check_same(self, found: dict[str, Any]) -> None:
        mine = {"config": self._config.to_json(), "corpus": self._corpus}
        different = [
            f"{name} is {theirs!r} there and {ours!r} here"
            for part in ("config", "corpus")
            for name, ours in mine[part].items()
            if (theirs := found[part].get(name)) != ours and name not in CHANGEABLE
        ]
        if different:
            raise RefusedError(
                f"{self.path} holds another run ({'; '.join(different)}): choose a new folder, "
                "or call with the configuration and text of that run to go on with it"
            )


def read_description(folder: Path) -> dict[str, Any]:
    """What ``config.json`` of a run folder says: ``config``, ``corpus`` and ``sessions``.

    Raises:
        RefusedError: if it does not describe a run.
        OSError: if it cannot be read.
    """
    path = folder / CONFIG_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        description: dict[str, Any] = {
            "config": dict(found["config"]),
            "corpus": dict(found["corpus"]),
            "sessions": [dict(session) for session in found["sessions"]],
        }
        config = TrainingConfig.from_json(description["config"], f"{path}, config")
        return {**description, "config": config.to_json()}
    except RefusedError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{path} does not describe a run ({error}): {_BY_HAND}") from error


def read_rows(folder: Path, last: int) -> list[Row]:
    """The rows of steps 0 to ``last``; what follows, a line that was cut off too, is ignored.

    Raises:
        RefusedError: if rows are missing.
    """
    path, rows = folder / METRICS_FILE, read_all_rows(folder)
    if [row["step"] for row in rows[: last + 1]] != list(range(last + 1)):
        raise RefusedError(f"{path} lacks steps before {last}, where the checkpoint is: {_BY_HAND}")
    return rows[: last + 1]


def read_all_rows(folder: Path) -> list[Row]:
    """The rows that a run has written, also those after its checkpoint; none if there is no file.

    A line that was cut off ends them.
    """
    path, rows = folder / METRICS_FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint of a run folder: ``step``, ``model`` and ``optimizers``, on the CPU.

    Raises:
        RefusedError: if it is damaged.
        OSError: if it cannot be read.
    """
    path = folder / CHECKPOINT_FILE
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums
        if damaged is not None:
            raise ValueError(f"{damaged} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a reader stumbles over, it is the file that is wrong
        raise RefusedError(
            f"{path} is damaged and cannot be read ({error}): restore it from a copy, or remove "
            "it and call train() again to start the run from its first step"
        ) from error


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
