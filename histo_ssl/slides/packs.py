"""The tiles of a slide in one file, each read by two reads of known places: a pack.

The bytes of all tiles come first, then the index, one `ENTRY` per tile, then the `FOOTER`. So a pack is
written from beginning to end with no more in memory than its index, and one rename makes bytes and index
whole together. A tile's bytes and its entry are held against a checksum before anything is decoded.
"""

import hashlib
import json
import os
import struct
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_ssl.folders.artifacts import atomic_path
from histo_ssl.slides.codecs import jpeg_pixels
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.lossless import packed, unpacked
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.stamps import Stamp
from histo_ssl.units import TilePx

VERSION = 1  # of what packs hold; packs of another one are made again
UNREAD, JPEG, LOSSLESS = range(3)  # how a tile lies in a pack: not at all, as in the slide, without a loss
ENTRY = np.dtype(
    [("start", "<u8"), ("size", "<u4"), ("kind", "<u4"), ("checksum", "<u4"), ("x", "<i4"), ("y", "<i4")]
)  # first byte and number of bytes; left and top, level-0 px
FOOTER = struct.Struct("<8sQ16s")  # mark, number of tiles, what they are made of
MARK = b"histopak"
AGAIN = "delete it, and the same command packs its slide again"

Place = tuple[int, int]  # left and top, level-0 px
Tile = tuple[Place, int, bytes]  # with its kind and bytes


def made_of(known: Stamp | None, spec: TileSpec, *, slide_mpp: float) -> bytes:
    """Digest of all that pixels of packed tiles depend on beside their places, 16 bytes.

    Args:
        known: stamp of the slide's file; its time doesn't count, a copy is the same.
        spec: of the tiles.
        slide_mpp: um/px of level 0.
    """
    file = [known.n_bytes, known.digest] if known else None
    facts = [VERSION, file, {**asdict(spec), "min_tissue": None}, slide_mpp]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).digest()


def as_bytes(slide: Slide, place: Place, spec: TileSpec) -> Tile:
    """A tile as it is packed: its stored JPEG where it is one, else its pixels; nothing if unreadable."""
    try:
        pixels = slide.read(place, spec)
        stored = slide.stored_jpeg(place, spec)
    except (ValueError, OSError):
        return place, UNREAD, b""
    if stored is not None and np.array_equal(jpeg_pixels(stored, n_channels=3), pixels):
        return place, JPEG, stored
    return place, LOSSLESS, packed(pixels)


def write_pack(path: Path, tiles: Iterable[Tile], *, made_of: bytes) -> None:
    """Write the tiles of a slide, in the order in which they will be asked for, atomically."""
    entries: list[bytes] = []
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for (x, y), kind, data in tiles:
            checksum = _checksum(data, file.tell(), kind, (x, y))
            entry = np.array((file.tell(), len(data), kind, checksum, x, y), ENTRY)
            entries.append(entry.tobytes())
            file.write(data)
        file.writelines(entries)
        file.write(FOOTER.pack(MARK, len(entries), made_of))


class Pack:
    """An open pack. Any thread and any forked process may read it: no place in the file is shared.

    Args:
        path: of the file.
        n_tiles: that it must hold.
        made_of: as of `made_of`.
        side_px: of its tiles.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut short, damaged, or of other tiles.
    """

    def __init__(self, path: Path, *, n_tiles: int, made_of: bytes, side_px: TilePx) -> None:
        self.path, self.side_px = path, side_px
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        n_bytes = os.fstat(self._file).st_size
        self._index = n_bytes - FOOTER.size - n_tiles * ENTRY.itemsize
        footer = os.pread(self._file, FOOTER.size, max(0, n_bytes - FOOTER.size))
        if len(footer) < FOOTER.size or FOOTER.unpack(footer)[0] != MARK or self._index < 0:
            raise ValueError(f"{path}: not a whole pack of {n_tiles} tiles; {AGAIN}")
        if FOOTER.unpack(footer)[1:] != (n_tiles, made_of):
            raise ValueError(f"{path}: packed of another slide file or other tiles; {AGAIN}")

    def read(self, i: int, place: Place) -> NDArray[np.uint8] | None:
        """Tile i as (S, S, 3) RGB; None where it could not be read when the pack was made.

        Args:
            i: its number on its slide.
            place: its left and top edge, level-0 px, which its entry must have.

        Raises:
            ValueError: the pack is damaged.
        """
        start, size, kind, checksum, x, y = self._entries(i, 1)[0].tolist()
        if (x, y) != place or kind not in (UNREAD, JPEG, LOSSLESS):
            raise ValueError(f"{self.path}: its index has another tile at number {i}; {AGAIN}")
        data = os.pread(self._file, size, start)
        if _checksum(data, start, kind, place) != checksum:
            raise ValueError(f"{self.path}: tile {i} is damaged (its checksum is another); {AGAIN}")
        if kind == UNREAD:
            return None
        return jpeg_pixels(data, n_channels=3) if kind == JPEG else unpacked(data, side_px=self.side_px)

    def kinds(self, places: NDArray[np.int32]) -> NDArray[np.int64]:
        """Number of tiles of each kind: unread, JPEG, lossless.

        Args:
            places: (N, 2) left and top edges that all tiles must have, level-0 px.

        Raises:
            ValueError: the tiles are others, or lie beyond the end of the file.
        """
        table = self._entries(0, len(places))
        ends = table["start"] + table["size"]
        are_beyond = (ends > self._index) | (ends < table["start"]) | (table["kind"] > LOSSLESS)
        if not np.array_equal(np.stack([table["x"], table["y"]], axis=1), places) or are_beyond.any():
            raise ValueError(f"{self.path}: its index is of other tiles; {AGAIN}")
        return np.bincount(table["kind"], minlength=LOSSLESS + 1)

    def _entries(self, start: int, n: int) -> NDArray[Any]:
        return np.frombuffer(
            os.pread(self._file, n * ENTRY.itemsize, self._index + start * ENTRY.itemsize), ENTRY
        )


def _checksum(data: bytes, start: int, kind: int, place: Place) -> int:
    return zlib.crc32(data, zlib.crc32(struct.pack("<QIii", start, kind, *place)))
