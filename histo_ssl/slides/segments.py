"""The tiles or strips in which a TIFF stores the levels of a slide.

What was never written (offset or size 0, as scanners leave the glass) is white. All else lies within the
file, has the size that its page says, and decodes without complaint, or it is an error.

Letters: h, w are the height and width of an image in pixels, c its channels.
"""

import functools
import itertools
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFrame, TiffPage, TiffPageSeries

from histo_ssl.slides.codecs import Shape, check_format, decoded, is_jpeg, jpeg_alone
from histo_ssl.slides.kept import kept
from histo_ssl.slides.stamps import File
from histo_ssl.slides.stores import RemoteFile
from histo_ssl.slides.windows import Window, enlarged, is_empty

Level = TiffPageSeries | Any  # or what has the same attributes, of a file that is opened by its outline
WHITE = 255  # where nothing was scanned there is glass
REDUCTIONS = (8, 4, 2)  # pixels a side that become one where a JPEG is decoded at less than its size


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes beyond which a file is taken for a decompression bomb, or for damaged."""

    slide_px: float  # of its finest level
    segment_px: float  # of one stored tile or strip


@dataclass(frozen=True)
class Grid:
    """How a page is cut into segments of h x w px, the last row and column perhaps cut short."""

    h: int
    w: int
    n_rows: int
    n_columns: int


def pixels(level: Level, window: Window, file: File, *, reduction: int = 1) -> NDArray[np.uint8]:
    """The pixels of a level of an open file in a window that lies within it: (h, w, c).

    Args:
        level: of the file.
        window: in pixels of the level, or of the level reduced.
        file: that it belongs to.
        reduction: 1, or one of `REDUCTIONS` of a level that `holds_reduced`.

    Raises:
        ValueError: a segment under the window is damaged.
    """
    if isinstance(file, RemoteFile):
        file.fetch(places(level, [enlarged(window, reduction)]))
    channels = [_page_pixels(page, window, reduction=reduction) for page in _pages(level)]
    return channels[0] if len(channels) == 1 else np.concatenate(channels, axis=2)


def holds_reduced(level: TiffPageSeries) -> bool:
    """Whether a level's segments are JPEGs that still lie on a grid when each of `REDUCTIONS` is decoded."""
    forms = [_format(page) for page in _pages(level)]
    grids = [_grid(form) for form in forms]
    are_even = all(grid.h % max(REDUCTIONS) == grid.w % max(REDUCTIONS) == 0 for grid in grids)
    return all(map(is_jpeg, forms)) and are_even


def places(level: TiffPageSeries, windows: Sequence[Window]) -> list[tuple[int, int]]:
    """First byte, and the one after the last, of all segments under some windows of a level."""
    under = [(page, window) for page in _pages(level) for window in windows if not is_empty(window)]
    return [place for page, window in under for place in _places(page, window)]


