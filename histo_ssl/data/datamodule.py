"""Batches of views: which tiles a training step sees, read by workers, augmented on the device.

Training is one long stream of steps. Step t belongs to epoch t // steps_per_epoch; its tiles are a pure
function of (seed, t). So a run goes on anywhere by starting the stream at its step, and W ranks that each
read their share of a step's tiles see together what one rank would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading, TileLoader
from histo_ssl.data.reading import Batch, ReplacedTiles, Wanted
from histo_ssl.data.rows import InRuns, RowList
from histo_ssl.data.shuffle import N_SHUFFLED_WHOLE, rows_in_runs, shuffled_rows
from histo_ssl.views.compose import Views


@dataclass(frozen=True, kw_only=True)
class StepSampler(Sampler[list[Wanted]]):
    """The tiles that one rank reads at each step, from `first_step` to `n_steps`.

    Every epoch is a fresh permutation of `rows`, cut into global batches; what is left over at its end is
    dropped. Rank r reads the r-th of `n_ranks` equal slices of each batch.
    """

    rows: RowList
    batch_size: int  # tiles per batch over all ranks
    steps_per_epoch: int
    n_steps: int
    first_step: int
    rank: int
    n_ranks: int
    seed: int

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[list[Wanted]]:
        whole = lru_cache(maxsize=1)(self._shuffled)
        share = self.batch_size // self.n_ranks
        for step in range(self.first_step, self.n_steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            places = place * self.batch_size + self.rank * share + np.arange(share)
            if isinstance(self.rows, InRuns):
                rows = rows_in_runs(self.rows, places, seed=self.seed, epoch=epoch)
            elif len(self.rows) <= N_SHUFFLED_WHOLE:
                rows = self.rows[whole(epoch)[places]]
            else:
                rows = shuffled_rows(self.rows, places, seed=self.seed, epoch=epoch)
            yield [(int(row), epoch) for row in rows]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """Places in `rows` in the order of an epoch: 8 bytes a tile, and no list of the tiles themselves."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))


class StreamLoader(TileLoader):
    """A loader whose position is the trainer's step, so that there is no state of its own to keep."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing; its presence tells Lightning that resuming in the middle of an epoch is sound."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class TileDataModule(LightningDataModule):
    """Views of the tiles that pretraining may see."""

    def __init__(
        self,
        *,
        source: TileSource,
        rows: RowList,
        views: Views,
        batch_size: int,
        epochs: int,
        accumulate: int,
        seed: int,
        loading: Loading,
    ) -> None:
        """Plan the steps of a training.

        Args:
            source: reads tiles.
            rows: numbers of the tiles to train on; `InRuns` where a batch draws neighbours together.
            views: makes views of a batch of tiles.
            batch_size: tiles per optimiser step, over all ranks and accumulated batches.
            epochs: passes over the tiles.
            accumulate: batches per optimiser step.
            seed: of shuffling and views.
            loading: how tiles are read.

        Raises:
            ValueError: the batch is larger than the data, or can't be shared among the accumulated batches.
        """
        super().__init__()
        if batch_size > len(rows):
            raise ValueError(
                f"training.batch_size={batch_size}, but there are only {len(rows)} tiles to train on; "
                f"use at most {len(rows)}, or more data"
            )
        self.source, self.rows, self.views = source, rows, views
        self.tiles = ReplacedTiles(source, rows, seed)
        self.epochs, self.seed, self.loading = epochs, seed, loading
        self.accumulate = accumulate
        self.batch_size = _share(batch_size, n_parts=accumulate, of="accumulated batches")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must be gone on with: its batches are counted in it."""
        return {"accumulate": self.accumulate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make sure that it is.

        Raises:
            ValueError: steps were made of another number of batches.
        """
        before = state_dict["accumulate"]
        if before != self.accumulate:
            raise ValueError(
                f"this training was begun with trainer.accumulate_grad_batches={before}; go on with that, or "
                "begin another in a new runs_dir"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the tiles."""
        return len(self.rows) // (self.batch_size * self.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Tiles as training reads them, in its first epoch; by one worker, if training has any."""
        wanted = [[(int(row), 0) for row in rows]]
        one = replace(self.loading, n_workers=min(1, self.loading.n_workers))
        batch: Batch = next(iter(TileLoader(self.tiles, wanted, one)))
        return batch

    def train_dataloader(self) -> StreamLoader:
        """Batches from the trainer's current step to the last."""
        if self.trainer is None:
            raise RuntimeError("a TileDataModule makes batches for a Trainer that it is attached to")
        sampler = self.sampler(
            first_step=self.trainer.global_step * self.accumulate,
            rank=self.trainer.global_rank,
            n_ranks=self.trainer.world_size,
        )
        return self.loader(sampler)

    def sampler(self, *, first_step: int, rank: int, n_ranks: int) -> StepSampler:
        """Tiles of one rank, batch by batch."""
        _share(self.batch_size, n_parts=n_ranks, of="ranks")
        return StepSampler(
            rows=self.rows,
            batch_size=self.batch_size,
            steps_per_epoch=self.steps_per_epoch * self.accumulate,
            n_steps=self.total_steps * self.accumulate,
            first_step=first_step,
            rank=rank,
            n_ranks=n_ranks,
            seed=self.seed,
        )

    def loader(self, sampler: StepSampler) -> StreamLoader:
        """Batches of tiles for a list of steps."""
        return StreamLoader(self.tiles, sampler, self.loading)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Views (V tensors of (B, 3, s, s), normalised) in place of tiles, made on the training device.

        Under `not_restained` the tiles whose stain could not be normalised, by their ids.
        """
        made = self.views.restained(batch["tiles"].permute(0, 3, 1, 2))
        views: list[Tensor] = self.views.of_restained(
            made.tiles, ids=batch["ids"], epoch=batch["epoch"], seed=self.seed
        )
        left = batch["ids"][made.is_left_B].tolist() if self.views.stain else []
        told = {"failed": batch["failed"], "not_restained": dict.fromkeys(left, "")}
        return {"views": views, "ids": batch["ids"], **told}


def _share(batch_size: int, *, n_parts: int, of: str) -> int:
    if batch_size % n_parts:
        raise ValueError(f"a batch of {batch_size} tiles can't be shared equally among {n_parts} {of}")
    return batch_size // n_parts
