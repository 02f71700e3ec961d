"""The two newest states of a training on disk: written whole, checked before they are believed.

torch's file is a zip archive, which holds a CRC-32 of each of its records; reading all of them tells a sound
file from one with a flipped byte. Nothing in it is ever run: only tensors and plain values are unpickled.
"""

import logging
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io import CheckpointIO

from histo_ssl.folders.artifacts import TEMPORARY, publish
from histo_ssl.parallel.sharding import norms

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
ASKS_FOR_CODE = re.compile(r"GLOBAL (\S+)")  # in torch's message, what a pickle wanted to import
# What zipfile and torch raise of bytes that are not a checkpoint.
TORN = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Checkpoints(CheckpointIO):
    """`last.ckpt` and `previous.ckpt` in a folder, as Lightning reads and writes them.

    Attributes:
        healthy: the newest that is known to be sound, None if there is none.
        healthy_step: optimiser steps that had been taken then.
        failure: why the newest could not be written, None if it was.
    """

    def __init__(self, folder: Path) -> None:
        self.last, self.previous = folder / LAST, folder / PREVIOUS
        self.healthy: Path | None = None
        self.healthy_step = 0
        self.failure: OSError | None = None

    def find(self) -> Path | None:
        """The newest sound checkpoint, None where there is no file; a torn `last.ckpt` costs a warning.

        Raises:
            ValueError: there are files, and none is sound; or one asks to run code.
        """
        torn: dict[Path, str] = {}
        for path in (self.last, self.previous):
            reason = damage(path) if path.exists() else None
            if reason:
                torn[path] = reason
            elif path.exists():
                self._warn(torn, instead=path)
                self.healthy = path
                return path
        if torn:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in torn.items())
            raise ValueError(f"no checkpoint can be read ({reasons}); delete them to start over")
        return None

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,
    ) -> None:
        """Write `last.ckpt`, whatever `path`; what it was before is `previous.ckpt` from then on.

        An error is kept in `failure` rather than raised, so that all ranks can hear of it.
        """
        temporary = self.last.with_name(f"{TEMPORARY}{LAST}")
        step = int(checkpoint["global_step"])
        try:
            _write(checkpoint, temporary)
            # a kill between the two renames leaves previous.ckpt, from which the training goes on
            if self.last.exists() and self.healthy != self.previous:
                self.last.replace(self.previous)
            publish(temporary, self.last)
        except OSError as error:
            self.failure = OSError(_sentence(self.last, step=step, error=error, kept=self.told()))
            self.failure.__cause__ = error
        else:
            self.healthy, self.healthy_step, self.failure = self.last, step, None
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Content of a checkpoint that `find` named: tensors and plain values, never anything else."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        self.healthy_step = int(checkpoint["global_step"])
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)

    def told(self) -> str:
        """Which checkpoint a training can go on from, for messages."""
        if self.healthy is None:
            return "no checkpoint was written yet"
        return f"the last healthy checkpoint is {self.healthy} of step {self.healthy_step}"

    def _warn(self, torn: dict[Path, str], *, instead: Path) -> None:
        for path, reason in torn.items():
            log.warning("%s: %s; going on from the one before it, %s", path, reason, instead)


class KeepCheckpoints(Callback):
    """Writes the whole state of training: every so many steps, when an epoch ends, and when asked to."""

    def __init__(self, files: Checkpoints, *, every_n_steps: int, steps_per_epoch: int) -> None:
        self.files, self.every_n_steps, self.steps_per_epoch = files, every_n_steps, steps_per_epoch
        self._written_at = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of the step that training goes on from: it is written already."""
        self._written_at = self.files.healthy_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, if this step is due (accumulated batches share a step)."""
        step = trainer.global_step
        if step and (step % self.every_n_steps == 0 or step % self.steps_per_epoch == 0):
            self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write, unless this step is written already. All ranks take part, rank 0 writes.

        Raises:
            OSError: the disk would not take it; `last.ckpt` is as it was.
            FloatingPointError: a weight is not finite; a checkpoint is always one to go on from.
        """
        if trainer.global_step == self._written_at:
            return
        self._refuse_unless_finite(trainer)
        trainer.save_checkpoint(self.files.last)
        failure = self.files.failure
        if trainer.strategy.reduce_boolean_decision(failure is not None, all=False):
            raise failure or OSError("rank 0 could not write its checkpoint; its own message says why")
        self._written_at = trainer.global_step

    def _refuse_unless_finite(self, trainer: Trainer) -> None:
        weights = [p.detach() for p in trainer.lightning_module.parameters()]
        if not norms(weights).isfinite().all():
            raise FloatingPointError(f"a weight is not finite after step {trainer.global_step}")


def damage(path: Path) -> str | None:
    """What is wrong with a file that should be a checkpoint; None for a sound one.

    Every byte is read once, a megabyte at a time; the tensors are mapped, not loaded.

    Raises:
        ValueError: it asks to run code, which no checkpoint of ours does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
            # a directory's attribute is the one thing that torch believes and no check sum covers
            record = record or next(
                (info.filename for info in archive.infolist() if info.external_attr), None
            )
        if record is not None:
            return f"damaged (the check sum of {record} is wrong)"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except TORN as error:
        stranger = ASKS_FOR_CODE.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if stranger is None:
            reason, *_ = (str(error).strip() or type(error).__name__).splitlines()
            return f"not a whole checkpoint ({reason})"
        raise ValueError(
            f"{path}: refused, since it asks to run {stranger[1].rstrip('.')}, which no checkpoint of ours "
            "does; find out who put it there, and delete it"
        ) from error
    return None


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's word for a write that failed; the reason lies below it
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _sentence(path: Path, *, step: int, error: OSError, kept: str) -> str:
    reason = error.strerror or str(error)
    return (
        f"{path}: the checkpoint of step {step} can't be written ({reason}); {kept}: make room, "
        "and the same command goes on from there"
    )
