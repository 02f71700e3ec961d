"""Pretraining: a method, its data and a Trainer; from a folder's last checkpoint to its encoder."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn

from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.methods.base import NonFiniteError, SSLMethod
from histo_ssl.methods.switches import switch_on
from histo_ssl.parallel import ranks
from histo_ssl.parallel.sharding import gather_weights
from histo_ssl.stain.base import NOT_RESTAINED
from histo_ssl.training.checkpoints import Checkpoints, KeepCheckpoints
from histo_ssl.training.failures import FailedTiles, NotRestainedTiles, SkippedSteps, named_tiles
from histo_ssl.training.feeding import Feeding
from histo_ssl.training.interruption import Interruption
from histo_ssl.training.recording import MetricsLog, ProgressLine, StepClock, StepSeed

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CPU_FACTS = Path("/proc/cpuinfo")
ADVICE = (
    "go on from it with a lower method.optim.lr_per_256 or trainer.precision=32-true, or leave such "
    "steps out with on_nonfinite=skip"
)

TrainerFactory = Callable[..., Trainer]  # takes what only this module knows: callbacks, logger, length


@dataclass(frozen=True, kw_only=True)
class Recording:
    """How often a training is written down."""

    checkpoint_every: int  # optimiser steps
    log_every: int  # optimiser steps


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a training bears before it stops.

    Args:
        max_failed_tiles: largest share of the training tiles that may be unreadable, 0-1.
        on_nonfinite: "stop" at the first optimiser step that is not finite, or "skip" it.
        max_nonfinite: steps that may be skipped.
    """

    max_failed_tiles: float
    on_nonfinite: str
    max_nonfinite: int

    @property
    def max_skipped(self) -> int:
        """Steps that may be skipped; none where the first stops the training."""
        return self.max_nonfinite if self.on_nonfinite == "skip" else 0


def train(
    method: SSLMethod,
    data: TileDataModule,
    *,
    folder: Path,
    trainer: TrainerFactory,
    logger: Logger | None,
    online: Callback | None,
    recording: Recording,
    limits: Limits,
) -> dict[str, int]:
    """Train to the last step, from the folder's newest sound checkpoint if there is one.

    Returns:
        How many different tiles could not be read and were replaced; where their stain is normalised also how
        many were left as they are.

    Raises:
        Stopped: a signal ended the training; its checkpoint is written.
        FloatingPointError: a loss, gradient or weight is not finite.
        OSError: a checkpoint could not be written, or the processes that read tiles failed.
        ValueError: too many tiles can't be read, or no checkpoint can.
    """
    files = Checkpoints(folder)
    failed = FailedTiles(n_tiles=len(data.rows), max_failed_tiles=limits.max_failed_tiles)
    left = NotRestainedTiles() if data.views.stain else None
    fitted = trainer(
        callbacks=[
            *_recording(data, online, folder=folder, recording=recording),
            Feeding(data),
            failed,
            *([left] if left else []),
            SkippedSteps(limits.max_skipped),
            *_keeping(files, data, recording),
        ],
        logger=logger or False,
        log_every_n_steps=recording.log_every,
        max_steps=data.total_steps,
        max_epochs=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    fitted.strategy.checkpoint_io = files
    checkpoint = files.find()
    if checkpoint:
        log.info("pretrain: going on from %s", checkpoint)
    try:
        with ranks.together(fitted, folder.name):
            fitted.fit(method, data, ckpt_path=checkpoint, weights_only=True)
            gather_weights(method)
    except FloatingPointError as error:
        tiles = f"; {named_tiles(data.source, error.ids)}" if isinstance(error, NonFiniteError) else ""
        raise FloatingPointError(f"{error}{tiles}; {files.told()}: {ADVICE}") from error
    if fitted.global_step < data.total_steps:
        raise InterruptedError(
            f"the trainer ended by itself at step {fitted.global_step} of {data.total_steps}; "
            "the same command goes on"
        )
    counted = {"unreadable tiles": len(failed.reasons)}
    return {**counted, NOT_RESTAINED: len(left.reasons)} if left else counted


def prepare(method: SSLMethod, data: TileDataModule, *, compile: bool, grad_checkpointing: bool) -> None:
    """Make sure that the encoder takes the tiles, and set the switches of the method's networks.

    Raises:
        ValueError: the encoder does not take them, or a backbone cannot checkpoint its gradients.
    """
    check_takes_tiles(method.encoder(), data.source.tile_px)
    switch_on(method, compile=compile, grad_checkpointing=grad_checkpointing)


def check_takes_tiles(encoder: nn.Module, tile_px: int) -> None:
    """Show the encoder a whole tile, as embedding will: a backbone may fit all views and not the tile.

    Raises:
        ValueError: it does not fit; better before training than after.
    """
    is_training = encoder.training
    with torch.inference_mode():
        encoder.eval()(torch.zeros(1, 3, tile_px, tile_px))
    encoder.train(is_training)


def device_for(accelerator: str) -> torch.device:
    """The device that a trainer of one device would take, for what is done beside training."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def precision_for(wanted: str, accelerator: str) -> str:
    """The precision to train in: `wanted`, or for "auto" bf16-mixed where the device computes in bfloat16."""
    if wanted != "auto":
        return wanted
    on_gpu = device_for(accelerator).type == "cuda"
    has_bf16 = torch.cuda.is_bf16_supported() if on_gpu else _cpu_has_bf16()
    return "bf16-mixed" if has_bf16 else "32-true"


def _cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; without them it would be emulated, slowly."""
    flags = CPU_FACTS.read_text() if CPU_FACTS.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _recording(
    data: TileDataModule, online: Callback | None, *, folder: Path, recording: Recording
) -> list[Callback]:
    clock, epoch = StepClock(), data.steps_per_epoch
    metrics = MetricsLog(
        folder / METRICS, clock=clock, every_n_steps=recording.log_every, steps_per_epoch=epoch
    )
    return [StepSeed(data.seed), *([online] if online else []), clock, metrics, ProgressLine(clock)]


def _keeping(files: Checkpoints, data: TileDataModule, recording: Recording) -> list[Callback]:
    """Last of all callbacks, so that a checkpoint holds what the others took note of at its step."""
    checkpoints = KeepCheckpoints(
        files, every_n_steps=recording.checkpoint_every, steps_per_epoch=data.steps_per_epoch
    )
    return [checkpoints, Interruption(checkpoints)]
