"""The batches that an encoder is finetuned by: tiles turned and mirrored, since a slide has no up.

B: tiles of a batch; S: side of a tile.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading, TileLoader
from histo_ssl.data.reading import ReplacedTiles, Wanted
from histo_ssl.progress import Progress

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
N_TURNS = 8  # four quarter turns, each mirrored or not


@dataclass(kw_only=True)
class Lost:
    """Tiles that could not be read: told of once each, counted, bounded."""

    what: str  # which tiles: "training" or "test"
    fate: str  # what becomes of one
    n_tiles: int
    max_failed: float  # share of them, 0-1
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, failed: Mapping[int, str]) -> None:
        """Count tiles by their numbers, with the reasons.

        Raises:
            ValueError: there are too many by now.
        """
        for row in failed.keys() - self.reasons.keys():
            log.warning("evaluate: a %s tile %s: %s", self.what, self.fate, failed[row])
        self.reasons |= failed
        if len(self.reasons) > self.max_failed * self.n_tiles:
            raise ValueError(
                f"{len(self.reasons)} of {self.n_tiles} {self.what} tiles can't be read, more than "
                f"max_failed_tiles={self.max_failed:g} allows; the newest: {list(self.reasons.values())[-1]}"
            )


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which tiles each step learns from: shuffled anew in each epoch; full batches alone."""

    rows: Ints
    batch_size: int  # at most as many
    epochs: int
    seed: int

    def __len__(self) -> int:
        """Steps of all epochs together."""
        return self.epochs * (len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[Wanted]]:
        """The tiles of each step with their epoch."""
        n_used = len(self.rows) // self.batch_size * self.batch_size
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)[:n_used]
            for batch in order.reshape(-1, self.batch_size):
                yield [(int(row), epoch) for row in batch]


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What is learned from: batches of labelled tiles, a stream over all epochs.

    Args:
        source: of the tiles.
        order: which, by their numbers in it.
        class_of: by those numbers.
        loading: how they are read.
        lost: counts those that can't be read and give their places to others.
        progress: counts those that were read.
    """

    source: TileSource
    order: Order
    class_of: Mapping[int, int]
    loading: Loading
    lost: Lost
    progress: Progress

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tiles (B, 3, S, S) uint8 and classes (B,), a pure function of seed, epoch and tiles.

        Raises:
            ValueError: too many tiles can't be read.
        """
        readable = ReplacedTiles(self.source, self.order.rows, self.order.seed)
        for batch in TileLoader(readable, self.order, self.loading):
            self.lost.add(batch["failed"])
            places = zip(batch["ids"].tolist(), batch["epoch"].tolist(), strict=True)
            turn_B = [turn_of(row, epoch, seed=self.order.seed) for row, epoch in places]
            tiles_BSS3 = turned(batch["tiles"], np.array(turn_B))
            class_B = torch.tensor([self.class_of[row] for row in batch["ids"].tolist()])
            self.progress.advance(len(class_B))
            yield tiles_BSS3.permute(0, 3, 1, 2), class_B


def turn_of(row: int, epoch: int, *, seed: int) -> int:
    """Which of the eight positions a tile has in an epoch, 0 to 7."""
    return int(np.random.default_rng([seed, epoch, row]).integers(N_TURNS))


def turned(tiles_BSS3: Tensor, turn_B: Ints) -> Tensor:
    """Each tile in one of the eight positions of a square: 0-3 quarter turns, 4-7 the same of its mirror."""
    tiles = [
        torch.rot90(tile.flip(1) if turn >= N_TURNS // 2 else tile, int(turn) % 4, dims=(0, 1))
        for tile, turn in zip(tiles_BSS3, turn_B, strict=True)
    ]
    return torch.stack(tiles)
