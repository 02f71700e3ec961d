"""A training of the whole encoder, with a linear layer on top, on labelled tiles.

AdamW with rates that fall by a factor from each layer to the one below (BEiT, arXiv:2106.08254, appendix;
arXiv:2111.06377, table 9), warm-up and cosine; a slide has no up, so tiles are turned and mirrored. The peak
rate is chosen among several on training patients that are set aside; then a copy with the best trains on all.

Letters: N training tiles, M test tiles, B tiles of a batch, S side of a tile, D width, C classes.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from torch.optim import AdamW

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import TileLoader
from histo_ssl.data.reading import BlankedTiles, ReplacedTiles
from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.encode import Encoder
from histo_ssl.optim.schedules import warmup_cosine
from histo_ssl.tasks.base import (
    Workplace,
)

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
N_TURNS = 8  # of a square: four quarter turns, each mirrored or not


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How an encoder is finetuned (see `conf/task/protocol/finetune.yaml` for what each value means)."""

    lrs: Sequence[float]
    layer_decay: float
    weight_decay: float
    label_smoothing: float
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


class Tuned(LightningModule):
    """A copy of an encoder with a linear layer on top."""

    def __init__(self, encoder: Encoder, *, n_classes: int, lr: float, tuning: Tuning, n_steps: int) -> None:
        super().__init__()
        self.encoder = Encoder(copy.deepcopy(encoder.backbone).train(), encoder.card)
        self.backbone, self.head = self.encoder.backbone, nn.Linear(encoder.card.dim, n_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.lr, self.tuning, self.n_steps = lr, tuning, n_steps

    def forward(self, tiles_B3SS: Tensor) -> Tensor:
        """Logits (B, C) of tiles uint8 in the colours that the encoder was trained on."""
        fed = Encoder(self.backbone, self.encoder.card, self.device).fed(tiles_B3SS)
        logits: Tensor = self.head(self.backbone(fed))
        return logits.float()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy."""
        tiles_B3SS, class_B = batch
        return F.cross_entropy(self(tiles_B3SS), class_B, label_smoothing=self.tuning.label_smoothing)

    def configure_optimizers(self) -> Any:
        """AdamW with a rate for each depth, warm-up and cosine by step."""
        optimizer = AdamW(
            rate_groups(
                self, lr=self.lr, decay=self.tuning.layer_decay, weight_decay=self.tuning.weight_decay
            )
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: warmup_cosine(
                1.0, 0.0, warmup=self.tuning.warmup, progress=(step + 1) / self.n_steps
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate_groups(tuned: Tuned, *, lr: float, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters by depth: rate lr x decay^(n - depth) for depths 0 to n, n the linear layer's.

    Biases and vectors don't decay, as in `optim.groups`.
    """
    depths = {f"backbone.{name}": depth for name, depth in tuned.encoder.depths().items()}
    n = 1 + max(depths.values(), default=-1)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in tuned.named_parameters():
        is_decayed = parameter.ndim > 1 and not name.endswith(".bias")
        groups.setdefault((depths.get(name, n), is_decayed), []).append(parameter)
    return [
        {
            "params": group,
            "lr": lr * decay ** (n - depth),
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for (depth, is_decayed), group in groups.items()
    ]


def turned(tiles_BSS3: Tensor, turn_B: Ints) -> Tensor:
    """Each tile in one of the eight positions of a square: 0-3 quarter turns, 4-7 the same mirrored."""
    tiles = [
        torch.rot90(tile.flip(1) if turn >= N_TURNS // 2 else tile, int(turn) % 4, dims=(0, 1))
        for tile, turn in zip(tiles_BSS3, turn_B, strict=True)
    ]
    return torch.stack(tiles)


@dataclass(frozen=True, kw_only=True)
class School:
    """What copies of an encoder are taught, and by what.

    Args:
        encoder: that is copied; stays as it is.
        source: of the tiles.
        tiles: those that have a label.
        class_N: 0 to C - 1, of each of them.
        group_N: whose each is.
        n_classes: C.
        tuning: how.
        seed: of weights, order, turns and the part set aside.
        place: what trains, and how tiles are read.
    """

    encoder: Encoder
    source: TileSource
    tiles: EmbeddingSet
    class_N: Ints
    group_N: Ints
    n_classes: int
    tuning: Tuning
    seed: int
    place: Workplace

    def taught(self, train: Ints, test: Ints) -> tuple[Floats, NDArray[np.bool_], list[str]]:
        """Probabilities (M, C) of test tiles, which (M,) of them could be read, and notes."""
        lr, notes = self._lr(train)
        model = self.trained(train, lr)
        logits_MC, is_read_M = self._asked(model, test)
        n_lost = int((~is_read_M).sum())
        if n_lost > self.place.max_failed * len(test):
            raise ValueError(
                f"{n_lost} of {len(test)} test tiles can't be read, more than max_failed_tiles="
                f"{self.place.max_failed:g} allows"
            )
        lost = [f"left out {n_lost} of {len(test)} test tiles that could not be read"] if n_lost else []
        return logits_MC.double().softmax(dim=1).numpy(), is_read_M, [*notes, *lost]

    def _lr(self, train: Ints) -> tuple[float, list[str]]:
        lrs = sorted(self.tuning.lrs)
        n_groups = min(
            len(np.unique(self.group_N[train][self.class_N[train] == c])) for c in range(self.n_classes)
        )
        n_folds = min(self.tuning.n_folds, n_groups)
        if len(lrs) == 1:
            return lrs[0], []
        if n_folds < 2:
            middle = lrs[len(lrs) // 2]
            return middle, [
                f"has a class of one patient (or slide) in train: its rate is {middle:g}, unchosen"
            ]
        folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=self.seed)
        learn, aside = next(iter(folds.split(train, self.class_N[train], self.group_N[train])))
        losses = []
        for lr in lrs:
            logits, is_read = self._asked(self.trained(train[learn], lr), train[aside])
            truth = torch.from_numpy(self.class_N[train[aside]])
            losses.append(float(F.cross_entropy(logits[is_read], truth[is_read])))
            log.info("evaluate: finetune at a rate of %g: loss %.3f on tiles set aside", lr, losses[-1])
        if not np.isfinite(losses).any():
            raise ValueError(
                f"finetuning diverges at every rate of {lrs}: take lower ones (task.protocol.tuning.lrs)"
            )
        best = lrs[int(np.nanargmin(losses))]
        edge = best in (lrs[0], lrs[-1])
        return best, [
            f"took the rate {best:g}, at the edge of those tried: others may do better"
        ] if edge else []

    def trained(self, rows: Ints, lr: float) -> Tuned:
        """A copy that has learned from these of the tiles."""
        batch_size = min(self.tuning.batch_size, len(rows))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Tuned(
                self.encoder,
                n_classes=self.n_classes,
                lr=lr,
                tuning=self.tuning,
                n_steps=self.tuning.epochs * (len(rows) // batch_size),
            )
            trainer = _quiet_trainer(self.tuning.epochs, self.place)
            trainer.fit(model, Lessons(self, rows, batch_size=batch_size, epochs=self.tuning.epochs))
        return model

    @torch.inference_mode()
    def _asked(self, model: Tuned, rows: Ints) -> tuple[Tensor, NDArray[np.bool_]]:
        """Logits (M, C) on the CPU, and which tiles could be read."""
        model.eval()
        wanted = [
            [(int(row), 0) for row in self.tiles.row[chunk]]
            for chunk in np.array_split(rows, -(-len(rows) // self.tuning.batch_size))
        ]
        parts, failed = [], set()
        for batch in TileLoader(BlankedTiles(self.source), wanted, self.place.loading):
            tiles = self.encoder.restained(batch["tiles"].permute(0, 3, 1, 2)).tiles
            parts.append(model(tiles.to(model.device)).cpu())
            failed |= set(batch["failed"])
        return torch.cat(parts), ~np.isin(self.tiles.row[rows], list(failed))


class Lessons:
    """Batches of turned tiles with their classes, epoch by epoch: a pure function of seed, epoch and tile."""

    def __init__(self, school: School, rows: Ints, *, batch_size: int, epochs: int) -> None:
        self.school, self.rows, self.batch_size = school, rows, batch_size
        self.epochs = iter(range(epochs))

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        school, epoch = self.school, next(self.epochs)
        order = np.random.default_rng([school.seed, epoch]).permutation(self.rows)
        numbers = school.tiles.row[order]
        wanted = [
            [(int(row), epoch) for row in numbers[start : start + self.batch_size]]
            for start in range(0, len(self) * self.batch_size, self.batch_size)
        ]
        known = pd.Series(school.class_N, index=school.tiles.row)
        readable = ReplacedTiles(school.source, school.tiles.row[self.rows], school.seed)
        for batch in TileLoader(readable, wanted, school.place.loading):
            ids = batch["ids"].numpy()
            turn_B = np.array([turn_of(int(row), epoch, seed=school.seed) for row in ids])
            tiles = turned(batch["tiles"], turn_B).permute(0, 3, 1, 2)
            yield school.encoder.restained(tiles).tiles, torch.tensor(known[ids].tolist())


def turn_of(row: int, epoch: int, *, seed: int) -> int:
    """Which of the eight positions a tile has in an epoch."""
    return int(np.random.default_rng([seed, epoch, row]).integers(N_TURNS))


def _quiet_trainer(epochs: int, place: Workplace) -> Trainer:
    """A Trainer on one device that writes and says nothing."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return Trainer(
        accelerator=place.accelerator,
        devices=1,
        precision=place.precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
