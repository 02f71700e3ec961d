"""Told to end, a training finishes its step, writes its checkpoint and ends by the signal's exit status."""

import logging
import os
import re
import signal
import subprocess
from contextlib import ExitStack
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from histo_ssl.methods.base import SSLMethod
from histo_ssl.parallel.distributed import gather_objects
from histo_ssl.signals import Stopped, answered_by, exit_status
from histo_ssl.training.checkpoints import KeepCheckpoints

log = logging.getLogger(__name__)

STOP = "stop"  # the flag by which a rank tells the others
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
PREEMPTING = (signal.SIGUSR1, signal.SIGTERM)  # asked for by `sbatch --signal`; sent to what is preempted
RUNNING = re.compile(r"\bJobState=RUNNING\b")  # in `scontrol show job`
JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?")


class Interruption(Callback):
    """Answers SIGTERM, SIGUSR1 and Ctrl-C while a training runs, in place of Lightning's own handlers.

    Those would save elsewhere and, on several ranks, talk to the others from inside of a handler. Here a
    handler only notes the signal; the ranks agree on it in the reduction that every step makes anyway. A
    second Ctrl-C ends the process at once: what is on the disk is whole at any moment.
    """

    def __init__(self, checkpoints: KeepCheckpoints) -> None:
        self.checkpoints = checkpoints
        self._signum = 0
        self._step_before = 0
        self._handlers = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep Lightning from installing its handlers, a moment from now.

        Until the training answers signals, whoever answered them before shall, and end the program.
        """
        trainer._signal_connector.register_signal_handlers = _install_nothing  # type: ignore[method-assign] # no setting for it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer signals from here on."""
        assert isinstance(pl_module, SSLMethod)
        self._method = pl_module
        self._method.flags[STOP] = 0.0
        self._handlers.enter_context(answered_by(self._note))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note where the step began."""
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End, if any rank was told to and the optimiser step is complete.

        Raises:
            Stopped: on rank 0, once the checkpoint is written.
            SystemExit: on the other ranks, without a word: rank 0 speaks for all.
        """
        is_told = self._signum if trainer.world_size == 1 else self._method.flag_means[STOP]
        if not is_told or trainer.global_step == self._step_before:
            return
        signum = self._agreed()
        self.checkpoints.write(trainer)
        if not trainer.is_global_zero:
            raise SystemExit(0)
        if signum in PREEMPTING and SLURMEnvironment.detect():
            requeue(signum)
        raise Stopped(signum, where=f" at step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave signals to whoever answered them before."""
        self._handlers.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave signals to whoever answered them before."""
        self._handlers.close()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._signum == signal.SIGINT:
            _end_at_once()
        self._signum = signum
        self._method.flags[STOP] = 1.0

    def _agreed(self) -> int:
        """The signal that ends the training: the same on every rank, whichever of them received it."""
        return max(gather_objects(self._signum))


def _install_nothing() -> None:
    pass


def requeue(signum: int) -> None:
    """Ask SLURM to start this job again; a failure is a warning, the checkpoint is written anyway.

    SIGTERM comes when a job is preempted, which is running then, but also from `scancel` and at its time
    limit, when SLURM is ending it already: what a person has cancelled must not come back.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    if not JOB_ID.fullmatch(job):
        log.warning("pretrain: %r is no job of SLURM's; start it again with the same command", job)
        return
    try:
        if signum == signal.SIGTERM and not RUNNING.search(_scontrol("show", "job", job)):
            log.info("pretrain: job %s is not requeued, since SLURM is ending it", job)
            return
        _scontrol("requeue", job)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning(
            "pretrain: job %s was not requeued (%s); start it again with the same command", job, error
        )
    else:
        log.info("pretrain: job %s is requeued", job)


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True).stdout


def _end_at_once() -> None:
    cursor = SHOW_CURSOR if os.isatty(2) else b""
    os.write(2, cursor + b"\nstopped at once; the same command goes on from the last checkpoint\n")
    os._exit(exit_status(signal.SIGINT))
