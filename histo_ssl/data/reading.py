"""Batches of tiles as workers read them, and what becomes of a tile that can't be read.

B: tiles in a batch; S: side of a tile in px.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from histo_ssl.data.base import Distant, Part, TileSource
from histo_ssl.data.loading import Loading, TileLoader
from histo_ssl.data.rows import RowList

Batch = dict[str, Any]
Wanted = tuple[int, int]  # number of a tile in its source, epoch it is wanted for

N_REPLACEMENTS = 5  # tried in place of a tile: if they all fail, it is not the tile
REPLACING = 1  # a third word in the seed, so that no epoch's shuffling draws the same
AT_A_TIME = 64  # tiles that a worker hands over together where nobody asked for another number


@dataclass(frozen=True)
class BlankedTiles(Dataset[Any]):
    """For scores, in which no other tile may stand for one that can't be read: it is blank, and named."""

    source: TileSource

    def __getitems__(self, wanted: list[Wanted]) -> Batch:
        """Tiles (B, S, S, 3) uint8 with their ids (B,), and under `failed` why some are blank, by id."""
        failed: dict[int, str] = {}
        _fetch(self.source, wanted)
        tiles = np.stack([self._read(row, failed) for row, _ in wanted])
        ids = torch.tensor([row for row, _ in wanted])
        return {"tiles": torch.from_numpy(tiles), "ids": ids, "failed": failed}

    def _read(self, row: int, failed: dict[int, str]) -> NDArray[np.uint8]:
        try:
            return self.source.read(row)
        except (ValueError, OSError) as error:
            failed[row] = str(error)
            return np.zeros((self.source.tile_px, self.source.tile_px, 3), np.uint8)


@dataclass(frozen=True)
class Batches:
    """The batches of parts, one after the other, made as they are asked for: there may be a million."""

    parts: Sequence[Part]
    size: int  # of a batch; the last of a part may be smaller

    def __len__(self) -> int:
        return sum(len(self.starts(part)) for part in self.parts)

    def __iter__(self) -> Iterator[list[Wanted]]:
        for part in self.parts:
            for start in self.starts(part):
                yield [(row, 0) for row in range(start, min(start + self.size, part.stop))]

    def starts(self, part: Part) -> range:
        """Where the batches of a part begin."""
        return range(part.start, part.stop, self.size)


@dataclass(frozen=True)
class ReplacedTiles(Dataset[Any]):
    """For training: a tile that can't be read is replaced by another one, and named."""

    source: TileSource
    rows: RowList  # numbers of the tiles that may take its place
    seed: int

    def __getitems__(self, wanted: list[Wanted]) -> Batch:
        """Tiles, the ids of those that were read, their epochs (B,), and why others were not."""
        failed: dict[int, str] = {}
        _fetch(self.source, wanted)
        tiles, ids = zip(*(self._read(row, failed) for row, _ in wanted), strict=True)
        epochs = torch.tensor([epoch for _, epoch in wanted])
        return {
            "tiles": torch.from_numpy(np.stack(tiles)),
            "ids": torch.tensor(ids),
            "epoch": epochs,
            "failed": failed,
        }

    def _read(self, row: int, failed: dict[int, str]) -> tuple[NDArray[np.uint8], int]:
        for candidate in (row, *self.replacements(row)):
            try:
                return self.source.read(candidate), candidate
            except (ValueError, OSError) as error:
                failed[candidate] = str(error)
        raise ValueError(f"{failed[row]}; and {N_REPLACEMENTS} other tiles tried in its place fail, too")

    def replacements(self, row: int) -> list[int]:
        """The tiles to try in place of a tile, in order: a pure function of its number and the seed."""
        draws = np.random.default_rng([self.seed, row, REPLACING])
        return [int(other) for other in self.rows[draws.integers(len(self.rows), size=N_REPLACEMENTS)]]


def _fetch(source: TileSource, wanted: Sequence[Wanted]) -> None:
    if isinstance(source, Distant):
        source.fetch([row for row, _ in wanted])


def read_tiles(
    source: TileSource, rows: Sequence[int] | NDArray[np.int64], *, loading: Loading
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Some tiles (N, S, S, 3), blank where they can't be read, and the reasons by number of the tile.

    Raises:
        TimeoutError: a worker hangs in a read. (Without workers nothing can end it.)
    """
    batches = list(batches_of(source, rows, loading=loading))
    failed = {row: reason for batch in batches for row, reason in batch["failed"].items()}
    return np.concatenate([batch["tiles"].numpy() for batch in batches]), failed


def batches_of(
    source: TileSource, rows: Sequence[int] | NDArray[np.int64], *, loading: Loading
) -> Iterator[Batch]:
    """The same, some at a time: batches as of `BlankedTiles`."""
    chunks = [rows[i : i + AT_A_TIME] for i in range(0, len(rows), AT_A_TIME)]
    wanted = [[(int(row), 0) for row in chunk] for chunk in chunks]
    return iter(TileLoader(BlankedTiles(source), wanted, loading))
