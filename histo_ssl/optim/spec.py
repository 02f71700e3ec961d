"""How a method's parameters are optimised: the optimiser and its schedules, as one frozen object."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from histo_ssl.optim.groups import decay_groups
from histo_ssl.optim.schedules import cosine, warmup_cosine

# the batch that learning rates are quoted for (arXiv:1706.02677, section 2.1)
TILES_PER_UNIT_OF_LR = 256

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """Optimiser, learning rate, weight decay and clipping of one training.

    Args:
        optimizer: takes parameter groups, such as a partial of torch.optim.AdamW.
        lr_per_256: peak learning rate at 256 tiles per optimiser step; it grows in proportion.
        final_lr: learning rate at the end, whatever the batch.
        warmup: share of training in which the learning rate rises from 0 to its peak, 0-1.
        weight_decay: at the start, on the decayed group alone.
        final_weight_decay: at the end.
        clip_norm: largest L2 norm of one parameter tensor's gradient; None: no clipping.

    Raises:
        ValueError: a warm-up or a norm out of range.
    """

    optimizer: OptimizerFactory
    lr_per_256: float
    final_lr: float
    warmup: float
    weight_decay: float
    final_weight_decay: float
    clip_norm: float | None

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup <= 1.0:
            raise ValueError(
                f"optim.warmup is a share of training, got {self.warmup}: use a value from 0 to 1"
            )
        if self.clip_norm is not None and self.clip_norm <= 0.0:
            raise ValueError(
                f"optim.clip_norm is a norm above 0, got {self.clip_norm}: use null for no clipping"
            )

    def build(self, module: nn.Module) -> Optimizer:
        """Optimiser over the module's trainable parameters, before any schedule has been applied."""
        optimizer = self.optimizer(decay_groups(module))
        if isinstance(optimizer, AdamW):
            _fuse(optimizer)
        return optimizer

    def lr(self, progress: float, *, tiles_per_step: int) -> float:
        """Learning rate at a share of training.

        Args:
            progress: share of the optimiser steps already taken, 0-1.
            tiles_per_step: tiles that one optimiser step sees, over all ranks and accumulated batches.

        Returns:
            0 at the start of a warm-up; twice `lr_per_256` at its end with 512 tiles per step.
        """
        peak = self.lr_per_256 * tiles_per_step / TILES_PER_UNIT_OF_LR
        return warmup_cosine(peak, self.final_lr, warmup=self.warmup, progress=progress)

    def decay(self, progress: float) -> float:
        """Weight decay of the decayed group at a share of training, by a cosine."""
        return cosine(self.weight_decay, self.final_weight_decay, progress=progress)

    def schedule(self, optimizer: Optimizer, *, progress: float, tiles_per_step: int) -> None:
        """Set the groups of an optimiser that this object built to a share of training."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr(progress, tiles_per_step=tiles_per_step)
            if group["is_decayed"]:
                group["weight_decay"] = self.decay(progress)


def _fuse(optimizer: AdamW) -> None:
    """One pass over each weight, its gradient and its two moments, where the default makes seven.

    Said here rather than to torch's constructor: Lightning takes an optimiser built as a fused one to unscale
    float16's gradients itself, and would have them clipped before that.
    """
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)
