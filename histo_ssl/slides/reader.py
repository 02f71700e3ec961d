"""Slides as arrays of pixels at a stated um/px.

A `Slide` is a path and a few plain facts about the file, so it pickles into any worker. Open files live apart
from it (`opened.py`). Reads are therefore the same bytes whatever the number of workers or threads, forked or
spawned.

Letters: h, w are the height and width of an image in pixels.
"""

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_ssl.slides.files import MAX_MPP, Facts
from histo_ssl.slides.grid import MAX_UPSAMPLING, TileSpec
from histo_ssl.slides.opened import fetch, in_one_sentence, jpeg_of, open_slides, pixels_of, stamp_of
from histo_ssl.slides.resampling import resampled
from histo_ssl.slides.segments import REDUCTIONS, WHITE, Limits
from histo_ssl.slides.stamps import Stamp
from histo_ssl.slides.stores import Store, store_for
from histo_ssl.slides.windows import (
    Box,
    Size,
    Window,
    clipped,
    enlarged,
    is_empty,
    is_untouched,
    margins,
    whole,
    with_context,
)
from histo_ssl.units import MicronsPerPx

Pixels = NDArray[np.uint8]  # (h, w, 3)

MAX_ANISOTROPY = 0.01  # a relative difference of um/px along x and y that a square tile may have
BAND_PX = 2**25  # pixels decoded at a time for a thumbnail: about 100 MB, also for a slide of one level


@dataclass(frozen=True)
class PixelSource:
    """What a picture is made from: a level of the pyramid, or its JPEGs decoded at less than their size."""

    level: int  # the finest is 0
    reduction: int  # pixels of the level, a side, that are one of the source's: 1, 2, 4 or 8
    size: Size  # px of it
    downsample: tuple[float, float]  # level-0 px per px of it, along x and y