def jpeg_of(level: TiffPageSeries, window: Window) -> bytes | None:
    """The stored JPEG of three channels whose pixels a window holds, all and no others; it decodes alone.

    None where the window is no stored tile, or that was stored otherwise or never written.
    """
    page, *others = _pages(level)
    form, (left, top, right, bottom) = _format(page), window
    grid = _grid(form)
    is_one = (bottom - top, right - left) == (grid.h, grid.w) and left % grid.w == top % grid.h == 0
    if others or not is_one or not is_jpeg(form) or form.samplesperpixel != len("RGB"):
        return None
    data = _stored(page, row=top // grid.h, column=left // grid.w)
    tables = page.jpegtables or b""
    return None if data is None else jpeg_alone(form, data, tables=tables, shapes=((grid.h, grid.w),))


def check(level: TiffPageSeries) -> None:
    """Refuse a level that could not be read with the colours that it means."""
    for page in _pages(level):
        check_format(_format(page))


def n_unwritten(level: TiffPageSeries, *, n_bytes: int, limits: Limits) -> int:
    """Number of segments of a level that were never written, once all others were seen to lie in the file.

    Args:
        level: of a slide.
        n_bytes: size of its file.
        limits: that its sizes must keep.

    Raises:
        ValueError: some lie beyond the file's end, their number is not what the size asks for, or it is too
            large.
    """
    return sum(_n_unwritten(page, n_bytes=n_bytes, limits=limits) for page in _pages(level))


def _n_unwritten(page: TiffPage | TiffFrame, *, n_bytes: int, limits: Limits) -> int:
    grid = _grid(_format(page))
    _check_sizes(_format(page), grid, limits)
    starts, sizes = (np.array(numbers, np.uint64) for numbers in (page.dataoffsets, page.databytecounts))
    n_lacking = grid.n_rows * grid.n_columns - len(starts)
    # Philips leaves out the last rows of a level that were never scanned (tifffile issue 249).
    if len(starts) != len(sizes) or n_lacking < 0 or (n_lacking > 0 and not page.parent.is_philips):
        raise ValueError(
            f"the file lists {len(starts)} offsets and {len(sizes)} sizes of stored tiles, "
            f"{grid.n_rows * grid.n_columns} are expected"
        )
    end = np.uint64(n_bytes)
    is_beyond = (sizes > end) | (starts > end - np.minimum(sizes, end))
    if is_beyond.any():
        raise ValueError(
            f"{is_beyond.sum()} of {len(starts)} stored tiles lie beyond the file's end at {n_bytes} bytes; "
            "it is truncated or damaged, copy it again"
        )
    is_written = (starts > 0) & (sizes > 0)
    _check_apart(starts[is_written], sizes[is_written])
    return n_lacking + int((~is_written).sum())


def _check_apart(starts: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> None:
    """Refuse segments that overlap in the file, unless they are one and the same, as some write glass."""
    places = np.unique(np.stack([starts, starts + sizes]), axis=1)
    n_overlapping = int((places[1, :-1] > places[0, 1:]).sum())
    if n_overlapping:
        raise ValueError(f"{n_overlapping} stored tiles overlap others in the file: their list is damaged")


def _check_sizes(page: TiffPage, grid: Grid, limits: Limits) -> None:
    w, h = page.imagewidth, page.imagelength
    if w * h > limits.slide_px:
        raise ValueError(
            f"it says to be {w} x {h} px, more than {limits.slide_px:.4g} px in all, so it is taken for "
            "damaged; raise data.max_gigapixels if it is not"
        )
    if grid.h * grid.w > limits.segment_px:
        raise ValueError(
            f"it says to store tiles or strips of {grid.w} x {grid.h} px, more than {limits.segment_px:.4g} "
            "px each, so it is taken for damaged; raise data.max_segment_megapixels if it is not"
        )


def _pages(level: TiffPageSeries) -> list[TiffPage | TiffFrame]:
    """The page that holds a level's pixels, or the pages of its channels."""
    channels_first = level.axes == "CYX"
    pages: list[Any] = [level[i] for i in range(level.shape[0] if channels_first else 1)]
    size = level.shape[1:] if channels_first else level.shape[:2]
    if any(page is None or _format(page).shape[:2] != size for page in pages) or len(level) != len(pages):
        raise ValueError(f"a level of axes {level.axes} is spread over {len(level)} pages; one is expected")
    return pages


def _format(page: TiffPage | TiffFrame) -> TiffPage:
    """The page that says how a page, or a series of alike ones, is stored."""
    if page.keyframe is None:
        raise ValueError("a page does not say how it is stored")
    return page.keyframe


def _grid(page: TiffPage) -> Grid:
    width, height = page.imagewidth, page.imagelength
    w, h = (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip, height))
    return _grid_of(width, height, w, h)


@functools.lru_cache
def _grid_of(width: int, height: int, w: int, h: int) -> Grid:
    if min(w, h) < 1:
        raise ValueError(f"its stored tiles or strips are {w} x {h} px")
    return Grid(h=h, w=w, n_rows=math.ceil(height / h), n_columns=math.ceil(width / w))


def _page_pixels(page: TiffPage | TiffFrame, window: Window, *, reduction: int) -> NDArray[np.uint8]:
    left, top, right, bottom = window
    grid = _reduced(_grid(_format(page)), reduction)
    shape = bottom - top, right - left, _format(page).samplesperpixel
    under = [*_under(grid, window)]
    if len(under) == 1 and shape[:2] == (grid.h, grid.w):
        alone = _segment(page, row=under[0][0], column=under[0][1], reduction=reduction)
        if alone is not None and alone.shape == shape:
            return alone if alone.flags.writeable else alone.copy()
    canvas = np.empty(shape, np.uint8)
    for row, column in under:
        y, x = row * grid.h, column * grid.w
        y0, x0 = max(y, top), max(x, left)
        y1, x1 = min(y + grid.h, bottom), min(x + grid.w, right)
        segment = _shared_segment(page, row=row, column=column, reduction=reduction)
        canvas[y0 - top : y1 - top, x0 - left : x1 - left] = (
            WHITE if segment is None else segment[y0 - y : y1 - y, x0 - x : x1 - x]
        )
    return canvas


@functools.lru_cache
def _reduced(grid: Grid, reduction: int) -> Grid:
    return Grid(h=grid.h // reduction, w=grid.w // reduction, n_rows=grid.n_rows, n_columns=grid.n_columns)


def _under(grid: Grid, window: Window) -> Iterator[tuple[int, int]]:
    """Row and column of the segments that lie under a window."""
    left, top, right, bottom = window
    rows = range(top // grid.h, math.ceil(bottom / grid.h))
    return itertools.product(rows, range(left // grid.w, math.ceil(right / grid.w)))


def forget(file: object) -> None:
    """Let go of what is kept of a file that is being closed."""
    kept.forget(weakref.ref(file))


def _places(page: TiffPage | TiffFrame, window: Window) -> Iterator[tuple[int, int]]:
    """The same of one page and window, as far as they are listed."""
    grid = _grid(_format(page))
    for row, column in _under(grid, window):
        index = row * grid.n_columns + column
        if index < min(len(page.dataoffsets), len(page.databytecounts)):
            yield page.dataoffsets[index], page.dataoffsets[index] + page.databytecounts[index]


def _shared_segment(
    page: TiffPage | TiffFrame, *, row: int, column: int, reduction: int
) -> NDArray[np.uint8] | None:
    """The same as `_segment`, to be read only, decoded once for all windows that it lies under."""
    # a file that was opened anew is another one
    key = weakref.ref(page.parent), page.treeindex, row, column, reduction
    segment = kept.find(key)
    if segment is None:
        segment = _segment(page, row=row, column=column, reduction=reduction)
        if segment is not None:
            kept.keep(key, segment)
    return segment


def _segment(
    page: TiffPage | TiffFrame, *, row: int, column: int, reduction: int
) -> NDArray[np.uint8] | None:
    """One stored tile or strip, (h, w, c); None if it was never written."""
    data = _stored(page, row=row, column=column)
    if data is None:
        return None
    grid = _grid(_format(page))
    whole, rest = (grid.h, grid.w), _rest(_format(page), grid, row=row, column=column)
    shapes = whole, rest, (rest[0], grid.w)
    index = row * grid.n_columns + column
    tables = page.jpegtables
    return decoded(_format(page), data, index, tables=tables, shapes=shapes, reduction=reduction)


def _stored(page: TiffPage | TiffFrame, *, row: int, column: int) -> bytes | None:
    """The bytes of one stored tile or strip; None if it was never written."""
    index = row * _grid(_format(page)).n_columns + column
    if index >= len(page.dataoffsets) and page.parent.is_philips:
        return None
    start, size = page.dataoffsets[index], page.databytecounts[index]
    if start == 0 or size == 0:
        return None
    file = page.parent.filehandle
    file.seek(start)
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"a tile is stored in bytes {start} to {start + size}, the file ends before")
    return data


def _rest(page: TiffPage, grid: Grid, *, row: int, column: int) -> Shape:
    """Height and width of the part of a segment that lies on the page; some writers store no more."""
    return min(grid.h, page.imagelength - row * grid.h), min(grid.w, page.imagewidth - column * grid.w)
