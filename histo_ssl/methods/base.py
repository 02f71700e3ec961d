"""What every method shares: its optimiser and schedules, its log, and the fate of steps that are not finite.

A method adds its networks, `step` and `encoder`. It sees views as tensors and knows neither data nor tasks.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any, Protocol, TypedDict, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from histo_ssl.methods.batchnorm import check_batch, synchronise
from histo_ssl.optim.clipping import clip_each
from histo_ssl.optim.spec import OptimSpec
from histo_ssl.parallel.distributed import all_reduce_mean, gather, rank, world_size
from histo_ssl.parallel.sharding import FullySharded, shard

log = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A step of training is not finite, and is not to be skipped.

    Attributes:
        ids: numbers of the tiles that it saw, over all ranks.
    """

    def __init__(self, text: str, *, ids: list[int]) -> None:
        super().__init__(text)
        self.ids = ids


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
        flags: numbers by which callbacks on this rank tell those on others something, by name.
        flag_means: the flags' means over ranks, as of the newest batch.
        max_skipped: steps that are not finite and may be skipped; none unless set.
        n_skipped: how many were.
        carried: attributes that go from one batch to the next beside the buffers; `copy` copies each.
    """

    carried: tuple[str, ...] = ()

    def __init__(self, *, optim: OptimSpec) -> None:
        super().__init__()
        self.optim = optim
        self.total_steps = 0
        self.steps_per_epoch = 0
        self.log_every = 0
        self.tiles_per_step = 0
        self.flags: dict[str, float] = {}
        self.flag_means: dict[str, float] = {}
        self.max_skipped = self.n_skipped = 0
        self._fault = ""  # of the optimiser step under way: what is not finite
        self._ids: list[Tensor] = []  # its tiles so far
        self._put_back: Callable[[], None] | None = None

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

    def bookmark(self) -> Callable[[], None]:
        """A function that puts back what `step` changes from now on: all buffers, and what is `carried`.

        Asked for before each step, where steps that are not finite are skipped.
        """
        kept = {name: buffer.clone() for name, buffer in self.named_buffers()}
        carried = {name: copy(getattr(self, name)) for name in self.carried}

        def put_back() -> None:
            for name, buffer in self.named_buffers():
                buffer.copy_(kept[name])
            for name, value in carried.items():
                setattr(self, name, value)

        return put_back

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
        """On several ranks, let every BatchNorm take the statistics of them all; share out the weights."""
        if world_size() > 1:
            synchronise(self, device_type=self.device.type)
        if self._trainer is not None and isinstance(self.trainer.strategy, FullySharded):
            shard(self, self.trainer.strategy.mesh)

    def configure_optimizers(self) -> Optimizer:
        """The optimiser of the specification, over what is trainable."""
        return self.optim.build(self)

    def training_step(self, batch: Batch) -> Tensor:
        """Loss of one batch, logged as its mean over ranks."""
        n_tiles = len(batch["ids"])
        self.tiles_per_step = n_tiles * world_size() * self.trainer.accumulate_grad_batches
        check_batch(self, n_tiles=n_tiles * world_size())
        self._begin(batch["ids"])
        out = self.step(batch["views"])
        assert out["loss"].dtype == torch.float32
        logged = self._over_ranks(out)
        if self.is_log_step:
            logged["lr"] = self.optim.lr(self.progress, tiles_per_step=self.tiles_per_step)
            logged["weight_decay"] = self.optim.decay(self.progress)
        self.log_dict(logged, on_step=True, on_epoch=False, batch_size=n_tiles)
        return out["loss"]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the schedules and clip, when gradients are complete and unscaled; drop those of a bad step."""
        self.optim.schedule(optimizer, progress=self.progress, tiles_per_step=self.tiles_per_step)
        norm = clip_each(self.parameters(), max_norm=self.optim.clip_norm).item()
        # float16's scaler tries out how large gradients may get, and leaves out the steps that were too much
        if not math.isfinite(norm) and not self._has_scaler:
            self._find_fault(f"a gradient's norm is {norm}")
        if self._fault:
            optimizer.zero_grad()  # an optimiser leaves alone what has no gradient

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then move what no gradient moves: once per step, also when batches are accumulated."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._fault:
            self._skip()
        else:
            self.after_step(self.progress)  # the trainer counts the step once this hook returns
        self._ids, self._put_back = [], None

    @property
    def _has_scaler(self) -> bool:
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def _begin(self, ids: Tensor) -> None:
        """Take note of a batch before its step, and of what is to be put back should it be skipped."""
        self._ids.append(ids)
        if self.max_skipped and self._put_back is None:
            self._put_back = self.bookmark()

    def _over_ranks(self, out: dict[str, Tensor]) -> dict[str, Any]:
        """Means over ranks to log. One reduction for all, so that a loss is bad on every rank or on none."""
        flags = torch.tensor(list(self.flags.values()), device=out["loss"].device)
        means = all_reduce_mean(torch.cat([torch.stack([x.detach().float() for x in out.values()]), flags]))
        # looking at the loss waits for the forward pass; in return no weight ever sees a bad gradient
        values = dict(zip([*out, *self.flags], means.tolist(), strict=True))
        self.flag_means = {name: values[name] for name in self.flags}
        if not math.isfinite(values["loss"]):
            self._find_fault(f"the loss is {values['loss']}")
        return dict(zip(out, means, strict=False))

    def _find_fault(self, fault: str) -> None:
        """All ranks come here together: losses are means over ranks, and so are gradients."""
        self._fault = self._fault or fault
        if self.n_skipped == self.max_skipped:
            past = f", after {self.n_skipped} that were skipped" if self.n_skipped else ""
            ids = gather(torch.cat(self._ids)).tolist()
            raise NonFiniteError(f"{self._fault} at step {self.global_step}{past}", ids=ids)

    def _skip(self) -> None:
        assert self._put_back is not None
        self._put_back()
        self.n_skipped += 1
        ids = gather(torch.cat(self._ids)).tolist()
        if rank() == 0:
            count = f"{self.n_skipped} of at most {self.max_skipped}"
            log.warning(
                "pretrain: step %d is skipped (%s): %s; its tiles: %s",
                self.global_step,
                count,
                self._fault,
                ids,
            )
        self._fault = ""
