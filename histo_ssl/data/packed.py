"""Tiles of slides that are read from packs (`slides/packs.py`): the same pixels, at less cost.

A pack holds the tiles that pretraining draws. What no pack holds (slides of held-out splits, a tile that
could not be read, a slide that failed) is read from its slide, as without packs.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_ssl.data.base import HELD_OUT, TileSource
from histo_ssl.data.rows import RowList
from histo_ssl.data.slides import SlideTiles, gigabytes
from histo_ssl.executors.base import Executor, Processes
from histo_ssl.folders.artifacts import fingerprint
from histo_ssl.slides.packing import Order, pack_path, pack_slides
from histo_ssl.slides.packs import VERSION, Pack

log = logging.getLogger(__name__)

MAX_OPEN = 256  # packs that a process keeps open, a file descriptor each
OF_SLIDES = ("slide_id", "n_bytes", "digest", "n_tiles")  # what packs depend on beside the configuration


class PackedTiles(SlideTiles):
    """The same as `SlideTiles`, with packs.

    Args:
        folder: of the tiles.
        packs: folder of the packs.
        facts: as `SlideTiles` takes them.
    """

    def __init__(self, folder: Path, *, packs: Path, **facts: Any) -> None:
        super().__init__(folder, **facts)
        self.packs = packs
        self._pack = functools.lru_cache(MAX_OPEN)(self._opened_pack)

    def facts(self) -> dict[str, Any]:
        """What it is opened with beside the folder of the tiles."""
        return {**super().facts(), "packs": self.packs}

    def read(self, i: int) -> NDArray[np.uint8]:
        """Tile i as (tile_px, tile_px, 3) RGB.

        Raises:
            ValueError: its pack is damaged or of other tiles, or its slide can't be read.
        """
        number, x, y = self.index.tile(i)
        pack = self._pack(number)
        tile = pack.read(i - int(self.index.offsets[number]), (x, y)) if pack else None
        return super().read(i) if tile is None else tile

    def fetch(self, rows: Any) -> None:
        """Fetch what tiles without a pack are stored in."""
        if self._store:
            super().fetch([row for row in rows if self._pack(self.index.tile(int(row))[0]) is None])

    def faster(self, rows: RowList) -> str:  # noqa: ARG002
        """Nothing: no other way is known."""
        return ""

    def _opened_pack(self, number: int) -> Pack | None:
        order = order_of(self, number)
        return order.opened(self.packs) if pack_path(self.packs, order.slide_id).exists() else None


def with_packs(source: TileSource, folder_of: Callable[[str], Path]) -> PackedTiles:
    """The same tiles, read from the packs in the folder that there is for packs of such a fingerprint.

    Raises:
        ValueError: they are not cut from slides.
    """
    if not isinstance(source, SlideTiles):
        raise ValueError("data.pack=true is for tiles that are cut from slides; images are read as they are")
    return PackedTiles(source.index.folder, packs=folder_of(packs_fingerprint(source)), **source.facts())


def packs_fingerprint(source: SlideTiles) -> str:
    """Of what packs depend on beside the configuration: the slides' files, and how packs are made."""
    slides = source.index.slides
    known = [name for name in OF_SLIDES if name in slides]
    return fingerprint([VERSION, slides[known].values.tolist()])


def order_of(source: SlideTiles, number: int) -> Order:
    """The slide of that number, as it is to be packed."""
    return Order(
        slide_id=str(source.index.slides["slide_id"].iloc[number]),
        slide=source.slide(number),
        known=source.stamp(number),
        spec=source.spec,
        start=int(source.index.offsets[number]),
        stop=int(source.index.offsets[number + 1]),
    )


def pack_tiles(
    folder: Path, *, source: SlideTiles, processes: Processes, executor: Executor
) -> dict[str, int]:
    """Pack the tiles that pretraining may draw into a folder; what was counted comes back."""
    rows = source.training_rows()
    size = gigabytes(source.packed_bytes(rows))
    log.info("pack: storing %s tiles, about %s, in %s", f"{len(rows):,}", size, folder)
    slides = source.index.slides
    wanted = np.flatnonzero(~slides["split"].isin(HELD_OUT) & (slides["n_tiles"] > 0))
    return pack_slides(
        [order_of(source, int(number)) for number in wanted],
        tiles=source.index.folder,
        folder=folder,
        processes=processes,
        executor=executor,
    )
