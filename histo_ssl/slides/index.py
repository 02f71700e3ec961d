"""All tiles of a slide list as one memory-mapped table, and what became of each slide.

`index.npy` holds 12 bytes per tile, so that 100 million tiles open at once and all workers share their pages.
`status.csv` holds one row per slide, in the same order.
"""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.folders.artifacts import atomic_path, write_text
from histo_ssl.folders.cells import csv_text, exact_table

INDEX = "index.npy"
STATUS = "status.csv"
TILE = np.dtype([("slide", "<u4"), ("x", "<i4"), ("y", "<i4")])  # row of status.csv; level-0 px
WHOLE_NUMBERS = ("width_px", "height_px", "n_levels", "n_tiles", "n_unwritten", "n_bytes", "modified_ns")
FRACTIONS = ("mpp", "tissue_mm2", "seconds")


class TileIndex:
    """The tiles that lie in a folder, slide after slide; picklable, since it holds its folder's name only.

    Args:
        folder: where `write_index` wrote.

    Raises:
        FileNotFoundError: there is no index in the folder.
        ValueError: index and status are not of the same run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slides = read_status(folder)
        self.tiles: np.memmap[Any, Any] = np.load(folder / INDEX, mmap_mode="r", allow_pickle=False)
        self._file = os.open(folder / INDEX, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        # Tiles of slide i are offsets[i] to offsets[i + 1].
        self.offsets = np.concatenate([[0], self.slides["n_tiles"].cumsum()]).astype(np.int64)
        if self.offsets[-1] != len(self.tiles):
            raise ValueError(
                f"{folder}: {INDEX} lists {len(self.tiles)} tiles and {STATUS} {self.offsets[-1]}; "
                "delete the folder, so that its slides are cut again"
            )

    def __reduce__(self) -> tuple[type["TileIndex"], tuple[Path]]:
        return TileIndex, (self.folder,)

    def __len__(self) -> int:
        """Number of tiles on all slides."""
        return len(self.tiles)

    def tile(self, i: int) -> tuple[int, int, int]:
        """Number of the slide, left and top edge of tile i, level-0 px.

        Read from the file, so that who draws tiles at random has not soon all of the table among its pages.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"{self.folder / INDEX}: tile {i} of {len(self)}")
        content = os.pread(self._file, TILE.itemsize, self.tiles.offset + i * TILE.itemsize)
        slide, x, y = np.frombuffer(content, TILE)[0].tolist()
        return slide, x, y

    def of_slide(self, i: int) -> NDArray[np.int32]:
        """(N, 2) left and top edges of the tiles of slide i, level-0 px."""
        tiles = self.tiles[self.offsets[i] : self.offsets[i + 1]]
        return np.stack([tiles["x"], tiles["y"]], axis=1)


def places_of(folder: Path, start: int, stop: int) -> NDArray[np.int32]:
    """(N, 2) left and top edges of the tiles of those numbers in a folder's index, level-0 px."""
    tiles = np.load(folder / INDEX, mmap_mode="r", allow_pickle=False)[start:stop]
    return np.stack([tiles["x"], tiles["y"]], axis=1)


def write_index(folder: Path, *, status: pd.DataFrame, xy_level0: Sequence[NDArray[np.int32]]) -> TileIndex:
    """Write the tiles of a slide list and the status of its slides, each file atomically.

    Args:
        folder: receives both files.
        status: one row per slide, with a column n_tiles.
        xy_level0: for each slide the (N, 2) left and top edges of its tiles, level-0 px.
    """
    n_tiles = sum(map(len, xy_level0))
    header = {"descr": np.lib.format.dtype_to_descr(TILE), "fortran_order": False, "shape": (n_tiles,)}
    # Written, not memory-mapped: on a full disk a write fails, where a mapped page kills the process.
    with atomic_path(folder / INDEX) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for i, xy in enumerate(xy_level0):
            file.write(_rows(i, xy).tobytes())
    write_text(folder / STATUS, csv_text(status))
    return TileIndex(folder)


def _rows(slide: int, xy_level0: NDArray[np.int32]) -> NDArray[Any]:
    rows = np.empty(len(xy_level0), TILE)
    rows["slide"], rows["x"], rows["y"] = slide, xy_level0[:, 0], xy_level0[:, 1]
    return rows


def read_status(folder: Path) -> pd.DataFrame:
    """One row per slide: its manifest columns as text ("" where empty), its counts and sizes as numbers."""
    status = exact_table(pd.read_csv(folder / STATUS, dtype=str, keep_default_na=False))
    return status.assign(
        **{name: status[name].astype(np.int64) for name in WHOLE_NUMBERS if name in status},
        **{name: pd.to_numeric(status[name]).astype(float) for name in FRACTIONS},
    )
