"""An encoder with a linear layer on top that learns as a whole, and the recipe that it learns by.

AdamW with rates that fall by a factor from each layer to the one below (BEiT, arXiv:2106.08254, appendix;
arXiv:2111.06377, table 9), warm-up and cosine.

Letters: B tiles of a batch, S side of a tile, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from histo_ssl.encode import Encoder
from histo_ssl.optim.groups import layer_groups
from histo_ssl.optim.schedules import warmup_cosine
from histo_ssl.stain.base import Restained, restained

LOOK_EVERY = 50  # steps between two looks whether the loss is finite


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How an encoder is finetuned (see `conf/task/protocol/finetune.yaml` for what each value means)."""

    lrs: Sequence[float]
    layer_decay: float
    weight_decay: float
    label_smoothing: float
    drop_path: float | None
    epochs: int
    warmup: float
    batch_size: int
    n_folds: int

    def __post_init__(self) -> None:
        if not self.lrs or min(self.lrs) <= 0 or not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"task.protocol.tuning.lrs={list(self.lrs)}, layer_decay={self.layer_decay}: rates above "
                "0, and a factor above 0 and up to 1, are expected"
            )
        if min(self.epochs, self.batch_size) < 1 or self.n_folds < 2:
            raise ValueError(
                f"task.protocol.tuning.epochs={self.epochs}, batch_size={self.batch_size}, "
                f"n_folds={self.n_folds}: 1, 1 and 2, or more, are expected"
            )
        shares = {"warmup": self.warmup, "label_smoothing": self.label_smoothing}
        for name, share in {**shares, "drop_path": self.drop_path or 0.0}.items():
            if not 0 <= share < 1:
                raise ValueError(f"task.protocol.tuning.{name}={share}: 0 or more, and below 1, is expected")
        if self.weight_decay < 0:
            raise ValueError(f"task.protocol.tuning.weight_decay={self.weight_decay}: 0 or more is expected")

    def rate(self, step: int, *, n_steps: int) -> float:
        """The rate at a step, 0 to n_steps - 1, over its peak: the schedule in the middle of the step.

        At its edges a single step would have no rate at all. Without a warm-up the first of two steps has
        (1 + cos(pi / 4)) / 2 = .854.
        """
        return warmup_cosine(1.0, 0.0, warmup=self.warmup, progress=(step + 0.5) / n_steps)


class Tuned(LightningModule):
    """A copy of an encoder with a linear layer on top."""

    def __init__(self, encoder: Encoder, *, n_classes: int, lr: float, tuning: Tuning, n_steps: int) -> None:
        """Draw the layer's weights: normal, SD .01, without bias at first, as the linear probe's.

        Raises:
            ValueError: paths shall be dropped, and the architecture can't.
        """
        super().__init__()
        self.card, self.stain, self.depths = encoder.card, encoder.stain, encoder.depths()
        try:
            self.backbone = encoder.backbone_copy(drop_path=tuning.drop_path)
        except ValueError as error:
            raise ValueError(f"task.protocol.tuning.drop_path={tuning.drop_path}: {error}") from error
        self.head = nn.Linear(encoder.card.dim, n_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.lr, self.tuning, self.n_steps = lr, tuning, n_steps
        self.last_loss = torch.zeros(())

    def restained(self, tiles_B3SS: Tensor) -> Restained:
        """Tiles uint8, as they were scanned, on the device and in the colours that the encoder knows."""
        return restained(self.stain, tiles_B3SS.to(self.device))

    def forward(self, tiles_B3SS: Tensor) -> Tensor:
        """Logits (B, C) float32 of tiles that went through `restained`."""
        fed = Encoder(self.backbone, self.card, self.device).fed(tiles_B3SS)
        logits: Tensor = self.head(self.backbone(fed.to(self.head.weight.dtype)))
        return logits.float()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy of tiles as they were scanned."""
        tiles_B3SS, class_B = batch
        logits_BC = self(self.restained(tiles_B3SS).tiles)
        loss = F.cross_entropy(logits_BC, class_B, label_smoothing=self.tuning.label_smoothing)
        self.last_loss = loss.detach()
        return loss

    def on_train_batch_start(self, batch: object, batch_idx: int) -> int | None:  # noqa: ARG002 (Lightning's)
        """End a training that has diverged, which -1 says: what became NaN stays NaN."""
        is_looked_at = batch_idx % LOOK_EVERY == 0  # a look waits for the device
        return -1 if is_looked_at and not math.isfinite(float(self.last_loss)) else None

    def configure_optimizers(self) -> Any:
        """AdamW with a rate for each depth, warm-up and cosine by step."""
        groups = layer_groups(
            self,
            {f"backbone.{name}": depth for name, depth in self.depths.items()},
            lr=self.lr,
            decay=self.tuning.layer_decay,
            weight_decay=self.tuning.weight_decay,
        )
        optimizer = AdamW(groups)
        schedule = LambdaLR(optimizer, lambda step: self.tuning.rate(step, n_steps=self.n_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
