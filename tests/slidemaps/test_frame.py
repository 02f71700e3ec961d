"""A frame puts level-0 px where the picture of the scan shows them."""

import numpy as np
import pytest

from histo_ssl.slidemaps.frame import MAX_PIXELS, Frame, Tiles
from histo_ssl.slides.reader import Slide

SCAN = (4000, 2000)


def at(*xy: tuple[int, int], side: int) -> Tiles:
    return Tiles(xy_level0=np.array(xy, dtype=np.int64).reshape(-1, 2), side_level0=side)


def test_sizes_follow_from_width_or_resolution_as_those_of_thumbnails_do(coordinate_slide: str) -> None:
    assert Frame.of_width(SCAN, width_px=500, slide_mpp=None).size_px == (500, 250)
    assert Frame.at_mpp(SCAN, mpp=8, slide_mpp=0.5).size_px == (250, 125)
    slide = Slide(coordinate_slide)
    for mpp in (0.5, 1.3, 8.0, 777.0):
        height, width, _ = slide.thumbnail(mpp).shape
        assert Frame.at_mpp(slide.size_level0, mpp=mpp, slide_mpp=slide.mpp).size_px == (width, height)


def test_corners_are_level0_px_times_the_scale_of_each_axis() -> None:
    frame = Frame.whole(SCAN, size_px=(400, 100), slide_mpp=0.5)
    np.testing.assert_allclose(frame.scale, [0.1, 0.05])
    np.testing.assert_allclose(frame.corners(at((100, 200), side=50)), [[10, 10, 15, 12.5]])
    assert frame.mpp == pytest.approx(5.0)
    assert Frame.whole(SCAN, size_px=(400, 100), slide_mpp=None).mpp is None


def test_corners_in_a_part_of_the_scan_start_at_its_own_corner() -> None:
    frame = Frame(box_level0=(1000, 500, 2000, 1000), size_px=(2000, 1000), slide_mpp=None)
    np.testing.assert_allclose(
        frame.corners(at((1000, 500), (990, 1500), side=10)), [[0, 0, 20, 20], [-20, 2000, 0, 2020]]
    )


@pytest.mark.parametrize("margin", [0.0, 0.1, 50.0])
def test_a_part_around_tiles_holds_them_all_and_shows_the_same_pixels(margin: float) -> None:
    frame = Frame.whole((7000, 6000), size_px=(701, 599), slide_mpp=0.25)
    rows, columns = np.mgrid[:599, :701]
    tiles = at((2000, 1000), (3000, 1500), side=100)
    part, box = frame.around(tiles, margin=margin)
    seen = np.stack([columns, rows], axis=2)[box]
    assert seen.shape[1::-1] == part.size_px
    np.testing.assert_allclose(part.scale, frame.scale)
    left, top = seen[0, 0]
    moved = part.corners(tiles) + np.array([left, top, left, top])
    np.testing.assert_allclose(moved, frame.corners(tiles), atol=1e-9)
    assert part.corners(tiles).min() >= 0
    assert (part.corners(tiles)[:, 2:] <= part.size_px).all()
    room = margin * 1100 * 701 / 7000
    assert left == max(0, np.floor(2000 * 701 / 7000 - room))
    assert left + part.size_px[0] == min(701, np.ceil(3100 * 701 / 7000 + room))


def test_a_slide_without_tiles_is_shown_whole() -> None:
    frame = Frame.whole(SCAN, size_px=(40, 20), slide_mpp=None)
    part, box = frame.around(at(side=10), margin=0.1)
    assert part == frame
    assert box == (slice(0, 20), slice(0, 40))


def test_what_cannot_be_drawn_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="coords \\(N, 2\\) and a side above 0"):
        at((0, 0), side=0)
    with pytest.raises(ValueError, match="coords \\(N, 2\\) and a side above 0"):
        Tiles(xy_level0=np.zeros((3, 3), dtype=int), side_level0=1)
    with pytest.raises(ValueError, match=f"1 to {MAX_PIXELS} pixels are expected"):
        Frame.of_width(SCAN, width_px=20_000, slide_mpp=None)
    with pytest.raises(ValueError, match="a part with an area"):
        Frame(box_level0=(5, 0, 5, 10), size_px=(1, 1), slide_mpp=None)
    with pytest.raises(ValueError, match="scores of shape \\(2,\\) for 1 tiles"):
        at((0, 0), side=1).check(np.zeros(2), name="scores")


@pytest.mark.parametrize(
    ("xy", "is_refused"), [((3999, 1999), False), ((-9, -9), False), ((4000, 0), True), ((0, -10), True)]
)
def test_tiles_of_another_scan_or_level_are_refused(xy: tuple[int, int], is_refused: bool) -> None:
    tiles = at((0, 0), xy, side=10)
    if is_refused:
        with pytest.raises(
            ValueError, match=rf"1 of 2 tiles lie outside the scan of 4000 x 2000 px, .*\({xy[0]}, {xy[1]}\)"
        ):
            tiles.check_scan(SCAN)
    else:
        tiles.check_scan(SCAN)
