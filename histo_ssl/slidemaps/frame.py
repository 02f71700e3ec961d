"""Where tiles lie on a scan, and where that is on an image of the scan.

Positions of tiles come from the files that hold their scores; nothing here computes a grid anew.

Letters: N tiles; h, w height and width of an image in pixels.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 2**26  # of one image, 8192 x 8192: about 2 GB while it is made; more is asked in parts


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """Squares of one scan.

    Raises:
        ValueError: there is not one position per tile, or the side is not above 0.
    """

    xy_level0: NDArray[np.integer]  # (N, 2) left and top edges, as the file of embeddings has them
    side_level0: int

    def __post_init__(self) -> None:
        if self.xy_level0.ndim != 2 or self.xy_level0.shape[1] != 2 or self.side_level0 <= 0:
            raise ValueError(
                f"tiles at coords {self.xy_level0.shape} with a side of {self.side_level0} level-0 px can't "
                "be drawn; coords (N, 2) and a side above 0 are expected"
            )

    def __len__(self) -> int:
        return len(self.xy_level0)

    def check(self, values: NDArray[np.generic], *, name: str) -> None:
        """Refuse what is not one value per tile.

        Raises:
            ValueError: it is not.
        """
        if values.shape != (len(self),):
            raise ValueError(
                f"{name} of shape {values.shape} for {len(self)} tiles; one per tile is expected"
            )

    def check_scan(self, size_level0: tuple[int, int]) -> None:
        """Refuse tiles that lie wholly outside a scan of that width and height.

        Raises:
            ValueError: some do, so that they belong to another scan or to another level of it.
        """
        is_outside = ((self.xy_level0 >= size_level0) | (self.xy_level0 <= -self.side_level0)).any(axis=1)
        if is_outside.any():
            x, y = self.xy_level0[is_outside.argmax()].tolist()
            w, h = size_level0
            raise ValueError(
                f"{is_outside.sum()} of {len(self)} tiles lie outside the scan of {w} x {h} px, the first at "
                f"({x}, {y}); coords in level-0 px of this very scan are expected"
            )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A part of a scan as an image of some size, its pixels dividing the part evenly along x and along y.

    Raises:
        ValueError: it has no pixel, or too many.
    """

    box_level0: tuple[float, float, float, float]  # left, top, right, bottom
    size_px: tuple[int, int]  # width, height
    slide_mpp: float | None  # um/px of level 0; None: unknown

    def __post_init__(self) -> None:
        (left, top, right, bottom), (w, h) = self.box_level0, self.size_px
        if right <= left or bottom <= top or w < 1 or h < 1 or w * h > MAX_PIXELS:
            raise ValueError(
                f"an image of {w} x {h} px of the scan's x {left:g} to {right:g} and y {top:g} to {bottom:g} "
                f"can't be drawn; a part with an area and 1 to {MAX_PIXELS} pixels are expected: ask for a "
                "coarser image, or for a part of it"
            )

    @classmethod
    def whole(
        cls, size_level0: tuple[int, int], *, size_px: tuple[int, int], slide_mpp: float | None
    ) -> Self:
        """All of a scan, at the size of a thumbnail that shows all of it."""
        return cls(box_level0=(0, 0, *size_level0), size_px=size_px, slide_mpp=slide_mpp)

    @classmethod
    def of_width(cls, size_level0: tuple[int, int], *, width_px: int, slide_mpp: float | None) -> Self:
        """All of a scan, some pixels wide, as high as it then is: 500 x 250 for one of 4000 x 2000 px."""
        height_px = max(1, round(width_px * size_level0[1] / size_level0[0]))
        return cls.whole(size_level0, size_px=(width_px, height_px), slide_mpp=slide_mpp)

    @classmethod
    def at_mpp(cls, size_level0: tuple[int, int], *, mpp: float, slide_mpp: float) -> Self:
        """All of a scan at about `mpp` um/px: 250 x 125 px for 4000 x 2000 px of 0.5 um/px at 8."""
        w, h = (max(1, round(side * slide_mpp / mpp)) for side in size_level0)
        return cls.whole(size_level0, size_px=(w, h), slide_mpp=slide_mpp)

    @property
    def scale(self) -> NDArray[np.float64]:
        """(2,) pixels of the image per level-0 px, along x and y: [0.1, 0.1] for a tenth of the size."""
        left, top, right, bottom = self.box_level0
        return np.array(self.size_px) / (right - left, bottom - top)

    @property
    def mpp(self) -> float | None:
        """um/px of the image, along x."""
        return None if self.slide_mpp is None else float(self.slide_mpp / self.scale[0])

    def corners(self, tiles: Tiles) -> NDArray[np.float64]:
        """(N, 4) left, top, right and bottom of tiles on the image, px, fractions included.

        [10, 20, 15, 25] for a tile of 50 px at (100, 200) of a scan drawn at a tenth of its size.
        """
        near = (tiles.xy_level0 - np.array(self.box_level0[:2])) * self.scale
        far = (tiles.xy_level0 + tiles.side_level0 - np.array(self.box_level0[:2])) * self.scale
        return np.concatenate([near, far], axis=1)

    def around(self, tiles: Tiles, *, margin: float) -> tuple[Self, tuple[slice, slice]]:
        """The pixels of this image that have tiles in them, and some around: a frame, and rows and columns.

        `picture[rows_and_columns]` of a picture in this frame is the same picture in the frame returned.

        Args:
            tiles: what is to be seen; the whole image where there is none.
            margin: left around them, as a share of the longer side of what they take; 0 or more.
        """
        w, h = self.size_px
        if not len(tiles):
            return self, (slice(0, h), slice(0, w))
        corners = self.corners(tiles)
        near, far = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
        room = margin * (far - near).max()
        left, top = np.floor(near - room).clip(0, (w - 1, h - 1)).astype(int).tolist()
        right, bottom = np.ceil(far + room).clip((left + 1, top + 1), (w, h)).astype(int).tolist()
        start, scale = np.array(self.box_level0[:2]), self.scale
        x0, y0 = (start + (left, top) / scale).tolist()
        x1, y1 = (start + (right, bottom) / scale).tolist()
        part = replace(self, box_level0=(x0, y0, x1, y1), size_px=(right - left, bottom - top))
        return part, (slice(top, bottom), slice(left, right))
