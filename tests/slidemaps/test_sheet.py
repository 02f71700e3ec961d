"""A contact sheet shows each tile at its place with its own words."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from histo_ssl.slidemaps.legend import INK, font_of, line_px
from histo_ssl.slidemaps.sheet import Group, contact_sheet, ranked

SIDE = 120
FONT = font_of(12)
LINE = line_px(FONT)


def group(title: str, *values: int) -> Group:
    """Tiles of 240 px whose pixels are their own coordinates, and their number in blue."""
    rows, columns = np.mgrid[:240, :240]
    tiles = [np.stack([columns, rows, 0 * rows + value], axis=2).astype(np.uint8) for value in values]
    n = len(values)
    return Group(
        title=title, tiles=tiles, captions=ranked(np.arange(1, n + 1) * 1000, 100 - np.arange(n) / 8)
    )


def line_of(text: str) -> np.ndarray:
    image = Image.new("RGB", (SIDE, LINE), "white")
    ImageDraw.Draw(image).text((0, 0.5 * LINE), text, fill=INK, font=FONT, anchor="lm")
    return np.asarray(image)


@pytest.mark.parametrize("n_columns", [1, 2, 5])
def test_each_tile_is_the_mean_of_its_pixels_at_its_place_over_its_words(n_columns: int) -> None:
    groups = [group("Highest", 10, 20, 30), group("Lowest", 40, 50)]
    sheet = np.asarray(contact_sheet(groups, n_columns=n_columns, side_px=SIDE))
    gap, row_px = LINE // 2, SIDE + 2 * LINE + LINE // 2
    top = gap
    for some in groups:
        for i, tile in enumerate(some.tiles):
            y = top + 2 * LINE + i // n_columns * row_px
            x = gap + i % n_columns * (SIDE + gap)
            expected = tile.reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))
            np.testing.assert_allclose(sheet[y : y + SIDE, x : x + SIDE], expected, atol=0.51)
            for line, text in enumerate(some.captions[i]):
                found = sheet[y + SIDE + line * LINE : y + SIDE + (line + 1) * LINE, x : x + SIDE]
                np.testing.assert_array_equal(found, line_of(text))
        top += 2 * LINE + -(-len(some.tiles) // n_columns) * row_px
    assert sheet.shape == (top, gap + n_columns * (SIDE + gap), 3)


def test_the_words_are_rank_and_percentile() -> None:
    assert group("x", 1, 2).captions == [
        ("rank 1,000", "percentile 100.0"),
        ("rank 2,000", "percentile 99.9"),
    ]


def test_a_group_without_tiles_is_its_heading_alone() -> None:
    sheet = contact_sheet([group("Highest")], n_columns=3, side_px=SIDE)
    assert sheet.height == LINE // 2 + 2 * LINE
