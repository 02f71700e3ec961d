"""Labels of tiles from label rasters: an 8-bit picture per slide whose pixel values are classes.

`<slide_id>.png` covers the whole slide at any resolution; 0 is unlabelled. `classes.json` names the other
values, such as `{"1": "stroma"}`.

Letters: h, w size of the raster in its own pixels; N tiles; C classes; n patches along a tile.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.data.base import few_of
from histo_ssl.folders.artifacts import read_json

CLASSES = "classes.json"
UNLABELLED = -1

log = logging.getLogger(__name__)


def read_classes(folder: Path) -> dict[int, str]:
    """Names of the values of a folder's rasters.

    Raises:
        FileNotFoundError: the folder has no `classes.json`.
        ValueError: it does not name values from 1 to 255.
    """
    path = folder / CLASSES
    if not path.is_file():
        raise FileNotFoundError(
            f"data.annotations={folder}: {CLASSES} is missing; it names the rasters' values"
        )
    try:
        names = {int(value): name for value, name in read_json(path).items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(f'{path}: expected values and names, such as {{"1": "stroma"}}') from error
    wrong = [value for value, name in names.items() if not 1 <= value <= 255 or not isinstance(name, str)]
    if wrong or not names:
        raise ValueError(f'{path}: expected values from 1 to 255 and their names, such as {{"1": "stroma"}}')
    return dict(sorted(names.items()))


def raster_sizes(folder: Path, slide_ids: Iterable[str]) -> dict[str, int]:
    """Size in bytes of the rasters that there are, by slide; slides and rasters without the other are logged.

    Raises:
        ValueError: no slide has one.
    """
    paths = {slide_id: folder / f"{slide_id}.png" for slide_id in slide_ids}
    found = {slide_id: path.stat().st_size for slide_id, path in paths.items() if path.is_file()}
    missing = [slide_id for slide_id in paths if slide_id not in found]
    there = sorted(path.name for path in folder.glob("*.png") if not path.name.startswith("."))
    if not found:
        raise ValueError(
            f"data.annotations={folder}: none is named after a slide; expected {missing[0]}.png or another "
            f"slide's, there is {few_of(there) or 'no PNG'}"
        )
    if missing:
        few = few_of(missing)
        log.info("annotations: %d of %d slides have one, none have %s", len(found), len(paths), few)
    stray = [name for name in there if name.removesuffix(".png") not in paths]
    if stray:
        log.warning(
            "data.annotations=%s: %d of %d rasters belong to no slide of the list and are not read: %s",
            folder,
            len(stray),
            len(there),
            few_of(stray),
        )
    return found


def read_raster(path: Path) -> NDArray[np.uint8]:
    """A slide's raster (h, w).

    Raises:
        ValueError: it has no 8-bit index per pixel (colours would become classes), or is too large.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P"):
                raise ValueError(
                    f"{path}: a label raster has one 8-bit index per pixel, this has mode {image.mode}"
                )
            return np.asarray(image, dtype=np.uint8)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too large for a label raster, scale it down ({error})") from error


def tile_classes(
    raster_hw: NDArray[np.uint8],
    xy_level0: NDArray[np.integer],
    *,
    values: list[int],
    side_level0: int,
    size_level0: tuple[int, int],
    min_share: float,
) -> NDArray[np.int16]:
    """The class that covers most of each tile.

    Args:
        raster_hw: class of each pixel, over the whole slide.
        xy_level0: left and top edges of the tiles, (N, 2).
        values: value of each class in the raster, (C,).
        side_level0: side of a tile's footprint.
        size_level0: width and height of the slide.
        min_share: of the tile that its class must cover, 0-1.

    Returns:
        (N,) positions in `values`, `UNLABELLED` where no class covers enough.
    """
    h, w = raster_hw.shape
    scale = np.array([w / size_level0[0], h / size_level0[1]])
    start_N2 = np.minimum(np.rint(xy_level0 * scale).astype(int), [w - 1, h - 1])
    stop_N2 = np.clip(np.rint((xy_level0 + side_level0) * scale).astype(int), start_N2 + 1, [w, h])
    area_N = np.prod(stop_N2 - start_N2, axis=1)
    shares_NC = np.stack(
        [_covered(raster_hw == value, start_N2, stop_N2) / area_N for value in values], axis=1
    )
    best_N = shares_NC.argmax(axis=1)
    is_enough_N = shares_NC.max(axis=1) >= min_share
    return np.where(is_enough_N, best_N, UNLABELLED).astype(np.int16)


