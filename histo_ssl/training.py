"""Pretraining: a method, its data and a Trainer; from a folder's last checkpoint to its encoder."""

import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn

from histo_ssl import ranks
from histo_ssl.callbacks import LastCheckpoint, MetricsLog, ProgressLine, StepClock, StepSeed
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.methods.base import SSLMethod
from histo_ssl.methods.switches import switch_on

log = logging.getLogger(__name__)

LAST = "last.ckpt"
METRICS = "metrics.jsonl"
CPU_FACTS = Path("/proc/cpuinfo")

TrainerFactory = Callable[..., Trainer]  # takes what only this module knows: callbacks, logger, length


@dataclass(frozen=True, kw_only=True)
class Recording:
    """How often a training is written down."""

    checkpoint_every: int  # optimiser steps
    log_every: int  # optimiser steps


def train(
    method: SSLMethod,
    data: TileDataModule,
    *,
    folder: Path,
    trainer: TrainerFactory,
    logger: Logger | None,
    online: Callback | None,
    recording: Recording,
) -> Trainer:
    """Train to the last step, from `folder/last.ckpt` if there is one; the Trainer that did it comes back."""
    checkpoint = folder / LAST
    fitted = trainer(
        callbacks=_callbacks(data, online, folder=folder, recording=recording),
        logger=logger or False,
        log_every_n_steps=recording.log_every,
        max_steps=data.total_steps,
        max_epochs=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if checkpoint.exists():
        _check_readable(checkpoint)
        log.info("pretrain: going on from %s", checkpoint)
    with ranks.together(fitted, folder.name):
        fitted.fit(method, data, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    if fitted.global_step < data.total_steps:
        raise KeyboardInterrupt  # Lightning ends quietly when it is told to stop
    return fitted


def _check_readable(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{checkpoint}: not a readable checkpoint ({str(error).splitlines()[0]}); delete it to start over"
        ) from error


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


def precision_for(wanted: str, accelerator: str) -> str:
    """The precision to train in: `wanted`, or for "auto" bf16-mixed where the device computes in bfloat16."""
    if wanted != "auto":
        return wanted
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    has_bf16 = torch.cuda.is_bf16_supported() if on_gpu else _cpu_has_bf16()
    return "bf16-mixed" if has_bf16 else "32-true"


def _cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; without them it would be emulated, slowly."""
    flags = CPU_FACTS.read_text() if CPU_FACTS.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _callbacks(
    data: TileDataModule, online: Callback | None, *, folder: Path, recording: Recording
) -> list[Callback]:
    clock = StepClock()
    epoch = data.steps_per_epoch
    return [
        StepSeed(data.seed),
        *([online] if online else []),  # before the checkpoint, which holds its best score
        clock,
        MetricsLog(folder / METRICS, clock=clock, every_n_steps=recording.log_every, steps_per_epoch=epoch),
        ProgressLine(clock),
        LastCheckpoint(folder / LAST, every_n_steps=recording.checkpoint_every, steps_per_epoch=epoch),
    ]
