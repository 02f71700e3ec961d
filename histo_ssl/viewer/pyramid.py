"""Slides as Deep Zoom pyramids: levels that halve the one above, cut into square tiles, read from the file.

Level numbers are Deep Zoom's: the highest is the scan itself, 0 is one pixel.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.slidemaps.frame import Frame
from histo_ssl.slides.grid import MAX_UPSAMPLING, TileSpec
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.segments import WHITE
from histo_ssl.units import MicronsPerPx, TilePx

TILE_PX = 512
READ_PX = 2**24  # pixels of the file behind one read, at most: about 50 MB, also for a slide of one level
ROUNDING = 1e-9
LEAST_PX = 8  # of such a read; one pixel of the coarsest level may stand for thousands of the file

Pixels = NDArray[np.uint8]  # (h, w, 3)


class NotThereError(LookupError):
    """Somebody asked for what is not there."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A tile of a level: its pixels, and how many level-0 px each is wide."""

    left: int
    top: int
    width: int
    height: int
    scale: int

    def frame(self, slide_mpp: float | None) -> Frame:
        """The part of the scan that it shows."""
        left, top, scale = self.left, self.top, self.scale
        box = (left * scale, top * scale, (left + self.width) * scale, (top + self.height) * scale)
        return Frame(box_level0=box, size_px=(self.width, self.height), slide_mpp=slide_mpp)


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """All levels of a scan of that width and height, px."""

    size_level0: tuple[int, int]

    @property
    def max_level(self) -> int:
        """The level that is the scan itself: 15 for a scan of 20,000 x 17,000 px, of which 2^15 is above."""
        return math.ceil(math.log2(max(self.size_level0)))

    @property
    def min_level(self) -> int:
        """The finest level that is a single tile."""
        return min(self.max_level, int(math.log2(TILE_PX)))

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level, px, rounded up: (157, 133) for level 8 of 20,000 x 17,000 px."""
        scale = 2 ** (self.max_level - level)
        return math.ceil(self.size_level0[0] / scale), math.ceil(self.size_level0[1] / scale)

    def spot(self, level: int, *, column: int, row: int) -> Spot:
        """A tile of a level.

        Raises:
            NotThereError: there is no such tile.
        """
        if not 0 <= level <= self.max_level:
            raise NotThereError(f"level {level}: 0 to {self.max_level} are there")
        w, h = self.size(level)
        left, top = column * TILE_PX, row * TILE_PX
        if not (0 <= left < w and 0 <= top < h):
            raise NotThereError(f"tile {column}, {row}: level {level} has {w} x {h} px")
        return Spot(
            left=left,
            top=top,
            width=min(TILE_PX, w - left),
            height=min(TILE_PX, h - top),
            scale=2 ** (self.max_level - level),
        )


def slide_pixels(slide: Slide, spot: Spot) -> Pixels:
    """A tile of a slide, (height, width, 3), white where it reaches beyond the scan.

    Where the file's nearest level has 2, 4, ... times the pixels, each is the mean of a square of them,
    which takes a third of the time of a filter; else the reader's filter does it. What is read at a time is
    bounded, also where the file has no level near the one asked.
    """
    canvas = np.full((spot.height, spot.width, 3), WHITE, np.uint8)
    ratio = _ratio(slide, spot.scale)
    side = min(_side_px(slide, spot.scale), max(spot.width, spot.height))
    spec = _spec(side * ratio, mpp=slide.mpp * spot.scale / ratio)
    for y in range(0, spot.height, side):
        for x in range(0, spot.width, side):
            place = ((spot.left + x) * spot.scale, (spot.top + y) * spot.scale)
            part = Image.fromarray(slide.read(place, spec)).reduce(ratio)
            canvas[y : y + side, x : x + side] = np.asarray(part)[: spot.height - y, : spot.width - x]
    return canvas


def square_pixels(slide: Slide, xy_level0: tuple[int, int], *, side_level0: int, side_px: int) -> Pixels:
    """A square of the scan as an image of that side, never larger than on the scan."""
    side = min(side_px, side_level0)
    return slide.read(xy_level0, _spec(side, mpp=slide.mpp * side_level0 / side))


def _spec(side_px: int, *, mpp: float) -> TileSpec:
    return TileSpec(size_px=TilePx(side_px), mpp=MicronsPerPx(mpp), stride_px=TilePx(side_px), min_tissue=0.0)


def _reduction(slide: Slide, scale: int) -> float:
    """How many times the wanted resolution the coarsest level has that is fine enough; 1 where it fits."""
    mpp = slide.mpp * scale
    return mpp / max((have for have in slide.level_mpps if have <= MAX_UPSAMPLING * mpp), default=slide.mpp)


def _ratio(slide: Slide, scale: int) -> int:
    """The same as a whole number, if it is one; else 1."""
    reduction = _reduction(slide, scale)
    is_whole = round(reduction) >= 1 and math.isclose(reduction, round(reduction), rel_tol=ROUNDING)
    return round(reduction) if is_whole else 1


def _side_px(slide: Slide, scale: int) -> int:
    """The largest power of two whose square has no more than `READ_PX` of the file behind it."""
    longest = math.sqrt(READ_PX) / _reduction(slide, scale)
    return max(LEAST_PX, min(TILE_PX, 1 << int(math.log2(max(1.0, longest)))))
