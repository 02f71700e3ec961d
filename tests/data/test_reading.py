"""Tiles that can't be read are blank and named, or replaced, and a reader that hangs is ended."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.data.reading import BlankedTiles, read_tiles

Source = Callable[[int], TileSource]


@dataclass
class Hanging:
    """A source of which tile 2 never comes."""

    tile_px: int = 8

    def read(self, i: int) -> NDArray[np.uint8]:
        if i == 2:
            time.sleep(1000.0)
        return np.full((8, 8, 3), i, np.uint8)


def _loading(*, n_workers: int, timeout_s: int = 60) -> Loading:
    return Loading(n_workers=n_workers, start_method="fork", timeout_s=timeout_s)


def test_a_tile_that_cannot_be_read_is_blank_and_named_in_its_place(image_source: Source) -> None:
    source = image_source(4)
    whole = np.stack([source.read(i) for i in range(4)])
    path = Path(source.images["path"][2])
    path.write_bytes(b"no image")
    batch = BlankedTiles(source).__getitems__([(3, 0), (2, 0), (0, 0)])
    assert batch["ids"].tolist() == [3, 2, 0]
    assert list(batch["failed"]) == [2]
    assert path.name in batch["failed"][2]
    np.testing.assert_array_equal(batch["tiles"], np.stack([whole[3], np.zeros_like(whole[0]), whole[0]]))


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_more_tiles_than_are_handed_over_together_come_in_the_order_asked(
    image_source: Source, n_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histo_ssl.data.reading.AT_A_TIME", 2)
    source = image_source(5)
    rows = [4, 0, 3, 3, 1]
    tiles, failed = read_tiles(source, rows, loading=_loading(n_workers=n_workers))
    assert failed == {}
    np.testing.assert_array_equal(tiles, np.stack([source.read(row) for row in rows]))


def test_a_read_that_hangs_ends_in_a_sentence_where_a_worker_does_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("histo_ssl.data.loading.POLL_S", 0.5)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"within loader\.timeout_s=1 s"):
        read_tiles(Hanging(), [0, 1, 2], loading=_loading(n_workers=1, timeout_s=1))  # type: ignore[arg-type]
    assert time.monotonic() - started < 30
