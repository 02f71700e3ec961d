"""What the rest of the house knows of data: sets that can be cut into tiles, sources that read them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.slides.grid import Tiling

SOURCE = "source.json"  # in a tile folder: what kind of tiles it lists, and their scale
STATUS = "status.csv"  # in a tile folder: one row per slide, or per image that could not be read
HELD_OUT = ("valid", "test")  # splits that pretraining never sees
SPLITS = {"": "", "train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of tiles that is embedded into one file: all tiles of a slide, or a stretch of images."""

    name: str
    start: int
    stop: int


@runtime_checkable
class TileSource(Protocol):
    """Tiles by number. Picklable and without open handles, so that any worker may read any tile."""

    tile_px: int
    mpp: float | None  # um per tile pixel; None where nobody knows

    def __len__(self) -> int:
        """Number of tiles."""

    def read(self, i: int) -> NDArray[np.uint8]:
        """Tile i as (tile_px, tile_px, 3) RGB."""

    def coords(self) -> NDArray[np.int64]:
        """(N, 2) left and top edges of all tiles in level-0 px; zeros for images."""

    def training_rows(self) -> NDArray[np.int64]:
        """Numbers of the tiles that pretraining may see: all but those of a validation or test split."""

    def parts(self) -> list[Part]:
        """Runs of tiles that together are all tiles, in order."""

    def table(self) -> pd.DataFrame:
        """One row per tile, in order: slide, x, y (level-0 px), patient, site, split, label ("" for none)."""


class DataSet(Protocol):
    """Slides or images on a disk, or yet to be drawn."""

    def listing(self) -> dict[str, Any]:
        """What is there, as far as tiles depend on it, quickly: a noun -> names -> what is known of each.

        Part of the fingerprint of everything made of these data; so neither times (a copy is the same data)
        nor the place of the files. Empty where the configuration says it all.
        """

    def tile(
        self, tiling: Tiling, *, folder: Path, home: Path, n_processes: int, slide_timeout_s: float
    ) -> dict[str, int]:
        """Write the list of all tiles into `folder`; what was counted comes back.

        Args:
            tiling: how slides are cut.
            folder: receives the index, `source.json` and `status.csv`.
            home: where a data set that makes its own slides keeps them.
            n_processes: how many slides are surveyed at a time, each in a process of its own; 0: in this one.
            slide_timeout_s: after which a slide is given up, unless it is surveyed in this process.
        """


def named_splits(values: Iterable[str], *, source: str) -> list[str]:
    """Splits by the names of the house: `["Test", "val", ""]` is `["test", "valid", ""]`.

    Raises:
        ValueError: a value is no split; letting it pass could show test tiles to pretraining.
    """
    words = [value.strip().lower() for value in values]
    unknown = sorted(set(words) - SPLITS.keys())
    if unknown:
        raise ValueError(f"{source}: split {', '.join(unknown)}: train, valid, test or nothing is expected")
    return [SPLITS[word] for word in words]


def check_failures(failed: list[str], *, n_items: int, max_failed: float, noun: str) -> None:
    """Refuse to go on when too much of a data set can't be used.

    Args:
        failed: one sentence per slide or image that failed.
        n_items: how many there are in all.
        max_failed: largest share that may fail, 0-1.
        noun: what they are, for the message.

    Raises:
        ValueError: more than that share failed; names the first of them.
    """
    if len(failed) > max_failed * n_items:
        raise ValueError(
            f"{len(failed)} of {n_items} {noun} failed, more than data.max_failed={max_failed:g} allows; "
            f"the first: {failed[0]}"
        )
