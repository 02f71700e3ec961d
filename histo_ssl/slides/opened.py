"""The slide files that a process has open: one per thread and slide, the least recently used closed first.

Of those that are closed an outline stays (`outlines.py`), by which they are opened again. A file that changed
since it was opened is opened anew; one that is not what its stamp says is refused.

Letters: h, w are the height and width of an image in pixels, c its channels.
"""

import contextlib
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from aiohttp import ClientError
from numpy.typing import NDArray

from histo_ssl.slides.files import OpenSlide
from histo_ssl.slides.outlines import Outline, OutlinedSlide
from histo_ssl.slides.stamps import Stamp, is_same, stamp
from histo_ssl.slides.stores import Store
from histo_ssl.slides.windows import Window

# An open slide holds the offsets of all its JPEG tiles, about 3 MB at 40,000 px square: 64 stay below 200 MB.
MAX_OPEN_SLIDES = 64
MAX_OUTLINES = 2**14  # 4 kB each for a pyramid of three levels

# What tifffile, tiffslide, the codecs and remote file systems raise when bytes are not what they should be.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ClientError,
    LookupError,
    OSError,
    RuntimeError,
    StopIteration,
    SyntaxError,  # XML in the metadata
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


Opened = TypeVar("Opened", OpenSlide, OutlinedSlide | OpenSlide)
Key = tuple[str, Stamp | None]  # path of a slide, and what it was when it was tiled


class OpenSlides(threading.local):
    """The open slides of this thread, least recently used first."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.slides: OrderedDict[Key, OpenSlide | OutlinedSlide] = OrderedDict()
        self.outlines: OrderedDict[Key, Outline] = OrderedDict()

    def of(self, path: str, known: Stamp | None, store: Store | None = None) -> OpenSlide:
        """The open file of a slide, to be asked what it says of itself.

        Args:
            path: of the slide.
            known: what it was when it was tiled, None where nobody knows.
            store: how to read it if it is remote.

        Raises:
            ValueError: it is another file by now.
        """
        key = path, known
        slide = self._found(key)
        if not isinstance(slide, OpenSlide):
            if slide is not None:
                slide.close()
            slide = _opened(path, known, store)
            self._keep(key, slide)
        return slide

    def for_tiles(
        self, path: str, known: Stamp | None, store: Store | None = None
    ) -> OpenSlide | OutlinedSlide:
        """The same to be read from."""
        key = path, known
        slide = self._found(key)
        if slide is None and key in self.outlines:
            slide = self.outlines[key].opened()
            if slide is not None:
                self._keep(key, slide)
        return slide or self.of(path, known, store)

    def _found(self, key: Key) -> OpenSlide | OutlinedSlide | None:
        """The slide if it is open, and the file that it was."""
        if self.process != os.getpid():
            # A forked child shares file positions and locks with its parent: it opens its own files instead.
            self.process, self.slides = os.getpid(), OrderedDict()
        slide = self.slides.get(key)
        if slide is not None and slide.has_changed():
            self.slides.pop(key).close()
            return None
        if slide is not None:
            self.slides.move_to_end(key)
        return slide

    def _keep(self, key: Key, slide: OpenSlide | OutlinedSlide) -> None:
        self.slides[key] = slide
        while len(self.slides) > MAX_OPEN_SLIDES:
            other, closed = self.slides.popitem(last=False)
            # what is surveyed has no stamp yet, and is not read again
            if isinstance(closed, OpenSlide) and other[1] and (outline := closed.outline()):
                self.outlines[other] = outline
            if other in self.outlines:
                self.outlines.move_to_end(other)
            closed.close()
        while len(self.outlines) > MAX_OUTLINES:
            self.outlines.popitem(last=False)


open_slides = OpenSlides()


@contextlib.contextmanager
def in_one_sentence(path: str) -> Iterator[None]:
    """Whatever the libraries raise on a bad file, said as one sentence that begins with its path."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except UNREADABLE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a slide: {said}") from error


def stamp_of(path: str, store: Store | None) -> Stamp:
    """The stamp of a slide file as it was opened."""
    with in_one_sentence(path):
        return stamp(open_slides.of(path, None, store).file)


def fetch(
    path: str, known: Stamp | None, store: Store | None, *, level: int, windows: Sequence[Window]
) -> None:
    """Fetch together what windows of one level are stored in, if the file is remote."""
    with in_one_sentence(path):
        open_slides.of(path, known, store).fetch(level, windows)


def pixels_of(
    path: str, known: Stamp | None, store: Store | None, *, level: int, window: Window, reduction: int
) -> NDArray[np.uint8]:
    """A window of one level, perhaps reduced, as (h, w, c), of a file that did not change meanwhile."""
    with in_one_sentence(path), _unchanged(open_slides.for_tiles(path, known, store)) as slide:
        return slide.pixels(level, window, reduction=reduction)


def jpeg_of(
    path: str, known: Stamp | None, store: Store | None, *, level: int, window: Window
) -> bytes | None:
    """The stored JPEG that such a window is, to be decoded alone; None where it is no such one."""
    with in_one_sentence(path), _unchanged(open_slides.of(path, known, store)) as slide:
        return slide.jpeg(level, window)


@contextlib.contextmanager
def _unchanged(slide: Opened) -> Iterator[Opened]:
    yield slide
    if slide.has_changed():
        raise ValueError("it was written to while it was read; read it again once it is complete")


def _opened(path: str, known: Stamp | None, store: Store | None) -> OpenSlide:
    slide = OpenSlide(path, store)
    if known is not None and not is_same(slide.file, known):
        slide.close()
        raise ValueError("the file has changed since it was tiled; tile it again (delete its tile folder)")
    return slide
