"""Packs of a slide list: one file per slide with its tiles as they are or without a loss (`packs.py`).

A slide of which the process hangs or crashes gets its reason, and the others go on. A slide whose pack is
there, whole and of the same tiles, is not packed again, so that a killed run goes on where it was.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.executors.base import Ended, Executor, Processes
from histo_ssl.folders.artifacts import write_text
from histo_ssl.folders.cells import csv_text
from histo_ssl.progress import Progress
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.index import STATUS, places_of
from histo_ssl.slides.packs import JPEG, LOSSLESS, UNREAD, Pack, Tile, as_bytes, made_of, write_pack
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.stamps import Stamp

log = logging.getLogger(__name__)

AT_A_TIME = 64  # tiles of a remote slide that are fetched together
A_TILE_S = 0.1  # that a tile may take beside what a slide may; 20 times what one of a 40x scan needs
COUNTED = ("n_jpeg", "n_lossless", "n_unread", "n_bytes")
COLUMNS = ("slide_id", "n_tiles", *COUNTED, "seconds", "reason")
Status = Mapping[str, str | int | float]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A slide to be packed.

    Args:
        slide_id: names the file.
        slide: as it was tiled.
        known: its stamp.
        spec: of its tiles.
        start: number of its first tile in the index.
        stop: the one behind its last.
    """

    slide_id: str
    slide: Slide
    known: Stamp | None
    spec: TileSpec
    start: int
    stop: int

    @property
    def made_of(self) -> bytes:
        """What its tiles depend on beside their places."""
        return made_of(self.known, self.spec, slide_mpp=self.slide.mpp)

    def opened(self, folder: Path) -> Pack:
        """Its pack.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of other tiles.
        """
        n_tiles = self.stop - self.start
        return Pack(
            pack_path(folder, self.slide_id),
            n_tiles=n_tiles,
            made_of=self.made_of,
            side_px=self.spec.size_px,
        )


def pack_path(folder: Path, slide_id: str) -> Path:
    """Where the pack of a slide lies."""
    return folder / f"{slide_id}.pack"


def pack_slides(
    orders: Sequence[Order], *, tiles: Path, folder: Path, processes: Processes, executor: Executor
) -> dict[str, int]:
    """Write a pack per slide and `status.csv`; what was counted comes back.

    Args:
        orders: the slides.
        tiles: folder of their index.
        folder: receives the packs.
        processes: how many at a time, and what each slide may take beside its tiles' time.
        executor: who does it.
    """
    longest = max((order.stop - order.start for order in orders), default=0)
    limits = replace(processes, timeout_s=processes.timeout_s + A_TILE_S * longest)
    work = partial(pack_slide, tiles=tiles.resolve(), folder=folder.resolve())
    rows: list[Status] = [{} for _ in orders]
    with Progress("pack", n_items=len(orders), noun="slides") as progress:
        for place, found in executor.each(work, orders, limits, folder=folder):
            rows[place] = _without_pack(found.item, found.reason) if isinstance(found, Ended) else found
            progress.advance(1)
    status = pd.DataFrame(rows, columns=list(COLUMNS))
    write_text(folder / STATUS, csv_text(status))
    failed = status[status["reason"] != ""]
    if len(failed):
        log.warning(
            "pack: %d of %d slides could not be packed (%s); their tiles are read from the slides; the "
            "first: %s",
            *(len(failed), len(status), folder / STATUS, failed["reason"].iloc[0]),
        )
    counted = {name: int(status[name].sum()) for name in ("n_tiles", *COUNTED)}
    names = ("tiles", "tiles as stored", "tiles without a loss", "tiles left to the slides", "bytes")
    return {"slides": len(status), "failed": len(failed), **dict(zip(names, counted.values(), strict=True))}


def pack_slide(order: Order, *, tiles: Path, folder: Path) -> Status:
    """Pack a slide, unless it is packed already; its row of the status."""
    started = time.perf_counter()
    places = places_of(tiles, order.start, order.stop)
    try:
        n_of_kind = _found(order, places, folder)
        if n_of_kind is None:
            path = pack_path(folder, order.slide_id)
            write_pack(path, _tiles(order, places), made_of=order.made_of)
            n_of_kind = order.opened(folder).kinds(places)
    except MemoryError:
        return _without_pack(
            order, "packing it takes more memory than there is, or data.max_memory_gb allows"
        )
    return {
        "slide_id": order.slide_id,
        "n_tiles": len(places),
        "n_jpeg": int(n_of_kind[JPEG]),
        "n_lossless": int(n_of_kind[LOSSLESS]),
        "n_unread": int(n_of_kind[UNREAD]),
        "n_bytes": pack_path(folder, order.slide_id).stat().st_size,
        "seconds": round(time.perf_counter() - started, 3),
        "reason": "",
    }


def _tiles(order: Order, places: NDArray[np.int32]) -> Iterator[Tile]:
    for start in range(0, len(places), AT_A_TIME):
        some = [(x, y) for x, y in places[start : start + AT_A_TIME].tolist()]
        order.slide.fetch(some, order.spec)
        yield from (as_bytes(order.slide, place, order.spec) for place in some)


def _found(order: Order, places: NDArray[np.int32], folder: Path) -> NDArray[np.int64] | None:
    """How many tiles of each kind the pack of a slide has that is there already; None where it is no good."""
    try:
        return order.opened(folder).kinds(places)
    except (FileNotFoundError, ValueError):
        return None


def _without_pack(order: Order, reason: str) -> Status:
    n_tiles, nothing = order.stop - order.start, dict.fromkeys(COUNTED, 0)
    return {"slide_id": order.slide_id, "n_tiles": n_tiles, **nothing, "seconds": 0.0, "reason": reason}
