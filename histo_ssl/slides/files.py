"""An open slide file: what it says of itself, and pixels of its levels. Nothing else knows tiffslide.

Letters: h, w are the height and width of an image in pixels, c its channels.
"""

import struct
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import FileHandle, TiffFile, TiffPageSeries
from tiffslide.tiffslide import PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y, TiffSlide

from histo_ssl.slides import segments
from histo_ssl.slides.outlines import Outline, outline
from histo_ssl.slides.segments import WHITE, Limits
from histo_ssl.slides.stamps import state
from histo_ssl.slides.stores import RemoteFile, Store, is_remote
from histo_ssl.slides.windows import Window, clipped, downsample, is_empty

# No scan is coarser: an objective of 0.5x gives 20. What programs write that know no um/px is: 72 dpi read as
# 353 um/px, 300 dpi as 85, 1,200 dpi as 21.
MAX_MPP = 20.0


@dataclass(frozen=True)
class Facts:
    """What a slide file says of itself."""

    sizes: tuple[tuple[int, int], ...]  # width and height of each level, px
    downsamples: tuple[tuple[float, float], ...]  # level-0 px per pixel of each level, along x and y
    mpp_xy: tuple[float, float] | None  # um/px along x and y; None where the file says nothing sane
    hold_reduced: tuple[bool, ...]  # whether the stored tiles of each level decode at 1/2, 1/4 and 1/8, too


class OpenSlide(TiffSlide):
    """A slide file that this process and thread has open; closed when the last reference goes."""

    def __init__(self, path: str, store: Store | None) -> None:
        # What tiffslide can't read of two vendors' metadata is nothing that a user could act on.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"tiffslide\.")
        # A slide is one file: an OME-TIFF may name others, which would be opened too.
        options: dict[str, Any] = {"_multifile": False}
        if store is not None and is_remote(path):
            self.file: FileHandle | RemoteFile = RemoteFile(path, store)
            super().__init__(self.file, tifffile_options={**options, "name": path.rpartition("/")[2]})
        else:
            super().__init__(path, tifffile_options=options)
            self.file = self.ts_tifffile.filehandle
        weakref.finalize(self, self.ts_tifffile.close)
        self.opened_at = state(self.file)
        _check_chain(self.ts_tifffile)
        self.levels = [self._parts(level) for level in range(len(self.level_dimensions))]
        for image in self._images():
            segments.check(image)

    def close(self) -> None:
        """Close the file, and let go of what was decoded of it."""
        segments.forget(self.ts_tifffile)
        super().close()

    def facts(self) -> Facts:
        """Sizes and um/px."""
        sizes = tuple((int(w), int(h)) for w, h in self.level_dimensions)
        w0, h0 = sizes[0]
        downsamples = tuple((downsample(w0, w), downsample(h0, h)) for w, h in sizes)
        hold_reduced = tuple(
            [at for _, at in parts] == [(0, 0)] and segments.holds_reduced(parts[0][0])
            for parts in self.levels
        )
        mpp_xy = _mpp_xy(self.properties)
        return Facts(sizes=sizes, downsamples=downsamples, mpp_xy=mpp_xy, hold_reduced=hold_reduced)

    def n_unwritten(self, limits: Limits) -> int:
        """Number of stored tiles, on all levels, that were never written; an error if others are missing."""
        n_bytes = self.file.size
        return sum(segments.n_unwritten(image, n_bytes=n_bytes, limits=limits) for image in self._images())

    def pixels(self, level: int, window: Window, *, reduction: int = 1) -> NDArray[np.uint8]:
        """The pixels of a level in a window within it: (h, w, c), white where nothing was scanned.

        Args:
            level: the finest is 0.
            window: in pixels of the level, or of the level reduced.
            reduction: 1; or 2, 4 or 8 where the level holds that.
        """
        parts = self.levels[level]
        if len(parts) == 1 and parts[0][1] == (0, 0):
            return segments.pixels(parts[0][0], window, self.file, reduction=reduction)
        left, top, right, bottom = window
        canvas = np.full((bottom - top, right - left, 3), WHITE, np.uint8)
        for series, (x, y) in parts:
            h, w = series.shape[:2]
            x0, y0, x1, y1 = clipped((left - x, top - y, right - x, bottom - y), (w, h))
            if not is_empty((x0, y0, x1, y1)):
                canvas[y0 + y - top : y1 + y - top, x0 + x - left : x1 + x - left] = segments.pixels(
                    series, (x0, y0, x1, y1), self.file
                )
        return canvas

    def jpeg(self, level: int, window: Window) -> bytes | None:
        """The stored JPEG that a window of a level is, to be decoded alone; None where it is no such one."""
        parts = self.levels[level]
        return segments.jpeg_of(parts[0][0], window) if len(parts) == 1 and parts[0][1] == (0, 0) else None

    def fetch(self, level: int, windows: Sequence[Window]) -> None:
        """Fetch together what windows of a level are stored in, if the file is remote."""
        parts = self.levels[level]
        if isinstance(self.file, RemoteFile) and len(parts) == 1:  # areas are fetched one by one
            self.file.fetch(segments.places(parts[0][0], windows))

    def has_changed(self) -> bool:
        """Whether the file was written to since it was opened."""
        return state(self.file) != self.opened_at

    def outline(self) -> Outline | None:
        """What it can be opened by again for its tiles; None if it is remote, or stored in a rarer way."""
        if isinstance(self.file, RemoteFile) or any(
            [at for _, at in parts] != [(0, 0)] for parts in self.levels
        ):
            return None
        series = [parts[0][0] for parts in self.levels]
        return outline(self.ts_tifffile, series, opened_at=self.opened_at)

    def _images(self) -> Iterator[TiffPageSeries]:
        return (series for parts in self.levels for series, _ in parts)

    def _parts(self, level: int) -> list[tuple[TiffPageSeries, tuple[int, int]]]:
        """The images that make up a level, and where each begins on it (x, y): several for Leica's areas."""
        series = self.ts_tifffile.series
        composition = self.properties.get("tiffslide.series-composition")
        if composition is None:
            return [(series[self.properties["tiffslide.series-index"]].levels[level], (0, 0))]
        return [
            (series[i].levels[level], (offsets[level][1], offsets[level][0]))
            for i, offsets in composition["located_series"].items()
        ]


def _check_chain(tiff: TiffFile) -> None:
    """Refuse pages that lead back to one another, which tifffile would follow forever."""
    form, file, seen = tiff.tiff, tiff.filehandle, set()
    place = tiff.pages.first.offset
    while 0 < place < file.size:
        if place in seen:
            raise ValueError("its pages lead back to one another; the file is damaged")
        seen.add(place)
        file.seek(place)
        (n_tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        file.seek(place + form.tagnosize + n_tags * form.tagsize)
        (place,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))


def _mpp_xy(properties: dict[str, Any]) -> tuple[float, float] | None:
    x, y = (properties.get(name) for name in (PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y))
    try:
        xy = float(x or 0), float(y or 0)
    except ValueError:  # free text in an Aperio description
        return None
    return xy if all(0 < side <= MAX_MPP for side in xy) else None  # False for NaN
