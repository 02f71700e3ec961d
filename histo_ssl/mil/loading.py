"""Bags on their way into a model: packed batches, read when they are needed.

Which bags a step sees, and which of their tiles, are pure functions of (seed, epoch), whoever reads them.

Letters: N bags to learn from, B bags of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from histo_ssl.mil.bags import Bags
from histo_ssl.mil.packing import Packed, pack

Ints = NDArray[np.int64]

ORDER_STREAM, TILE_STREAM = 1, 2  # of random numbers


class BagBatch(NamedTuple):
    """Several bags, one after the other, and their numbers."""

    packed: Packed
    bag_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """The batches of every epoch.

    Args:
        bag_N: numbers of the bags to learn from.
        stratum_N: what is drawn evenly, with replacement; None: each bag once, in random order.
        batch_bags: bags per step, at most all.
        max_tiles: of a bag in a step, drawn anew each time; None: all.
        seed: of everything that is drawn.
    """

    bag_N: Ints
    stratum_N: Ints | None
    batch_bags: int
    max_tiles: int | None
    seed: Sequence[int]

    @property
    def n_steps(self) -> int:
        """Steps of an epoch; the last batch may be smaller."""
        return -(-len(self.bag_N) // self.batch_bags)

    def order(self, epoch: int) -> Ints:
        """Numbers of the bags (N,) as epoch number `epoch` sees them."""
        rng = np.random.default_rng([*self.seed, ORDER_STREAM, epoch])
        if self.stratum_N is None:
            return rng.permutation(self.bag_N)
        _, place_N, count = np.unique(self.stratum_N, return_inverse=True, return_counts=True)
        share_N = 1 / count[place_N]
        return rng.choice(self.bag_N, size=len(self.bag_N), p=share_N / share_N.sum())

    def tiles(self, *, epoch: int, step: int, bag: int, n_tiles: int) -> Ints | None:
        """Ascending numbers of a bag's tiles that a step sees; None for all of them."""
        if self.max_tiles is None or n_tiles <= self.max_tiles:
            return None
        rng = np.random.default_rng([*self.seed, TILE_STREAM, epoch, step, bag])
        return np.sort(rng.choice(n_tiles, size=self.max_tiles, replace=False))


class TrainingBatches(Dataset[BagBatch]):
    """Batch j of one epoch after the other."""

    def __init__(self, bags: Bags, epochs: Epochs, *, n_epochs: int) -> None:
        self.bags, self.epochs, self.n_epochs = bags, epochs, n_epochs

    def __len__(self) -> int:
        return self.epochs.n_steps * self.n_epochs

    def __getitem__(self, j: int) -> BagBatch:
        epoch, step = divmod(j, self.epochs.n_steps)
        size = self.epochs.batch_bags
        bags = self.epochs.order(epoch)[step * size : (step + 1) * size]
        return batch_of([self._features(int(bag), epoch=epoch, step=step) for bag in bags], numbers=bags)

    def _features(self, bag: int, *, epoch: int, step: int) -> NDArray[np.floating]:
        n_tiles = int(self.bags.n_tiles[bag])
        rows = self.epochs.tiles(epoch=epoch, step=step, bag=bag, n_tiles=n_tiles)
        return self.bags.read(bag) if rows is None else self.bags.sample(bag, rows)


class WholeBags(Dataset[BagBatch]):
    """Bags, each whole, so many in a batch that their tiles stay below a number, one at the least."""

    def __init__(self, bags: Bags, rows: Ints, *, max_tiles: int) -> None:
        self.bags, self.batches = bags, list(_filled(rows, bags.n_tiles, max_tiles=max_tiles))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, j: int) -> BagBatch:
        rows = self.batches[j]
        return batch_of([self.bags.read(int(row)) for row in rows], numbers=rows)


def batch_of(features: Sequence[NDArray[np.floating]], *, numbers: Ints) -> BagBatch:
    """Bags' features (N_b, D) as one batch."""
    return BagBatch(pack([torch.from_numpy(one) for one in features]), torch.from_numpy(numbers))


def loader(
    batches: Dataset[BagBatch], *, n_workers: int, steps: Sequence[int] | None = None
) -> DataLoader[BagBatch]:
    """Batches in their order, or those of `steps`; workers read ahead."""
    return DataLoader(batches, batch_size=None, sampler=steps, num_workers=n_workers)


def _filled(rows: Ints, n_tiles: Ints, *, max_tiles: int) -> Iterator[Ints]:
    batch: list[int] = []
    for row in rows:
        if batch and n_tiles[[*batch, row]].sum() > max_tiles:
            yield np.array(batch, dtype=np.int64)
            batch = []
        batch.append(int(row))
    if batch:
        yield np.array(batch, dtype=np.int64)
