"""Slides as arrays of pixels at a stated um/px, through tiffslide (nothing else here knows tiffslide).

A `Slide` is a path and a few plain facts about the file, so it pickles into any worker. Open files live apart
from it: one per process, thread and path, the least recently used closed first. Reads are therefore the same
bytes whatever the number of workers or threads, forked or spawned.

Letters: h, w are the height and width of an image in pixels.
"""

import contextlib
import itertools
import math
import os
import struct
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from aiohttp import ClientError
from numpy.typing import NDArray
from PIL import Image
from tiffslide.tiffslide import PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y, TiffSlide

from histo_ssl.slides.grid import MAX_UPSAMPLING, TileSpec
from histo_ssl.slides.windows import (
    Box,
    Size,
    Window,
    clipped,
    downsample,
    is_empty,
    is_untouched,
    margins,
    whole,
    with_context,
)
from histo_ssl.units import MicronsPerPx

Pixels = NDArray[np.uint8]  # (h, w, 3)

WHITE = 255  # outside the scan there is glass
# An open slide holds the offsets of all its JPEG tiles, about 3 MB at 40,000 px square: 64 stay below 200 MB.
MAX_OPEN_SLIDES = 64
MAX_MPP = 100.0  # 72 dpi, what programs write that know no um/px, reads as 353 um/px
MAX_ANISOTROPY = 0.01  # a relative difference of um/px along x and y that a square tile may have
BAND_PX = 2**25  # pixels decoded at a time for a thumbnail: about 100 MB, also for a slide of one level

# What tifffile, zarr, the codecs and the remote file systems raise when bytes are not what they should be.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ClientError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,  # XML in the metadata
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Facts:
    """What a slide file says of itself."""

    sizes: tuple[tuple[int, int], ...]  # width and height of each level, px
    downsamples: tuple[tuple[float, float], ...]  # level-0 px per pixel of each level, along x and y
    mpp_xy: tuple[float, float] | None  # um/px along x and y; None where the file says nothing sane


class Slide:
    """A scan whose regions are read at a stated um/px.

    Args:
        path: a local path, or an address that fsspec understands (`https://`, `s3://`, `memory://`).
        mpp: um/px of level 0, which then overrules the file; None takes the file's.
        mpp_if_unknown: um/px of level 0 where neither `mpp` nor the file says it.
    """

    def __init__(self, path: str, *, mpp: float | None = None, mpp_if_unknown: float | None = None) -> None:
        self.path = path
        self._mpp, self._mpp_if_unknown = mpp, mpp_if_unknown

    def __repr__(self) -> str:
        return f"Slide({self.path!r}, mpp={self._mpp}, mpp_if_unknown={self._mpp_if_unknown})"

    @cached_property
    def facts(self) -> Facts:
        """Sizes and um/px, read once, and carried along when the slide is pickled."""
        with _in_one_sentence(self.path):
            return _facts(_open_slides.of(self.path))

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

    @property
    def level_mpps(self) -> tuple[MicronsPerPx, ...]:
        """um/px of every level, the finest first: (0.25, 1.0) for a 40x scan with one level reduced by 4."""
        return tuple(MicronsPerPx(self.mpp * (x + y) / 2) for x, y in self.facts.downsamples)

    def read(self, xy_level0: tuple[int, int], spec: TileSpec) -> Pixels:
        """The tile whose footprint begins at `xy_level0`, resampled to `spec`'s um/px.

        Args:
            xy_level0: left and top edge of the footprint, level-0 px; may lie outside the scan.
            spec: size and um/px of the tile.

        Returns:
            (S, S, 3) uint8, white outside the scan. Where a level has exactly the asked um/px these are its
            own pixels, untouched.

        Raises:
            ValueError: the scan is more than 5 % coarser than asked, or the file cannot be decoded.
        """
        side, (x, y) = spec.side_level0(self.mpp), xy_level0
        return self._resampled((x, y, x + side, y + side), mpp=spec.mpp, size=(spec.size_px, spec.size_px))

    def thumbnail(self, mpp: float) -> Pixels:
        """The whole scan at about `mpp` um/px: its pixels divide the scan evenly along x and along y.

        Returns:
            (h, w, 3) uint8, never finer than the scan; (125, 250, 3) for 4000 x 2000 px of 0.5 um/px at 8.
        """
        scale = max(mpp / self.mpp, 1.0)
        w0, h0 = self.size_level0
        w, h = (max(1, round(side / scale)) for side in (w0, h0))
        dx, dy = self.facts.downsamples[self._level(mpp)]
        n_bands = min(h, math.ceil(w0 / dx * h0 / dy / BAND_PX))
        edges = np.linspace(0, h, n_bands + 1).round().astype(int).tolist()
        bands = [
            self._resampled((0, top * h0 / h, w0, bottom * h0 / h), mpp=mpp, size=(w, bottom - top))
            for top, bottom in itertools.pairwise(edges)
        ]
        return np.concatenate(bands)

    def _level(self, mpp: float) -> int:
        """The coarsest level that is as fine as asked, within the 5 % that may be enlarged."""
        fine_enough = [i for i, level_mpp in enumerate(self.level_mpps) if level_mpp <= MAX_UPSAMPLING * mpp]
        return max(fine_enough, default=0, key=lambda i: self.level_mpps[i])

    def _resampled(self, box_level0: Box, *, mpp: float, size: Size) -> Pixels:
        """A part of the scan as an image of `size`, from the level that suits `mpp`."""
        level = self._level(mpp)
        dx, dy = self.facts.downsamples[level]
        left, top, right, bottom = box_level0
        box = (left / dx, top / dy, right / dx, bottom / dy)
        if is_untouched(box, size):
            return self._pixels(level, whole(box))
        window = with_context(box, size=size, level_size=self.facts.sizes[level])
        image = Image.fromarray(self._pixels(level, window))
        inner = (box[0] - window[0], box[1] - window[1], box[2] - window[0], box[3] - window[1])
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=inner))

    def _pixels(self, level: int, window: Window) -> Pixels:
        """Pixels of one level: the scan inside, white outside."""
        (w0, h0), (w, h), (dx, dy) = self.size_level0, self.facts.sizes[level], self.facts.downsamples[level]
        stored = clipped(window, (w, h))
        if is_empty(stored):
            return np.full((window[3] - window[1], window[2] - window[0], 3), WHITE, np.uint8)
        with _in_one_sentence(self.path):
            pixels = _open_slides.of(self.path).region(level, stored)
        # A level may lack the column or row of a remainder that the scan has: there the last one repeats.
        scanned = clipped(window, (max(w, math.ceil(w0 / dx)), max(h, math.ceil(h0 / dy))))
        pixels = np.pad(pixels, margins(stored, scanned), mode="edge")
        return np.pad(pixels, margins(scanned, window), constant_values=WHITE)


