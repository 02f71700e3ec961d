"""Values of tiles as an image: each pixel is the mean over what tiles cover of it, weighted by the area.

A pixel and a tile are rectangles on the scan, so that their overlap is the product of two overlaps, along y
and along x. With Y (h, N) and X (N, w) the shares of a pixel's height and width that each tile covers, Y X is
the covered area and Y diag(v) X / Y X the mean of the values v: exact for any positions, any overlap of tiles
and any size of the image, and nothing is interpolated.

Letters: N tiles; h, w height and width of the image in pixels; K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

from histo_ssl.slidemaps.colors import Scale
from histo_ssl.slidemaps.frame import Frame, Tiles

BAND_PX = 2**21  # pixels worked on at a time, so that large images need little more than themselves
MAX_ROWS = 256  # of tiles, up to which dense products are the faster ones
NO_CLASS = -1

Floats = NDArray[np.float64]
Layer = NDArray[np.uint8]  # (h, w, 4): red, green, blue, opacity


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueMap:
    """A number for each pixel."""

    values: Floats  # (h, w), NaN where no tile is
    covered: NDArray[np.float32]  # (h, w) share of the pixel that tiles cover, 0-1


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMap:
    """A class for each pixel."""

    classes: NDArray[np.int16]  # (h, w), NO_CLASS where no tile is
    covered: NDArray[np.float32]  # (h, w) share of the pixel that tiles cover, 0-1


def value_map(values: NDArray[np.floating], tiles: Tiles, frame: Frame) -> ValueMap:
    """The mean of the tiles' values at each pixel, weighted by the area that each covers of it.

    Tiles without a value (NaN) are left out. Where tiles overlap, `covered` counts what they share once
    for each, up to the whole pixel; it is exact where they don't.

    Args:
        values: (N,) one per tile.
        tiles: where they lie.
        frame: which part of the scan, and how large the image is.

    Returns:
        (h, w). Two tiles of 1 and 4 that cover a quarter and a half of a pixel give 3, covered by 0.75.

    Raises:
        ValueError: there is not one value per tile.
    """
    tiles.check(values, name="values")
    w, h = frame.size_px
    means, covered = np.full((h, w), np.nan), np.zeros((h, w), dtype=np.float32)
    shares = _Shares(tiles, frame, is_drawn=~np.isnan(values))
    for rows, area, total in shares.weighted(values.astype(np.float64)):
        np.divide(total, area, out=means[rows], where=area > 0)
        covered[rows] = np.minimum(area, 1)
    return ValueMap(values=means, covered=covered)


def class_map(classes: NDArray[np.integer], tiles: Tiles, frame: Frame, *, n_classes: int) -> ClassMap:
    """The class whose tiles cover most of each pixel, the lower number where two cover the same.

    Args:
        classes: (N,) 0 to n_classes - 1, or `NO_CLASS` for tiles that are left out.
        tiles: where they lie.
        frame: which part of the scan, and how large the image is.
        n_classes: K.

    Returns:
        (h, w); `covered` is that of all classes together, as in `value_map`.

    Raises:
        ValueError: there is not one class per tile, or one is not among the K.
    """
    tiles.check(classes, name="classes")
    if len(classes) and not (classes.min() >= NO_CLASS and classes.max() < n_classes):
        raise ValueError(
            f"classes from {classes.min()} to {classes.max()}: 0 to {n_classes - 1} are expected, and "
            f"{NO_CLASS} for none"
        )
    w, h = frame.size_px
    found, largest = np.full((h, w), NO_CLASS, dtype=np.int16), np.zeros((h, w))
    covered = np.zeros((h, w), dtype=np.float32)
    for k in np.unique(classes[classes != NO_CLASS]):
        for rows, area, _ in _Shares(tiles, frame, is_drawn=classes == k).weighted(None):
            is_larger = area > largest[rows]
            found[rows][is_larger] = k
            np.maximum(largest[rows], area, out=largest[rows])
            covered[rows] += area.astype(np.float32)
    return ClassMap(classes=found, covered=np.minimum(covered, 1))


def value_layer(found: ValueMap, scale: Scale) -> Layer:
    """A map of numbers in the colours of a scale, as opaque as tiles cover each pixel."""
    return _layer(scale.rgb(found.values), found.covered)


def class_layer(found: ClassMap, colors: NDArray[np.uint8]) -> Layer:
    """A map of classes in their colours (K, 3), as opaque as tiles cover each pixel."""
    return _layer(colors[found.classes.clip(0)], found.covered)


def drawn_over(thumbnail: NDArray[np.uint8], layer: Layer, *, opacity: float, is_grey: bool) -> Image.Image:
    """A map over the picture of its slide.

    Args:
        thumbnail: (h, w, 3) of the part of the scan that the map shows.
        layer: (h, w, 4).
        opacity: of the map where tiles cover the whole pixel, 0-1.
        is_grey: whether the picture loses its colours, so that none is taken for one of the map.

    Raises:
        ValueError: picture and map differ in size.
    """
    if thumbnail.shape[:2] != layer.shape[:2]:
        raise ValueError(
            f"a map of {layer.shape[1]} x {layer.shape[0]} px can't be drawn over a picture of "
            f"{thumbnail.shape[1]} x {thumbnail.shape[0]} px; the same size is expected: make its frame with "
            "the picture's"
        )
    picture = Image.fromarray(thumbnail)
    if is_grey:
        picture = picture.convert("L").convert("RGB")
    mask = Image.fromarray(np.round(opacity * layer[..., 3]).astype(np.uint8))
    picture.paste(Image.fromarray(np.ascontiguousarray(layer[..., :3])), mask=mask)
    return picture


def _layer(rgb: NDArray[np.uint8], covered: NDArray[np.float32]) -> Layer:
    opacity = np.round(255 * covered).astype(np.uint8)
    return np.concatenate([rgb, opacity[..., None]], axis=2)


class _Shares:
    """What tiles cover of the pixels of an image, along y and along x."""

    def __init__(self, tiles: Tiles, frame: Frame, *, is_drawn: NDArray[np.bool_]) -> None:
        w, h = frame.size_px
        left, top, right, bottom = frame.corners(tiles).T
        self._seen = np.flatnonzero(is_drawn & (right > 0) & (left < w) & (bottom > 0) & (top < h))
        self._across = _covered(left[self._seen], right[self._seen], n_px=w).T.tocsr()
        self._size = (w, h)
        # Tiles of a grid share their rows: what they cover along x is summed before it is spread along y.
        tops, row = np.unique(top[self._seen], return_inverse=True)
        self._is_grid = len(tops) <= MAX_ROWS
        if self._is_grid:
            self._down = _covered(tops, tops + (bottom - top)[:1], n_px=h)
            places = (np.ones(len(row)), (row.ravel(), np.arange(len(row))))
            self._rows = sparse.csr_array(places, shape=(len(tops), len(row)))
        else:
            self._down = _covered(top[self._seen], bottom[self._seen], n_px=h)

    def weighted(self, values: Floats | None) -> Iterator[tuple[slice, Floats, Floats]]:
        """For each band of rows the area (rows, w) that tiles cover, and its sum weighted by values (N,)."""
        w, h = self._size
        n_rows = max(1, BAND_PX // w)
        chosen = np.ones(len(self._seen)) if values is None else values[self._seen]
        across, valued = self._across, sparse.diags_array(chosen) @ self._across
        if self._is_grid:
            across, valued = (self._rows @ across).toarray(), (self._rows @ valued).toarray()
        for first in range(0, h, n_rows):
            rows = slice(first, min(first + n_rows, h))
            area = self._spread(rows, across)
            yield rows, area, area if values is None else self._spread(rows, valued)

    def _spread(self, rows: slice, across: Floats | sparse.csr_array) -> Floats:
        """What is covered along x, in these rows of pixels."""
        down = self._down[rows]
        if isinstance(across, np.ndarray):
            return np.asarray(down.toarray() @ across)
        return np.asarray((down @ across).toarray())


def _covered(near: Floats, far: Floats, *, n_px: int) -> sparse.csr_array:
    """(n_px, N) shares of pixels that intervals cover: 0.5, 1 and 0.25 of the first three for 0.5 to 2.25."""
    first = np.floor(near).clip(0, n_px).astype(np.int64)
    counts = np.ceil(far).clip(0, n_px).astype(np.int64) - first
    tile = np.repeat(np.arange(len(near)), counts)
    pixel = np.arange(counts.sum()) + np.repeat(first - (counts.cumsum() - counts), counts)
    share = np.minimum(pixel + 1, far[tile]) - np.maximum(pixel, near[tile])
    return sparse.csr_array((share, (pixel, tile)), shape=(n_px, len(near)))
