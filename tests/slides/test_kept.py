"""Stored tiles are decoded once for all the tiles that they lie under, and never handed out themselves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histo_ssl.slides import kept, opened, segments
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.reader import Slide
from histo_ssl.units import MicronsPerPx, TilePx

SIDE = 64  # of a stored tile
FLAT = TileSpec(size_px=TilePx(SIDE), mpp=MicronsPerPx(0.5), stride_px=TilePx(SIDE), min_tissue=0)


@pytest.fixture
def n_decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that tells how many stored tiles were decoded so far."""
    calls, decode = [], segments.decoded

    def count(*args: object, **words: object) -> object:
        calls.append(1)
        return decode(*args, **words)

    monkeypatch.setattr(segments, "decoded", count)
    monkeypatch.setattr(kept.kept, "segments", type(kept.kept.segments)())
    monkeypatch.setattr(kept.kept, "of_file", {})
    monkeypatch.setattr(kept.kept, "n_bytes", 0)
    return lambda: len(calls)


@pytest.fixture
def noise(write_slide: Callable[..., str]) -> tuple[str, np.ndarray]:
    """A slide of 4 x 4 stored tiles at 0.5 um/px, and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (4 * SIDE, 4 * SIDE, 3), dtype=np.uint8)
    return write_slide([pixels], mpp=0.5), pixels


def test_off_the_stored_grid_every_stored_tile_is_decoded_once(
    noise: tuple[str, np.ndarray], n_decoded: Callable[[], int]
) -> None:
    path, pixels = noise
    for y in range(20, 3 * SIDE, SIDE):
        for x in range(11, 3 * SIDE, SIDE):
            tile = Slide(path).read((x, y), FLAT)
            np.testing.assert_array_equal(tile, pixels[y : y + SIDE, x : x + SIDE])
    assert n_decoded() == 16


def test_no_more_is_kept_than_the_bound(
    noise: tuple[str, np.ndarray], n_decoded: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MAX_BYTES", 5 * 3 * SIDE**2)
    path, pixels = noise
    for y, x in [(10, 10), (100, 100), (10, 10)]:
        tile = Slide(path).read((x, y), FLAT)
        np.testing.assert_array_equal(tile, pixels[y : y + SIDE, x : x + SIDE])
    # 3 more come to the first 4, so 2 go; to have these again, the other 2 go
    assert n_decoded() == 4 + 3 + 4
    assert kept.kept.n_bytes == sum(segment.nbytes for segment in kept.kept.segments.values())
    assert len(kept.kept.segments) == 5


def test_what_is_done_to_a_tile_is_not_seen_in_the_next(noise: tuple[str, np.ndarray]) -> None:
    path, pixels = noise
    for xy in [(0, 0), (7, 9)]:  # one stored tile, and four
        Slide(path).read(xy, FLAT)[:] = 0
        tile = Slide(path).read(xy, FLAT)
        np.testing.assert_array_equal(tile, pixels[xy[1] : xy[1] + SIDE, xy[0] : xy[0] + SIDE])


def test_nothing_is_kept_of_a_slide_that_is_closed(
    noise: tuple[str, np.ndarray], n_decoded: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "MAX_OPEN_SLIDES", 2)
    path, _ = noise
    for i in range(5):
        other = Path(path).with_name(f"{i}.tif")
        other.write_bytes(Path(path).read_bytes())
        Slide(str(other)).read((7, 9), FLAT)
    assert n_decoded() == 5 * 4
    assert len(kept.kept.segments) == 2 * 4
    assert kept.kept.n_bytes == 2 * 4 * 3 * SIDE**2


def test_a_file_that_was_written_anew_is_not_read_from_what_is_kept(
    noise: tuple[str, np.ndarray], write_slide: Callable[..., str]
) -> None:
    path, pixels = noise
    Slide(path).read((7, 9), FLAT)
    other = write_slide([255 - pixels], mpp=0.5, name="other.tif")
    Path(path).write_bytes(Path(other).read_bytes())
    np.testing.assert_array_equal(Slide(path).read((7, 9), FLAT), 255 - pixels[9 : 9 + SIDE, 7 : 7 + SIDE])
