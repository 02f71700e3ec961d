"""A contact sheet: tiles side by side, with words under each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from histo_ssl.slidemaps.legend import INK, Font, font_of, line_px, shortened

TEXT_SHARE = 10  # a tile is as wide as that many letters are high
SMALLEST_PX = 9  # letters


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Tiles under a heading, such as those with the highest attention."""

    title: str
    tiles: Sequence[NDArray[np.uint8]]  # of (S, S, 3)
    captions: Sequence[tuple[str, str]]  # the two lines under each tile


def ranked(ranks: NDArray[np.int64], percentiles: NDArray[np.floating]) -> list[tuple[str, str]]:
    """Captions of tiles by their scores: ("rank 3", "percentile 99.2").

    Args:
        ranks: (n,) within the slide, 1 for the highest score.
        percentiles: (n,) within the slide, 0-100.
    """
    return [
        (f"rank {rank:,}", f"percentile {percentile:.1f}")
        for rank, percentile in zip(ranks.tolist(), percentiles.tolist(), strict=True)
    ]


def contact_sheet(groups: Sequence[Group], *, n_columns: int, side_px: int) -> Image.Image:
    """Groups below each other, each with its heading and its tiles row by row, `side_px` wide."""
    font = font_of(max(SMALLEST_PX, side_px // TEXT_SHARE))
    line, gap = line_px(font), line_px(font) // 2
    row_px = side_px + 2 * line + gap
    n_rows = [math.ceil(len(group.tiles) / n_columns) for group in groups]
    height = gap + sum(2 * line + rows * row_px for rows in n_rows)
    sheet = Image.new("RGB", (gap + n_columns * (side_px + gap), height), "white")
    top = gap
    for group, rows in zip(groups, n_rows, strict=True):
        _heading(sheet, group.title, top=top, font=font)
        for i, (tile, words) in enumerate(zip(group.tiles, group.captions, strict=True)):
            row, column = divmod(i, n_columns)
            place = (gap + column * (side_px + gap), top + 2 * line + row * row_px)
            _paste(sheet, tile, words, place=place, side_px=side_px, font=font)
        top += 2 * line + rows * row_px
    return sheet


def _heading(sheet: Image.Image, title: str, *, top: int, font: Font) -> None:
    gap = line_px(font) // 2
    text = shortened(title, width_px=sheet.width - 2 * gap, font=font)
    ImageDraw.Draw(sheet).text((gap, top + line_px(font)), text, fill=INK, font=font, anchor="lm")


def _paste(
    sheet: Image.Image,
    tile: NDArray[np.uint8],
    words: Sequence[str],
    *,
    place: tuple[int, int],
    side_px: int,
    font: Font,
) -> None:
    """A tile at its place, averaged to its size, with lines under it."""
    sheet.paste(Image.fromarray(tile).resize((side_px, side_px), Image.Resampling.BOX), place)
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(words):
        y = place[1] + side_px + (i + 0.5) * line_px(font)
        short = shortened(text, width_px=side_px, font=font)
        draw.text((place[0], y), short, fill=INK, font=font, anchor="lm")