def patch_shares(
    raster_hw: NDArray[np.uint8],
    xy_level0: tuple[int, int],
    *,
    values: list[int],
    n_patches: int,
    side_level0: int,
    size_level0: tuple[int, int],
) -> NDArray[np.float64]:
    """How much of each patch of a tile each class covers.

    Args:
        raster_hw: class of each pixel, over the whole slide.
        xy_level0: left and top edge of the tile.
        values: value of each class in the raster, (C,).
        n_patches: along a side of the tile.
        side_level0: side of the tile's footprint.
        size_level0: width and height of the slide.

    Returns:
        (C, n, n) 0-1, of the raster's pixels whose edges lie nearest to the patches'; of the one in the
        middle where a patch is too small to have any.
    """
    across_n2, down_n2 = (
        _edges(start, side_level0, n_patches=n_patches, scale=n / length, n_pixels=n)
        for start, n, length in zip(xy_level0, raster_hw.shape[::-1], size_level0, strict=True)
    )
    (left, right), (top, bottom) = ((edges[:, 0].min(), edges[:, 1].max()) for edges in (across_n2, down_n2))
    part_hw = raster_hw[top:bottom, left:right]
    area_nn = np.outer(*(edges[:, 1] - edges[:, 0] for edges in (down_n2, across_n2)))
    shares = [_summed(part_hw == value, down_n2 - top, across_n2 - left) / area_nn for value in values]
    return np.stack(shares)


def _summed(
    mask_hw: NDArray[np.bool_], down_n2: NDArray[np.int_], across_n2: NDArray[np.int_]
) -> NDArray[np.int_]:
    """(n, n) pixels of a mask within each crossing of rows and columns, from a first to before a last."""
    padded = np.pad(mask_hw, ((0, 1), (0, 1)))  # so that a last one may be the end
    by_row = np.add.reduceat(padded, down_n2.ravel(), axis=0, dtype=int)[::2]
    return np.asarray(np.add.reduceat(by_row, across_n2.ravel(), axis=1)[:, ::2])


def _edges(start: int, side: int, *, n_patches: int, scale: float, n_pixels: int) -> NDArray[np.int_]:
    """First pixel, and the one after the last, of each patch along one side: (n, 2)."""
    exact = (start + side * np.arange(n_patches + 1) / n_patches) * scale
    edges, middle = np.rint(exact).astype(int), ((exact[:-1] + exact[1:]) / 2).astype(int)
    first = np.where(edges[1:] > edges[:-1], edges[:-1], middle).clip(0, n_pixels - 1)
    after = np.clip(edges[1:], first + 1, n_pixels)
    return np.stack([first, after], axis=1)


def _covered(
    mask_hw: NDArray[np.bool_], start_N2: NDArray[np.int_], stop_N2: NDArray[np.int_]
) -> NDArray[np.int_]:
    """(N,) how many pixels of each box the mask holds, by one integral image."""
    integral = np.zeros((mask_hw.shape[0] + 1, mask_hw.shape[1] + 1), dtype=int)
    integral[1:, 1:] = mask_hw.cumsum(axis=0).cumsum(axis=1)
    (left, top), (right, bottom) = start_N2.T, stop_N2.T
    counted: NDArray[np.int_] = (
        integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    )
    return counted
