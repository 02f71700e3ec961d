"""The grid: against a plain loop over pixels, and hand-computed corners."""

import time
from dataclasses import replace

import numpy as np
import pytest

from histo_ssl.slides.grid import TileSpec, Tiling, tile_grid
from histo_ssl.units import MicronsPerPx, TilePx

HALF = MicronsPerPx(0.5)


def spec(
    size_px: int, *, stride_px: int | None = None, min_tissue: float = 0.5, mpp: float = 0.5
) -> TileSpec:
    return TileSpec(
        size_px=TilePx(size_px),
        mpp=MicronsPerPx(mpp),
        stride_px=TilePx(stride_px or size_px),
        min_tissue=min_tissue,
    )


@pytest.mark.parametrize(
    ("slide_mpp", "side"), [(0.25, 448), (0.5, 224), (0.499, 224), (0.504, 222), (0.525, 213)]
)
def test_the_footprint_of_a_tile_is_its_side_in_um(slide_mpp: float, side: int) -> None:
    assert spec(224).side_level0(MicronsPerPx(slide_mpp)) == side


def test_a_scan_more_than_five_percent_coarser_is_refused_with_the_um_per_px_that_works() -> None:
    with pytest.raises(
        ValueError, match=r"0\.5 um/px asked from a scan of 0\.690 um/px.*tiling\.mpp >= 0\.690"
    ):
        spec(224).side_level0(MicronsPerPx(0.69))


def test_tiles_lie_wholly_inside_the_scan_row_by_row() -> None:
    xy = tile_grid(np.ones((20, 25), bool), spec(100), size_level0=(250, 200), slide_mpp=HALF)
    assert xy.dtype == np.int32
    assert xy.tolist() == [[0, 0], [100, 0], [0, 100], [100, 100]]


def test_a_scan_smaller_than_a_tile_has_none() -> None:
    assert tile_grid(np.ones((9, 9), bool), spec(100), size_level0=(99, 500), slide_mpp=HALF).shape == (0, 2)


def test_overlapping_tiles_are_a_stride_apart_in_um() -> None:
    half_stride = spec(100, stride_px=50)
    xy = tile_grid(np.ones((4, 4), bool), half_stride, size_level0=(400, 200), slide_mpp=MicronsPerPx(0.25))
    assert xy.tolist() == [[0, 0], [100, 0], [200, 0]]


def test_the_tissue_share_is_that_of_a_loop_over_level_0_pixels() -> None:
    random = np.random.default_rng(0)
    mask = random.random((9, 14)) < 0.5
    w, h, side = 97, 61, 10  # no whole number of level-0 pixels per pixel of the mask
    # Each level-0 pixel is cut into 9 x 14 parts, so that every part lies in one pixel of the mask.
    fine = mask[np.arange(h * 9) * 9 // (h * 9)][:, np.arange(w * 14) * 14 // (w * 14)]
    shares = {
        (x, y): fine[y * 9 : (y + side) * 9, x * 14 : (x + side) * 14].mean()
        for y in range(0, h - side + 1, side)
        for x in range(0, w - side + 1, side)
    }
    for min_tissue in (0.0, 0.25, 0.5, 0.6, 1.0):
        xy = tile_grid(mask, spec(side, min_tissue=min_tissue), size_level0=(w, h), slide_mpp=HALF)
        assert [tuple(place) for place in xy.tolist()] == [
            at for at, share in shares.items() if share >= min_tissue
        ]


def test_a_tile_that_is_all_tissue_passes_a_share_of_one_at_any_fraction() -> None:
    for w in range(200, 260):
        xy = tile_grid(
            np.ones((7, 13), bool), spec(31, min_tissue=1.0), size_level0=(w, w + 3), slide_mpp=HALF
        )
        assert len(xy) == (w // 31) * ((w + 3) // 31)


def test_a_slide_of_100_000_px_takes_under_a_second() -> None:
    mask = np.ones((3125, 3125), bool)
    started = time.process_time()
    xy = tile_grid(mask, spec(256), size_level0=(100_000, 100_000), slide_mpp=MicronsPerPx(0.25))
    assert len(xy) == 195 * 195
    assert time.process_time() - started < 1  # about 0.1 s


def test_a_tiling_for_images_says_what_slides_need(tiling: Tiling) -> None:
    assert tiling.spec == spec(128)
    with pytest.raises(ValueError, match=r"tiling\.mpp=None.*tiling=small or tiling=study"):
        _ = replace(tiling, mpp=None).spec
    with pytest.raises(ValueError, match=r"tiling\.min_tissue=1\.5.*within 0-1"):
        _ = replace(tiling, min_tissue=1.5).spec
