"""Small pictures of tiles, side by side in one image."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.data.reading import batches_of


def thumbnails(
    source: TileSource, rows: Sequence[int] | NDArray[np.int64], *, side_px: int, loading: Loading
) -> Image.Image:
    """A square grid of tiles, each `side_px` wide, row by row in the order asked; the rest is white.

    Tile i of N lies at column i % c and line i // c, where c is the root of N, rounded up. A tile that
    can't be read is black.
    """
    n_columns = math.isqrt(len(rows) - 1) + 1
    n_lines = math.ceil(len(rows) / n_columns)
    sheet = Image.new("RGB", (n_columns * side_px, n_lines * side_px), "white")
    place = 0
    for batch in batches_of(source, rows, loading=loading):
        for tile in batch["tiles"].numpy():
            line, column = divmod(place, n_columns)
            small = Image.fromarray(tile).resize((side_px, side_px), Image.Resampling.BOX)
            sheet.paste(small, (column * side_px, line * side_px))
            place += 1
    return sheet
