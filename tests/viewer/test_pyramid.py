"""Tiles of Deep Zoom levels against the pixels that the reader gives, and those against plain arithmetic."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from histo_ssl.slides.reader import Slide
from histo_ssl.viewer import pyramid
from histo_ssl.viewer.pyramid import TILE_PX, NotThereError, Pyramid, Spot, slide_pixels, square_pixels

Pixels = np.ndarray


def _smooth(w: int, h: int) -> Pixels:
    """A picture without edges, so that ways to halve it hardly differ."""
    y, x = np.mgrid[:h, :w]
    waves = [np.sin(x / 90), np.cos(y / 70), np.sin((x + y) / 110)]
    return np.stack([127 + 90 * wave for wave in waves], axis=2).round().astype(np.uint8)


def _halved(image: Pixels, scale: int) -> Pixels:
    """Means of squares; the last ones reach beyond the picture, onto white."""
    h, w = (-(-side // scale) * scale for side in image.shape[:2])
    full = np.full((h, w, 3), 255.0)
    full[: image.shape[0], : image.shape[1]] = image
    return full.reshape(h // scale, scale, w // scale, scale, 3).mean(axis=(1, 3))


def test_levels_are_powers_of_two_of_the_scan() -> None:
    levels = Pyramid(size_level0=(20_000, 17_000))
    assert levels.max_level == 15
    assert levels.size(15) == (20_000, 17_000)
    assert levels.size(8) == (157, 133)
    assert levels.size(0) == (1, 1)
    assert (levels.min_level, max(levels.size(9))) == (9, 313)


def test_tiles_cover_a_level_once_and_the_last_ones_end_with_it() -> None:
    levels = Pyramid(size_level0=(1300, 600))
    spots = [levels.spot(11, column=column, row=row) for row in range(2) for column in range(3)]
    assert sum(spot.width * spot.height for spot in spots) == 1300 * 600
    assert spots[-1] == Spot(left=1024, top=512, width=276, height=88, scale=1)
    assert levels.spot(10, column=1, row=0) == Spot(left=512, top=0, width=138, height=300, scale=2)


@pytest.mark.parametrize(
    ("level", "column", "row"), [(12, 0, 0), (11, 3, 0), (11, 0, 2), (10, 0, 1), (99, 0, 0)]
)
def test_there_are_no_tiles_beyond_a_level(level: int, column: int, row: int) -> None:
    with pytest.raises(NotThereError):
        Pyramid(size_level0=(1300, 600)).spot(level, column=column, row=row)


def test_the_highest_level_is_the_scan_pixel_by_pixel(coordinate_slide: str) -> None:
    slide = Slide(coordinate_slide)
    levels = Pyramid(size_level0=slide.size_level0)
    y, x = np.mgrid[512:600, 512:700]
    expected = np.stack([x % 256, y % 256, 16 * (x // 256) + y // 256], axis=2)
    assert np.array_equal(slide_pixels(slide, levels.spot(10, column=1, row=1)), expected)


@pytest.mark.parametrize("is_pyramidal", [True, False])
@pytest.mark.parametrize("level", [9, 8, 7, 5])
def test_lower_levels_are_the_scan_made_smaller(
    write_slide: Callable[..., str], level: int, is_pyramidal: bool
) -> None:
    image = _smooth(1000, 700)
    smaller = [np.asarray(Image.fromarray(image).reduce(4))] if is_pyramidal else []
    slide = Slide(write_slide([image, *smaller], mpp=0.25))
    levels = Pyramid(size_level0=slide.size_level0)
    spot = levels.spot(level, column=0, row=0)
    expected = _halved(image, spot.scale)
    got = slide_pixels(slide, spot).astype(float)
    assert got.shape == (*levels.size(level)[::-1], 3) == expected.shape
    last = slice(None, -1 if is_pyramidal else None)  # the file's own level ends with a mean of less
    assert np.abs(got[last, last] - expected[last, last]).max() < 1.01


def test_lower_levels_of_a_file_whose_own_do_not_fit_are_filtered(write_slide: Callable[..., str]) -> None:
    image = _smooth(900, 900)
    third = np.asarray(Image.fromarray(image).reduce(3))
    slide = Slide(write_slide([image, third], mpp=0.25))
    spot = Pyramid(size_level0=slide.size_level0).spot(8, column=0, row=0)  # 4 times as coarse
    apart = np.abs(slide_pixels(slide, spot).astype(float) - _halved(image, 4))
    assert apart[2:-2, 2:-2].max() < 4
    assert apart[2:-2, 2:-2].mean() < 1


def test_tiles_of_a_level_meet_without_a_seam(write_slide: Callable[..., str]) -> None:
    image = _smooth(2300, 1100)
    slide = Slide(write_slide([image], mpp=0.5))
    levels = Pyramid(size_level0=slide.size_level0)
    left, right = (
        slide_pixels(slide, levels.spot(11, column=column, row=0)).astype(int) for column in (0, 1)
    )
    steps = np.abs(np.diff(np.concatenate([left, right], axis=1), axis=1)).max(axis=(0, 2))
    assert left.shape[1] == TILE_PX
    assert steps[TILE_PX - 1] <= steps.max()
    assert steps.max() <= 3


def test_a_slide_of_one_level_is_read_in_squares_of_bounded_size(
    write_slide: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = _smooth(2000, 1500)
    slide = Slide(write_slide([image], mpp=0.5))
    spot = Pyramid(size_level0=slide.size_level0).spot(8, column=0, row=0)
    whole = slide_pixels(slide, spot)
    sides: list[int] = []
    read = Slide.read

    def noted(self: Slide, xy: tuple[int, int], spec: object) -> Pixels:
        sides.append(spec.side_level0(self.mpp))  # type: ignore[attr-defined]
        return read(self, xy, spec)  # type: ignore[arg-type]

    monkeypatch.setattr(Slide, "read", noted)
    monkeypatch.setattr(pyramid, "READ_PX", 256**2)
    assert np.array_equal(slide_pixels(slide, spot), whole)
    assert max(sides) == 256
    assert len(sides) == 8 * 6


def test_the_picture_of_a_tile_is_its_square_of_the_scan(coordinate_slide: str) -> None:
    slide = Slide(coordinate_slide)
    y, x = np.mgrid[30:94, 300:364]
    expected = np.stack([x % 256, y % 256, 16 * (x // 256) + y // 256], axis=2)
    assert np.array_equal(square_pixels(slide, (300, 30), side_level0=64, side_px=256), expected)
    assert square_pixels(slide, (0, 0), side_level0=512, side_px=128).shape == (128, 128, 3)
