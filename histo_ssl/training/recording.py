"""What is written down of a training, metrics and progress, and the randomness that its steps repeat."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from histo_ssl.folders.artifacts import fingerprint, write_text
from histo_ssl.progress import Progress


class StepSeed(Callback):
    """Makes dropout and drop-path a function of (seed, batch, rank), so that resuming repeats their draws."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch for this batch."""
        torch.manual_seed(int(fingerprint([self.seed, batch_idx, trainer.global_rank]), 16))


class StepClock(Callback):
    """Measures a step's wall time and how much of it went by waiting for data; logs both, in seconds."""

    def __init__(self) -> None:
        self._last_end = 0.0
        self.data_s = 0.0
        self.step_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._last_end = time.monotonic()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here: the time since the last step's end was spent on its data and its views."""
        self.data_s = time.monotonic() - self._last_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over."""
        now = time.monotonic()
        self.step_s, self._last_end = now - self._last_end, now


class MetricsLog(Callback):
    """Appends what was logged to a file of one JSON object per line; a resumed run goes on below its step."""

    def __init__(self, path: Path, *, clock: StepClock, every_n_steps: int, steps_per_epoch: int) -> None:
        self.path, self.clock = path, clock
        self.every_n_steps, self.steps_per_epoch = every_n_steps, steps_per_epoch
        self._written_at = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines of steps that will be made again."""
        self._written_at = trainer.global_step
        if trainer.is_global_zero:
            kept = [line for line in read_metrics(self.path) if line["step"] <= trainer.global_step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Append a line at the first step, every so many steps, and at the last."""
        step = trainer.global_step
        due = step in (1, trainer.max_steps) or step % self.every_n_steps == 0
        if not trainer.is_global_zero or step in (0, self._written_at) or not due:
            return
        self._written_at = step
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        place = {"step": step, "epoch": step / self.steps_per_epoch}
        clock = {"data_s": self.clock.data_s, "step_s": self.clock.step_s}
        with self.path.open("a") as file:
            file.write(json.dumps({**place, **logged, **clock}) + "\n")


class ProgressLine(Callback):
    """A bar, or a line every few seconds: step, loss, time per step, share of waiting for data, time left."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar from the step that training goes on at."""
        if trainer.is_global_zero:
            self.progress = Progress(
                "pretrain", n_items=trainer.max_steps, noun="steps", n_before=trainer.global_step
            )
            self.progress.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if self.progress is None or trainer.global_step == self.progress.n_done:
            return
        self.progress.advance(1, data_s=self.clock.data_s, note=lambda: self._note(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands on a line of its own."""
        self._close()

    def _note(self, trainer: Trainer) -> str:
        loss = float(trainer.callback_metrics["loss"])
        return f"loss {loss:.3f}, step {self.clock.step_s:.2f} s, data {self.clock.data_s:.2f} s"

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Lines of a metrics file, oldest first, without one that a kill cut off; none if there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]
