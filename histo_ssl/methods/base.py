"""What every method shares: its optimiser and schedules, its log, and a stop when the loss is not finite.

A method adds its networks, `step` and `encoder`. It sees views as tensors and knows neither data nor tasks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypedDict, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from histo_ssl.distributed import all_reduce_mean, world_size
from histo_ssl.methods.batchnorm import check_batch, synchronise
from histo_ssl.optim.clipping import clip_each
from histo_ssl.optim.spec import OptimSpec


class Batch(TypedDict):
    """B tiles as V views of (B, 3, s, s), the first resolution first, and the tiles' numbers (B,)."""

    views: list[Tensor]
    ids: Tensor


class Epochs(Protocol):
    """What a method asks of the DataModule: optimiser steps per pass over the tiles."""

    steps_per_epoch: int


class SSLMethod(LightningModule, ABC):
    """Pretrains without labels. Trained in one Lightning epoch of `max_steps` over an endless stream.

    Attributes:
        total_steps: optimiser steps of the whole training; read from the trainer unless set before.
        steps_per_epoch: optimiser steps per pass over the data; read from the DataModule unless set before.
        log_every: optimiser steps between two looks at costly monitors; the trainer's unless set before.
    """

    def __init__(self, *, optim: OptimSpec) -> None:
        super().__init__()
        self.optim = optim
        self.total_steps = 0
        self.steps_per_epoch = 0
        self.log_every = 0
        self.tiles_per_step = 0

    @abstractmethod
    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Loss of one batch under `loss`, in float32 whatever the autocast, and scalars to log beside it."""

    @abstractmethod
    def encoder(self) -> nn.Module:
        """The backbone that is kept when training ends."""

    def after_step(self, progress: float) -> None:
        """Move what no gradient moves, such as a teacher; called once after every optimiser step.

        Args:
            progress: share of the optimiser steps taken before this one, 0-1, as its learning rate saw it.
        """
        assert 0.0 <= progress <= 1.0

    @property
    def progress(self) -> float:
        """Share of the optimiser steps already taken, 0 at the first."""
        return self.global_step / self.total_steps

    @property
    def is_log_step(self) -> bool:
        """Whether the loggers hear of the step under way."""
        return (self.global_step + 1) % self.log_every == 0

    def on_fit_start(self) -> None:
        """Read the length of training; no schedule is known before."""
        self.total_steps = self.total_steps or self.trainer.max_steps
        datamodule = cast(Epochs, getattr(self.trainer, "datamodule", None))
        self.steps_per_epoch = self.steps_per_epoch or datamodule.steps_per_epoch
        self.log_every = self.log_every or max(1, getattr(self.trainer, "log_every_n_steps", 1))

    def configure_model(self) -> None:
        """On several ranks, let every BatchNorm take the statistics of them all."""
        if world_size() > 1:
            synchronise(self, device_type=self.device.type)

    def configure_optimizers(self) -> Optimizer:
        """The optimiser of the specification, over what is trainable."""
        return self.optim.build(self)

    def training_step(self, batch: Batch) -> Tensor:
        """Loss of one batch, logged as its mean over ranks."""
        n_tiles = len(batch["ids"])
        self.tiles_per_step = n_tiles * world_size() * self.trainer.accumulate_grad_batches
        check_batch(self, n_tiles=n_tiles * world_size())
        out = self.step(batch["views"])
        assert out["loss"].dtype == torch.float32
        # one reduction for all, so that a bad loss on one rank stops every rank
        means = all_reduce_mean(torch.stack([x.detach().float() for x in out.values()]))
        logged: dict[str, Any] = dict(zip(out, means.unbind(), strict=True))
        self._stop_unless_finite(logged["loss"])
        if self.is_log_step:
            logged["lr"] = self.optim.lr(self.progress, tiles_per_step=self.tiles_per_step)
            logged["weight_decay"] = self.optim.decay(self.progress)
        self.log_dict(logged, on_step=True, on_epoch=False, batch_size=n_tiles)
        return out["loss"]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the schedules and clip, when gradients are complete and unscaled."""
        self.optim.schedule(optimizer, progress=self.progress, tiles_per_step=self.tiles_per_step)
        if self.optim.clip_norm is not None:
            clip_each(self.parameters(), max_norm=self.optim.clip_norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then move what no gradient moves: once per step, also when batches are accumulated."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.after_step(self.progress)  # the trainer counts the step once this hook returns

    def _stop_unless_finite(self, loss: Tensor) -> None:
        # looking at the loss waits for the forward pass; in return no weight ever sees a bad gradient
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step}: expected a finite number; the last "
                f"checkpoint is healthy, go on from it with a lower method.optim.lr_per_256 or "
                f"trainer.precision=32-true"
            )
