"""What must be known of a slide file to open it again without asking it: where its stored tiles are listed.

Tiles drawn at random from thousands of slides come from one that was closed since, as good as always. A TIFF
that is opened anew is looked through for all that it may say, which takes several times as long as a tile.
So what its tiles are read by is kept, 4 kB whatever its size: their places are looked up in the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from tifffile import FileHandle, TiffFile, TiffPage, TiffPageSeries

from histo_ssl.slides import segments
from histo_ssl.slides.codecs import JPEG
from histo_ssl.slides.local import LocalFile
from histo_ssl.slides.stamps import State, state
from histo_ssl.slides.windows import Window

AXES = ("YXS", "YX")  # of a level that is one page
TAGS = ((324, 325), (273, 279))  # where a page lists offsets and sizes of tiles, or of strips
WHOLE_NUMBERS = {3: "u2", 4: "u4", 16: "u8"}  # TIFF's types of them
COPIED = (
    *("imagewidth", "imagelength", "tilewidth", "tilelength", "rowsperstrip", "is_tiled", "shape"),
    *("samplesperpixel", "compression", "photometric", "jpegtables", "jpegheader", "treeindex"),
)


@dataclass(frozen=True)
class Column:
    """A list of whole numbers in a file."""

    start: int
    dtype: str
    n: int

    def of(self, file: FileHandle | LocalFile, i: int, n: int = 1) -> NDArray[Any]:
        """Some of the numbers, from the i-th on."""
        numbers = np.dtype(self.dtype)
        file.seek(self.start + i * numbers.itemsize)
        return np.frombuffer(file.read(n * numbers.itemsize), numbers)


class Numbers(Sequence[int]):
    """A column, looked up in its file."""

    def __init__(self, column: Column, file: LocalFile) -> None:
        self.column, self.file = column, file

    def __len__(self) -> int:
        return self.column.n

    @overload
    def __getitem__(self, i: int) -> int: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[int]: ...

    def __getitem__(self, i: int | slice) -> int | Sequence[int]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(f"stored tile {i} of {len(self)}")
        return int(self.column.of(self.file, i)[0])


class OutlinedPage:
    """Looks to `segments` like the page of tifffile that it was made of."""

    parent: "OutlinedFile"

    def __init__(self, page: TiffPage, starts: Column, sizes: Column) -> None:
        self.__dict__.update({name: getattr(page, name) for name in COPIED})
        self._starts, self._sizes = starts, sizes

    def of_file(self, parent: "OutlinedFile") -> "OutlinedPage":
        """The same page in an open file."""
        made = OutlinedPage.__new__(OutlinedPage)
        made.__dict__.update(self.__dict__, parent=parent)
        return made

    @property
    def keyframe(self) -> "OutlinedPage":
        """The page that says how this one is stored."""
        return self

    @property
    def dataoffsets(self) -> Numbers:
        """Where stored tiles begin."""
        return Numbers(self._starts, self.parent.filehandle)

    @property
    def databytecounts(self) -> Numbers:
        """How long they are."""
        return Numbers(self._sizes, self.parent.filehandle)


class OutlinedLevel(list[OutlinedPage]):
    """Looks to `segments` like the series of one page that it was made of."""

    def __init__(self, pages: Sequence[OutlinedPage], *, axes: str, shape: tuple[int, ...]) -> None:
        super().__init__(pages)
        self.axes, self.shape = axes, shape

    def of_file(self, parent: "OutlinedFile") -> "OutlinedLevel":
        """The same level in an open file."""
        return OutlinedLevel([page.of_file(parent) for page in self], axes=self.axes, shape=self.shape)


class OutlinedFile:
    """An open file, and that it is not Philips's, whose lists of tiles may be cut short."""

    is_philips = False

    def __init__(self, path: str) -> None:
        self.filehandle = LocalFile(path)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A slide file as it was when it was open; without handles, so that threads and forks may share it."""

    path: str
    opened_at: State
    levels: tuple[OutlinedLevel, ...]

    def opened(self) -> "OutlinedSlide | None":
        """The slide, open again; None if its file is another one by now."""
        file = OutlinedFile(self.path)
        if state(file.filehandle) == self.opened_at:
            return OutlinedSlide(self, file)
        file.filehandle.close()
        return None


class OutlinedSlide:
    """A slide that is open for its tiles alone."""

    def __init__(self, outline: Outline, file: OutlinedFile) -> None:
        self.outline, self._tiff, self.file = outline, file, file.filehandle
        self._levels: dict[int, OutlinedLevel] = {}

    def pixels(self, level: int, window: Window, *, reduction: int = 1) -> NDArray[np.uint8]:
        """The pixels of a level, perhaps reduced, in a window within it: (h, w, c), white where none were."""
        if level not in self._levels:
            self._levels[level] = self.outline.levels[level].of_file(self._tiff)
        return segments.pixels(self._levels[level], window, self.file, reduction=reduction)

    def has_changed(self) -> bool:
        """Whether the file was written to since its outline was taken."""
        return state(self.file) != self.outline.opened_at

    def close(self) -> None:
        """Close the file, and let go of what was decoded of it."""
        segments.forget(self._tiff)
        self.file.close()


def outline(tiff: TiffFile, series: Sequence[TiffPageSeries], *, opened_at: State) -> Outline | None:
    """What is to be known of an open local file; None where that is not all that its tiles are read by."""
    levels = [_outlined(level) for level in series]
    if tiff.is_ndpi or tiff.is_philips or any(level is None for level in levels):
        return None
    path = str(tiff.filehandle.path)
    return Outline(path=path, opened_at=opened_at, levels=tuple(level for level in levels if level))


def _outlined(level: TiffPageSeries) -> OutlinedLevel | None:
    page = level[0] if len(level) == 1 and level.axes in AXES else None
    if not isinstance(page, TiffPage) or page.compression not in JPEG or page.jpegheader is not None:
        return None
    for names in TAGS:
        columns = [_column(page, name) for name in names]
        listed = [page.dataoffsets, page.databytecounts]
        if all(
            column is not None and _says(column, page, numbers)
            for column, numbers in zip(columns, listed, strict=True)
        ):
            made = OutlinedPage(page, *(column for column in columns if column))
            return OutlinedLevel([made], axes=level.axes, shape=level.shape)
    return None


def _column(page: TiffPage, name: int) -> Column | None:
    tag = page.tags.get(name)
    if tag is None or int(tag.dtype) not in WHOLE_NUMBERS:
        return None
    return Column(tag.valueoffset, page.parent.byteorder + WHOLE_NUMBERS[int(tag.dtype)], tag.count)


def _says(column: Column, page: TiffPage, numbers: Sequence[int]) -> bool:
    """Whether a file lists what tifffile made of it, which mends some lists."""
    found = column.of(page.parent.filehandle, 0, column.n)
    return column.n == len(numbers) and np.array_equal(found, np.array(numbers, np.uint64))