class Slide:
    """A scan whose regions are read at a stated um/px.

    Args:
        path: a local path, or an address that fsspec understands (`https://`, `s3://`, `memory://`).
        mpp: um/px of level 0, which then overrules the file; None takes the file's.
        mpp_if_unknown: um/px of level 0 where neither `mpp` nor the file says it.
        known: stamp of the file that was tiled, which any other is refused against; None takes any file.
        store: how to read it if it is remote, as another process was told; None takes what this one was.
    """

    def __init__(
        self,
        path: str,
        *,
        mpp: float | None = None,
        mpp_if_unknown: float | None = None,
        known: Stamp | None = None,
        store: Store | None = None,
    ) -> None:
        self.path = path
        self._store = store or store_for([path])
        self._mpp, self._mpp_if_unknown, self._known = mpp, mpp_if_unknown, known
        self._sources: dict[tuple[float, bool], PixelSource] = {}

    def __repr__(self) -> str:
        return f"Slide({self.path!r}, mpp={self._mpp}, mpp_if_unknown={self._mpp_if_unknown})"

    @cached_property
    def facts(self) -> Facts:
        """Sizes and um/px, read once, and carried along when the slide is pickled."""
        with in_one_sentence(self.path):
            return open_slides.of(self.path, self._known, self._store).facts()

    @property
    def stamp(self) -> Stamp:
        """Size, time and digest of the file as it lies there."""
        return stamp_of(self.path, self._store)

    def n_unwritten(self, limits: Limits) -> int:
        """Number of stored tiles or strips that were never written and read as white glass, on all levels.

        Nothing is decoded: sizes and places are held against each other, the limits and the file.

        Raises:
            ValueError: some lie beyond the file's end, or a size is beyond its limit.
        """
        with in_one_sentence(self.path):
            return open_slides.of(self.path, self._known, self._store).n_unwritten(limits)

    @property
    def size_level0(self) -> tuple[int, int]:
        """Width and height of the scan in level-0 pixels."""
        return self.facts.sizes[0]

    @property
    def n_levels(self) -> int:
        """Number of levels of the pyramid, 1 for a plain image."""
        return len(self.facts.sizes)

    @cached_property
    def mpp(self) -> MicronsPerPx:
        """um/px of level 0.

        Raises:
            ValueError: neither the file nor the caller says it, or x and y differ by more than 1 %.
        """
        stated = self._mpp_if_unknown if self._mpp is None and self.facts.mpp_xy is None else self._mpp
        if stated is not None:
            return MicronsPerPx(_sane_override(stated, path=self.path))
        if self.facts.mpp_xy is None:
            raise ValueError(
                f"{self.path}: the file says no usable um/px (more than 0, at most {MAX_MPP:g}); state it "
                "with data.mpp_override, a number for all such slides or a CSV with the columns slide_id,mpp"
            )
        x, y = self.facts.mpp_xy
        if abs(x - y) > MAX_ANISOTROPY * max(x, y):
            raise ValueError(
                f"{self.path}: pixels are not square ({x:g} um wide and {y:g} um high, up to 1 % apart is "
                "expected); state one um/px with data.mpp_override, or resample the scan"
            )
        return MicronsPerPx((x + y) / 2)

    @cached_property
    def level_mpps(self) -> tuple[MicronsPerPx, ...]:
        """um/px of every level, the finest first: (0.25, 1.0) for a 40x scan with one level reduced by 4."""
        return tuple(MicronsPerPx(self.mpp * (x + y) / 2) for x, y in self.facts.downsamples)

    def level_mpp(self, mpp: float) -> MicronsPerPx:
        """um/px of the level that others are made from: 4.0 for 8 where the levels have 1, 4 and 16."""
        return self.level_mpps[self._source(mpp).level]

    def read(self, xy_level0: tuple[int, int], spec: TileSpec) -> Pixels:
        """The tile whose footprint begins at `xy_level0`, resampled to `spec`'s um/px.

        Args:
            xy_level0: left and top edge of the footprint, level-0 px; may lie outside the scan.
            spec: size and um/px of the tile.

        Returns:
            (S, S, 3) uint8, white outside the scan. Where a level has exactly the asked um/px these are its
            own pixels, untouched, and so are those of its JPEGs at reduced size where `spec` allows them.

        Raises:
            ValueError: the scan is more than 5 % coarser than asked, or the file cannot be decoded.
        """
        side, (x, y) = spec.side_level0(self.mpp), xy_level0
        source = self._source(spec.mpp, scaled_jpegs=spec.scaled_jpegs)
        return self._resampled((x, y, x + side, y + side), source=source, size=(spec.size_px, spec.size_px))

    def gains_by_scaled_jpegs(self, spec: TileSpec) -> bool:
        """Whether less would be decoded if `spec` allowed JPEGs of reduced size, which it does not."""
        reduced = self._source(spec.mpp, scaled_jpegs=True).reduction
        return not spec.scaled_jpegs and reduced > 1

    def stored_jpeg(self, xy_level0: tuple[int, int], spec: TileSpec) -> bytes | None:
        """The JPEG in the file that a tile is, whole and untouched; with what decodes it alone.

        None where the tile is made of several, of parts, by resampling, or was stored otherwise.
        """
        side, (x, y), size = spec.side_level0(self.mpp), xy_level0, (spec.size_px, spec.size_px)
        source = self._source(spec.mpp, scaled_jpegs=spec.scaled_jpegs)
        box, window = _window((x, y, x + side, y + side), source=source, size=size)
        is_whole = is_untouched(box, size) and clipped(window, source.size) == window
        if not is_whole or source.reduction > 1:
            return None
        return jpeg_of(self.path, self._known, self._store, level=source.level, window=window)

    def fetch(self, corners_level0: Sequence[tuple[int, int]], spec: TileSpec) -> None:
        """Fetch together what tiles are stored in that will be read soon, if the slide is remote.

        What fails here is told when it is read.

        Args:
            corners_level0: left and top edges of the tiles' footprints, level-0 px.
            spec: size and um/px of the tiles.
        """
        if self._store is None:
            return
        with contextlib.suppress(ValueError, OSError):
            side, size = spec.side_level0(self.mpp), (spec.size_px, spec.size_px)
            boxes = [(x, y, x + side, y + side) for x, y in corners_level0]
            source = self._source(spec.mpp, scaled_jpegs=spec.scaled_jpegs)
            windows = [clipped(_window(box, source=source, size=size)[1], source.size) for box in boxes]
            stored = [enlarged(window, source.reduction) for window in windows]
            fetch(self.path, self._known, self._store, level=source.level, windows=stored)

    def thumbnail(self, mpp: float) -> Pixels:
        """The whole scan at about `mpp` um/px: its pixels divide the scan evenly along x and along y.

        Returns:
            (h, w, 3) uint8, never finer than the scan; (125, 250, 3) for 4000 x 2000 px of 0.5 um/px at 8.
        """
        scale = max(mpp / self.mpp, 1.0)
        w0, h0 = self.size_level0
        w, h = (max(1, round(side / scale)) for side in (w0, h0))
        source = self._source(mpp)
        dx, dy = source.downsample
        n_bands = min(h, math.ceil(w0 / dx * h0 / dy / BAND_PX))
        edges = np.linspace(0, h, n_bands + 1).round().astype(int).tolist()
        bands = [
            self._resampled((0, top * h0 / h, w0, bottom * h0 / h), source=source, size=(w, bottom - top))
            for top, bottom in itertools.pairwise(edges)
        ]
        return np.concatenate(bands)

    def _source(self, mpp: float, *, scaled_jpegs: bool = False) -> PixelSource:
        """The coarsest that is as fine as asked, within the 5 % that may be enlarged; looked for once."""
        if (mpp, scaled_jpegs) not in self._sources:
            self._sources[mpp, scaled_jpegs] = self._found_source(mpp, scaled_jpegs=scaled_jpegs)
        return self._sources[mpp, scaled_jpegs]

    def _found_source(self, mpp: float, *, scaled_jpegs: bool) -> PixelSource:
        mpps, coarsest = self.level_mpps, MAX_UPSAMPLING * mpp
        fine_enough = [i for i, level_mpp in enumerate(mpps) if level_mpp <= coarsest]
        level = max(fine_enough, default=0, key=lambda i: mpps[i])
        reductions = REDUCTIONS if scaled_jpegs and self.facts.hold_reduced[level] else ()
        by = next((by for by in reductions if by * mpps[level] <= coarsest), 1)
        (w, h), (dx, dy) = self.facts.sizes[level], self.facts.downsamples[level]
        return PixelSource(level=level, reduction=by, size=(w // by, h // by), downsample=(by * dx, by * dy))

    def _resampled(self, box_level0: Box, *, source: PixelSource, size: Size) -> Pixels:
        """A part of the scan as an image of `size`."""
        box, window = _window(box_level0, source=source, size=size)
        if is_untouched(box, size):
            return self._pixels(source, window)
        inner = (box[0] - window[0], box[1] - window[1], box[2] - window[0], box[3] - window[1])
        return resampled(self._pixels(source, window), inner, size=size)

    def _pixels(self, source: PixelSource, window: Window) -> Pixels:
        """Pixels of a source: the scan inside, white outside."""
        (w0, h0), (w, h), (dx, dy) = self.size_level0, source.size, source.downsample
        stored = clipped(window, (w, h))
        if is_empty(stored):
            return np.full((window[3] - window[1], window[2] - window[0], 3), WHITE, np.uint8)
        at = {"level": source.level, "reduction": source.reduction}
        pixels = _rgb(pixels_of(self.path, self._known, self._store, window=stored, **at), path=self.path)
        if stored == window:
            return pixels
        # A level may lack the column or row of a remainder that the scan has: there the last one repeats.
        scanned = clipped(window, (max(w, math.ceil(w0 / dx)), max(h, math.ceil(h0 / dy))))
        if scanned != stored:
            pixels = np.pad(pixels, margins(stored, scanned), mode="edge")
        return (
            pixels if window == scanned else np.pad(pixels, margins(scanned, window), constant_values=WHITE)
        )


def _window(box_level0: Box, *, source: PixelSource, size: Size) -> tuple[Box, Window]:
    """A part of the scan on a source, and the pixels that an image of `size` is made from."""
    dx, dy = source.downsample
    left, top, right, bottom = box_level0
    box = (left / dx, top / dy, right / dx, bottom / dy)
    if is_untouched(box, size):
        return box, whole(box)
    return box, with_context(box, size=size, level_size=source.size)


def _sane_override(mpp: float, *, path: str) -> float:
    if not 0 < mpp <= MAX_MPP:
        raise ValueError(
            f"{path}: data.mpp_override is {mpp:g} um/px; a value above 0 and up to {MAX_MPP:g} is expected"
        )
    return mpp


def _rgb(pixels: NDArray[Any], *, path: str) -> Pixels:
    """(h, w, 1 to 4) as (h, w, 3): grey is repeated, and what is transparent shows the glass."""
    n_channels = pixels.shape[2]
    if n_channels not in (1, 2, 3, 4):
        raise ValueError(f"{path}: cannot be read as a slide: {n_channels} channels, grey or RGB is expected")
    if n_channels in (1, 2):
        pixels = np.concatenate([pixels[..., :1].repeat(3, axis=2), pixels[..., 1:]], axis=2)
    if n_channels in (2, 4):
        opacity = pixels[..., 3:] / WHITE
        return np.asarray((pixels[..., :3] * opacity + WHITE * (1 - opacity)).round(), np.uint8)
    return np.ascontiguousarray(pixels)
