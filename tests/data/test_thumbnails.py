"""Thumbnails stand in the order asked, in a square of tiles."""

from collections.abc import Callable

import numpy as np
import pytest

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.data.thumbnails import thumbnails

LOADING = Loading(n_workers=0, start_method="fork", timeout_s=0)


@pytest.mark.parametrize(("n_tiles", "n_columns", "n_lines"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3)])
def test_each_tile_is_the_mean_of_its_pixels_at_its_place(
    image_source: Callable[[int], TileSource], n_tiles: int, n_columns: int, n_lines: int
) -> None:
    source = image_source(9)
    rows = [8, 3, 0, 7, 1, 2, 4, 5, 6][:n_tiles]
    sheet = np.asarray(thumbnails(source, rows, side_px=8, loading=LOADING)).astype(float)
    assert sheet.shape == (8 * n_lines, 8 * n_columns, 3)
    for place in range(n_lines * n_columns):
        top, left = 8 * (place // n_columns), 8 * (place % n_columns)
        found = sheet[top : top + 8, left : left + 8]
        white = np.full((8, 8, 3), 255.0)
        tile = source.read(rows[place]).reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)) if place < n_tiles else white
        np.testing.assert_allclose(found, tile, atol=1)
