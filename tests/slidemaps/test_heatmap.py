"""Each pixel of a map is the mean of what tiles cover of it; places are right to the pixel."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from histo_ssl.slidemaps import heatmap
from histo_ssl.slidemaps.colors import Scale, palette
from histo_ssl.slidemaps.frame import Frame, Tiles
from histo_ssl.slidemaps.heatmap import (
    NO_CLASS,
    ValueMap,
    class_layer,
    class_map,
    drawn_over,
    value_layer,
    value_map,
)
from histo_ssl.slides.reader import Slide

VIRIDIS = Scale(colormap="viridis", low=0.0, high=100.0)


def grid(*, size: tuple[int, int], side: int, stride: int) -> Tiles:
    w, h = size
    xy = [[x, y] for y in range(0, h - side + 1, stride) for x in range(0, w - side + 1, stride)]
    return Tiles(xy_level0=np.array(xy), side_level0=side)


def painted(values: NDArray[np.floating], tiles: Tiles, frame: Frame) -> tuple[NDArray, NDArray]:
    """Area and mean (h, w) by a plain loop over pixels and tiles."""
    w, h = frame.size_px
    left0, top0, right0, bottom0 = frame.box_level0
    pixel_w, pixel_h = (right0 - left0) / w, (bottom0 - top0) / h
    area, total = np.zeros((h, w)), np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            x0, y0 = left0 + j * pixel_w, top0 + i * pixel_h
            for (x, y), value in zip(tiles.xy_level0.tolist(), values, strict=True):
                wide = min(x0 + pixel_w, x + tiles.side_level0) - max(x0, x)
                high = min(y0 + pixel_h, y + tiles.side_level0) - max(y0, y)
                share = max(0.0, wide) * max(0.0, high) / (pixel_w * pixel_h)
                area[i, j] += share
                total[i, j] += share * value
    with np.errstate(invalid="ignore"):
        return area, total / area


def test_a_checkerboard_comes_out_to_the_pixel() -> None:
    tiles = grid(size=(256, 192), side=32, stride=32)
    is_white = (tiles.xy_level0 // 32).sum(axis=1) % 2 == 1
    frame = Frame.whole((256, 192), size_px=(64, 48), slide_mpp=0.5)
    layer = value_layer(value_map(np.where(is_white, 100.0, 0.0), tiles, frame), VIRIDIS)
    rows, columns = np.mgrid[:48, :64] // 8
    ends = np.array([[68, 1, 84, 255], [253, 231, 37, 255]])  # viridis' first and last colours
    np.testing.assert_array_equal(layer, ends[(rows + columns) % 2])


def test_a_map_of_coordinates_is_the_picture_of_a_scan_whose_pixels_are_their_coordinates() -> None:
    tiles = grid(size=(160, 120), side=4, stride=4)
    frame = Frame.whole((160, 120), size_px=(40, 30), slide_mpp=None)
    rows, columns = np.mgrid[:30, :40]
    for axis, place in enumerate((columns, rows)):
        found = value_map(tiles.xy_level0[:, axis] + 2.0, tiles, frame)
        np.testing.assert_allclose(found.values, 4 * place + 2.0, rtol=1e-12)
        np.testing.assert_array_equal(found.covered, 1)


def test_a_map_lies_on_the_thumbnail_of_its_slide_pixel_by_pixel(write_slide) -> None:
    rows, columns = np.mgrid[:300, :400]
    pixels = np.stack([columns // 8 * 5, rows // 8 * 6, 0 * rows], axis=2).astype(np.uint8)
    slide = Slide(write_slide([pixels], mpp=0.5))
    tiles = grid(size=(400, 300), side=8, stride=8)
    means = np.array([pixels[y : y + 8, x : x + 8].mean(axis=(0, 1)) for x, y in tiles.xy_level0])
    thumbnail = slide.thumbnail(4.0)
    frame = Frame.whole(slide.size_level0, size_px=thumbnail.shape[1::-1], slide_mpp=slide.mpp)
    for channel in (0, 1):
        found = value_map(means[:, channel], tiles, frame)
        inside = found.covered == 1
        assert inside.mean() > 0.95
        difference = found.values - thumbnail[..., channel]
        assert np.abs(difference[inside]).max() <= 1.5  # bicubic thumbnails, in steps of 5 and 6


def test_a_map_of_mean_colours_lies_on_a_real_slide_and_nowhere_beside(shared_data: Path) -> None:
    slide = Slide(str(shared_data / "slides" / "CMU-1-Small-Region.svs"))
    pixels = slide.thumbnail(slide.mpp)
    tiles = grid(size=slide.size_level0, side=24, stride=24)
    means = np.array([pixels[y : y + 24, x : x + 24].mean() for x, y in tiles.xy_level0.tolist()])
    thumbnail = uniform_filter(slide.thumbnail(8 * slide.mpp).mean(axis=2), 3)  # a tile is 3 px wide there
    frame = Frame.whole(slide.size_level0, size_px=thumbnail.shape[::-1], slide_mpp=slide.mpp)
    inner = (slice(8, -8), slice(8, -8))
    found = value_map(means, tiles, frame).values[inner].ravel()
    shifts = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    moved = {(dx, dy): np.roll(thumbnail, (dy, dx), axis=(0, 1))[inner].ravel() for dx, dy in shifts}
    fits = {shift: float(np.corrcoef(found, there)[0, 1]) for shift, there in moved.items()}
    assert max(fits, key=lambda shift: fits[shift]) == (0, 0)
    assert fits[0, 0] > 0.98


@given(
    xy=st.lists(st.tuples(st.integers(-7, 40), st.integers(-7, 30)), min_size=1, max_size=12),
    side=st.integers(1, 15),
    size=st.tuples(st.integers(1, 23), st.integers(1, 17)),
    corner=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
)
def test_any_tiles_give_what_a_loop_over_pixels_gives(xy, side, size, corner) -> None:
    tiles = Tiles(xy_level0=np.array(xy), side_level0=side)
    values = np.random.default_rng(len(xy)).normal(size=len(xy))
    box = (*corner, corner[0] + 31.0, corner[1] + 27.0)
    frame = Frame(box_level0=box, size_px=size, slide_mpp=None)
    area, mean = painted(values, tiles, frame)
    found = value_map(values, tiles, frame)
    np.testing.assert_allclose(found.covered, np.minimum(area, 1), atol=1e-6)
    is_seen = area > 1e-9
    np.testing.assert_allclose(found.values[is_seen], mean[is_seen], atol=1e-6)


def test_two_tiles_of_a_pixel_count_by_their_areas() -> None:
    tiles = Tiles(xy_level0=np.array([[0, 0], [4, 0]]), side_level0=8)
    frame = Frame.whole((8, 16), size_px=(1, 1), slide_mpp=None)
    found = value_map(np.array([1.0, 4.0]), tiles, frame)  # a half and a quarter of the pixel
    assert found.values.item() == pytest.approx(2.0)
    assert found.covered.item() == pytest.approx(0.75)


def test_overlapping_tiles_are_averaged_where_they_overlap_and_nowhere_else() -> None:
    tiles = Tiles(xy_level0=np.array([[0, 0], [4, 0], [8, 0]]), side_level0=8)
    frame = Frame.whole((16, 8), size_px=(4, 2), slide_mpp=None)
    found = value_map(np.array([0.0, 50.0, 20.0]), tiles, frame)
    np.testing.assert_allclose(found.values, [[0, 25, 35, 20]] * 2)


def test_a_part_of_a_map_is_the_same_as_that_part_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = grid(size=(997, 803), side=37, stride=23)
    values = np.random.default_rng(0).random(len(tiles))
    frame = Frame.whole((997, 803), size_px=(311, 250), slide_mpp=None)
    whole = value_map(values, tiles, frame)
    some = Tiles(xy_level0=np.array([[400, 300], [500, 420]]), side_level0=37)
    part, box = frame.around(some, margin=0.2)
    found = value_map(values, tiles, part)
    np.testing.assert_allclose(found.values, whole.values[box], atol=1e-9)
    monkeypatch.setattr(heatmap, "BAND_PX", 1000)  # the same in bands of three rows
    banded = value_map(values, tiles, frame)
    np.testing.assert_allclose(banded.values, whole.values, rtol=1e-12)  # sums in another order
    np.testing.assert_allclose(banded.covered, whole.covered, rtol=1e-6)


def test_tiles_without_a_value_are_left_out_and_bare_pixels_are_see_through() -> None:
    tiles = Tiles(xy_level0=np.array([[0, 0], [10, 0]]), side_level0=10)
    frame = Frame.whole((40, 10), size_px=(4, 1), slide_mpp=None)
    found = value_map(np.array([100.0, np.nan]), tiles, frame)
    np.testing.assert_array_equal(found.values, [[100, np.nan, np.nan, np.nan]])
    np.testing.assert_array_equal(value_layer(found, VIRIDIS)[..., 3], [[255, 0, 0, 0]])


def test_no_tile_at_all_gives_an_empty_map() -> None:
    none = Tiles(xy_level0=np.zeros((0, 2), dtype=int), side_level0=10)
    frame = Frame.whole((40, 10), size_px=(4, 1), slide_mpp=None)
    assert np.isnan(value_map(np.zeros(0), none, frame).values).all()
    assert (class_map(np.zeros(0, dtype=int), none, frame, n_classes=3).classes == NO_CLASS).all()


def test_a_pixel_has_the_class_that_covers_most_of_it() -> None:
    tiles = Tiles(xy_level0=np.array([[0, 0], [6, 0], [12, 0], [18, 0], [24, 0]]), side_level0=6)
    frame = Frame.whole((40, 6), size_px=(4, 1), slide_mpp=None)
    found = class_map(np.array([1, 0, 2, 2, NO_CLASS]), tiles, frame, n_classes=3)
    # px 0: 6 of class 1, 4 of 0; px 1: 2 of 0, 8 of 2; px 2: 4 of 2 and a tile left out; px 3: nothing
    np.testing.assert_array_equal(found.classes, [[1, 2, 2, NO_CLASS]])
    np.testing.assert_allclose(found.covered, [[1, 1, 0.4, 0]], rtol=1e-6)
    colors = palette(3)
    layer = class_layer(found, colors)
    np.testing.assert_array_equal(layer[0, :3, :3], colors[[1, 2, 2]])
    np.testing.assert_array_equal(layer[0, :, 3], [255, 255, 102, 0])


def test_where_two_classes_cover_the_same_the_lower_number_shows() -> None:
    tiles = Tiles(xy_level0=np.array([[0, 0], [4, 0]]), side_level0=4)
    frame = Frame.whole((8, 4), size_px=(1, 1), slide_mpp=None)
    assert class_map(np.array([2, 1]), tiles, frame, n_classes=3).classes.item() == 1


def test_a_layer_is_blended_by_its_opacity() -> None:
    thumbnail = np.full((1, 3, 3), (200, 100, 0), dtype=np.uint8)
    layer = np.array([[[0, 200, 100, 255], [0, 200, 100, 102], [0, 200, 100, 0]]], dtype=np.uint8)
    drawn = np.asarray(drawn_over(thumbnail, layer, opacity=0.5, is_grey=False)).astype(int)
    np.testing.assert_allclose(drawn[0], [[100, 150, 50], [160, 120, 20], [200, 100, 0]], atol=1)
    grey = np.asarray(drawn_over(thumbnail, layer, opacity=0.5, is_grey=True)).astype(int)
    luma = 0.299 * 200 + 0.587 * 100  # ITU-R 601
    np.testing.assert_allclose(grey[0, 2], luma, atol=1)


def test_what_does_not_fit_is_refused() -> None:
    tiles = grid(size=(20, 20), side=10, stride=10)
    frame = Frame.whole((20, 20), size_px=(2, 2), slide_mpp=None)
    with pytest.raises(ValueError, match="values of shape \\(3,\\) for 4 tiles"):
        value_map(np.zeros(3), tiles, frame)
    with pytest.raises(ValueError, match="classes from 0 to 3: 0 to 2 are expected"):
        class_map(np.arange(4), tiles, frame, n_classes=3)
    layer = value_layer(ValueMap(values=np.zeros((2, 2)), covered=np.ones((2, 2), np.float32)), VIRIDIS)
    with pytest.raises(ValueError, match="a map of 2 x 2 px can't be drawn over a picture of 3 x 2 px"):
        drawn_over(np.zeros((2, 3, 3), np.uint8), layer, opacity=0.5, is_grey=False)
