"""Where tiles are cut: squares at a stated um/px, on a regular grid, where there is enough tissue."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo_ssl.slides.tissue import TissueSpec
from histo_ssl.units import Level0Px, MicronsPerPx, TilePx, level0_side

# A nominal 20x scan may be 0.504 um/px: up to 5 % coarser than asked it is enlarged, beyond that refused.
MAX_UPSAMPLING = 1.05
ROUNDING = 1e-9  # a footprint that is all tissue must not miss a share of 1.0 by a rounding error


@dataclass(frozen=True, kw_only=True)
class TileSpec:
    """How slides are cut. Equal specs give comparable tiles, whatever the scanner."""

    size_px: TilePx  # side of the tile that the network sees
    mpp: MicronsPerPx  # resolution of that tile
    stride_px: TilePx  # from one tile to the next, at the same resolution; size_px: they touch
    min_tissue: float  # share of the footprint that is tissue, 0-1
    scaled_jpegs: bool = False  # from stored JPEGs decoded at 1/2, 1/4 or 1/8 where no level suits as well

    def side_level0(self, slide_mpp: MicronsPerPx) -> Level0Px:
        """Side of the tile's footprint on the scan, in level-0 pixels, rounded to nearest.

        A 224 px tile at 0.5 um/px covers 448 px of a 0.25 um/px scan.

        Raises:
            ValueError: the scan is more than 5 % coarser than asked.
        """
        if slide_mpp > MAX_UPSAMPLING * self.mpp:
            raise ValueError(
                f"tiles at {self.mpp:g} um/px asked from a scan of {slide_mpp:.3f} um/px: detail that was "
                f"never scanned cannot be read; use tiling.mpp >= {slide_mpp:.3f}"
            )
        return level0_side(self.size_px, mpp=self.mpp, slide_mpp=slide_mpp)

    def stride_level0(self, slide_mpp: MicronsPerPx) -> Level0Px:
        """Step of the grid on the scan, in level-0 pixels, rounded to nearest and at least 1."""
        return Level0Px(max(1, level0_side(self.stride_px, mpp=self.mpp, slide_mpp=slide_mpp)))


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The `tiling` group of the configuration: how to cut, and what counts as tissue."""

    size_px: int | None  # None: as the images are
    mpp: float | None  # None: unknown
    stride_px: int | None
    min_tissue: float
    tissue: TissueSpec | None  # None: nothing is looked for
    scaled_jpegs: bool = False

    @property
    def spec(self) -> TileSpec:
        """The numbers by which slides are cut.

        Raises:
            ValueError: one is missing or senseless.
        """
        if self.size_px is None or self.mpp is None or self.stride_px is None or self.tissue is None:
            raise ValueError(
                f"tiling.size_px={self.size_px}, tiling.mpp={self.mpp}, tiling.stride_px={self.stride_px}, "
                f"tiling.tissue={'set' if self.tissue else None}: null is for image files at their own size, "
                "slides need all four; choose tiling=small or tiling=study"
            )
        if min(self.size_px, self.mpp, self.stride_px) <= 0 or not 0 <= self.min_tissue <= 1:
            raise ValueError(
                f"tiling.size_px={self.size_px}, tiling.mpp={self.mpp:g}, tiling.stride_px={self.stride_px}, "
                f"tiling.min_tissue={self.min_tissue:g}: the first three must be above 0, the last within 0-1"
            )
        return TileSpec(
            size_px=TilePx(self.size_px),
            mpp=MicronsPerPx(self.mpp),
            stride_px=TilePx(self.stride_px),
            min_tissue=self.min_tissue,
            scaled_jpegs=self.scaled_jpegs,
        )


def tile_grid(
    mask_hw: NDArray[np.bool_], spec: TileSpec, *, size_level0: tuple[int, int], slide_mpp: MicronsPerPx
) -> NDArray[np.int32]:
    """Left and top edges of the tiles that lie wholly inside the scan and hold enough tissue, row by row.

    Args:
        mask_hw: tissue, evenly spread over the scan at any resolution.
        spec: how to cut.
        size_level0: width and height of the scan, px.
        slide_mpp: um/px of level 0.

    Returns:
        (N, 2) x and y, level-0 px: [[0, 0], [100, 0], [0, 100], [100, 100]] for a 250 x 200 px scan that is
        all tissue, cut at its own um/px into touching 100 px tiles.
    """
    side, stride = spec.side_level0(slide_mpp), spec.stride_level0(slide_mpp)
    xs, ys = (np.arange(0, length - side + 1, stride) for length in size_level0)
    enough = _tissue_share(mask_hw, xs, ys, side=side, size_level0=size_level0) >= spec.min_tissue - ROUNDING
    rows, columns = enough.nonzero()
    return np.stack([xs[columns], ys[rows]], axis=1).astype(np.int32)


def _tissue_share(
    mask_hw: NDArray[np.bool_],
    xs: NDArray[np.int_],
    ys: NDArray[np.int_],
    *,
    side: int,
    size_level0: tuple[int, int],
) -> NDArray[np.float64]:
    """(len(ys), len(xs)) exact shares of the footprints that the mask covers, 0-1.

    The integral of a picture of constant pixels is linear within a pixel along either axis, so interpolating
    it at fractional edges loses nothing.
    """
    h, w = mask_hw.shape
    scale_x, scale_y = w / size_level0[0], h / size_level0[1]
    down = np.zeros((h + 1, w), np.int32)
    mask_hw.cumsum(axis=0, out=down[1:])
    bands = _at(down, (ys + side) * scale_y) - _at(down, ys * scale_y)
    across = np.zeros((w + 1, len(ys)))
    bands.T.cumsum(axis=0, out=across[1:])
    area = _at(across, (xs + side) * scale_x) - _at(across, xs * scale_x)
    return np.asarray(area.T / (side * scale_x * side * scale_y))


def _at(rows: NDArray[np.number], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of an array at fractional positions, linearly interpolated: 2.5 is halfway from row 2 to row 3."""
    below = np.minimum(positions.astype(int), len(rows) - 2)
    fraction = (positions - below)[:, None]
    return np.asarray(rows[below] * (1 - fraction) + rows[below + 1] * fraction)