class _OpenSlide(TiffSlide):
    """A slide file that this process and thread has open; closed when the last reference goes."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        weakref.finalize(self, self.ts_tifffile.close)

    def _read_region_loc_transform(self, location: tuple[int, int], level: int) -> tuple[int, int]:  # noqa: ARG002
        # tiffslide's own transform divides by an averaged downsample and drops the fraction.
        return location

    def region(self, level: int, window: Window) -> Pixels:
        left, top, right, bottom = window
        region = self.read_region(
            (left, top), level, (right - left, bottom - top), as_array=True, padding=False
        )
        return _rgb(region)


class _OpenSlides(threading.local):
    """The open slides of this thread, least recently used first."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.slides: OrderedDict[str, _OpenSlide] = OrderedDict()

    def of(self, path: str) -> _OpenSlide:
        if self.process != os.getpid():
            # A forked child shares file positions and locks with its parent: it opens its own files instead.
            self.process, self.slides = os.getpid(), OrderedDict()
        if path not in self.slides:
            self.slides[path] = _OpenSlide(path)
        self.slides.move_to_end(path)
        while len(self.slides) > MAX_OPEN_SLIDES:
            self.slides.popitem(last=False)[1].close()
        return self.slides[path]


_open_slides = _OpenSlides()


def _facts(slide: _OpenSlide) -> Facts:
    sizes = tuple((int(w), int(h)) for w, h in slide.level_dimensions)
    w0, h0 = sizes[0]
    downsamples = tuple((downsample(w0, w), downsample(h0, h)) for w, h in sizes)
    return Facts(sizes=sizes, downsamples=downsamples, mpp_xy=_mpp_xy(slide.properties))


def _mpp_xy(properties: dict[str, Any]) -> tuple[float, float] | None:
    x, y = (properties.get(name) for name in (PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y))
    try:
        xy = float(x or 0), float(y or 0)
    except ValueError:  # free text in an Aperio description
        return None
    return xy if all(0 < side <= MAX_MPP for side in xy) else None  # False for NaN


def _sane_override(mpp: float, *, path: str) -> float:
    if not 0 < mpp <= MAX_MPP:
        raise ValueError(
            f"{path}: data.mpp_override is {mpp:g} um/px; a value above 0 and up to {MAX_MPP:g} is expected"
        )
    return mpp


def _rgb(region: NDArray[Any]) -> Pixels:
    """(h, w, 1 to 4) as (h, w, 3) uint8: grey is repeated, and what is transparent shows the glass."""
    if region.dtype != np.uint8:
        raise TypeError(f"pixels are {region.dtype}, 8-bit ones are expected")
    n_channels = region.shape[2]
    if n_channels in (1, 2):
        region = np.concatenate([region[..., :1].repeat(3, axis=2), region[..., 1:]], axis=2)
    if n_channels in (2, 4):
        opacity = region[..., 3:] / WHITE
        return np.asarray((region[..., :3] * opacity + WHITE * (1 - opacity)).round(), np.uint8)
    if region.shape[2] != 3:
        raise TypeError(f"pixels have {n_channels} channels, grey or RGB is expected")
    return np.ascontiguousarray(region)


@contextlib.contextmanager
def _in_one_sentence(path: str) -> Iterator[None]:
    """Whatever the libraries raise on a bad file, said as one sentence that begins with its path."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except UNREADABLE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a slide: {said}") from error
