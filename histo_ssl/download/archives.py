"""Takes files out of archives that strangers made, and nothing out of the folder that they are meant for.

All names and sizes are looked at before the first byte is written: an archive with a path to elsewhere, a
link, a device or more content than is stated is refused as a whole. What is written goes into a new folder.
"""

import gzip
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

CHUNK_BYTES = 1 << 20
# What `zipfile` and `gzip` raise when an archive is broken or of a kind they don't know.
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, gzip.BadGzipFile)


class ArchiveError(ValueError):
    """An archive that is broken, or that wants to do more than be unpacked."""


class Readable(Protocol):
    """An open file."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at its end."""


def safe_path(name: str) -> PurePosixPath:
    """A relative path that stays below the folder it is taken from, such as `A/b.tif`.

    Raises:
        ArchiveError: it is absolute, climbs, names a drive, or hides characters that are no part of a name.
    """
    parts = name.removesuffix("/").split("/")
    is_odd = re.search(r"[\\\x00-\x1f\x7f]", name) or re.match(r"[A-Za-z]:", name)
    if is_odd or any(part in ("", ".", "..") for part in parts):
        raise ArchiveError(f"a path that may lead elsewhere: {name!r}")
    return PurePosixPath(*parts)


def unzip(archive: Path, folder: Path, *, most_bytes: int, most_files: int) -> int:
    """Number of files that were taken out of a zip archive into `folder`, which must be new.

    Raises:
        ArchiveError: it is broken, or not safe to unpack; nothing was written unless its content is broken.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _check(entries, most_bytes=most_bytes, most_files=most_files)
            folder.mkdir()
            files = [entry for entry in entries if not entry.is_dir()]
            for entry in files:
                target = folder / safe_path(entry.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as content, target.open("xb") as written:
                    _copy(content, written, most_bytes=entry.file_size)
            return len(files)
    except BROKEN as error:
        raise ArchiveError(f"a broken archive ({error})") from error


def gunzip(archive: Path, target: Path, *, most_bytes: int) -> None:
    """Write what a gzip file holds as the new file `target`.

    Raises:
        ArchiveError: it is broken, or holds more than `most_bytes`.
    """
    try:
        with gzip.open(archive, "rb") as content, target.open("xb") as written:
            _copy(content, written, most_bytes=most_bytes)
    except BROKEN as error:
        raise ArchiveError(f"a broken archive ({error})") from error


def unpacked_bytes(archive: Path) -> int:
    """Bytes that a zip archive says to unpack to.

    Raises:
        ArchiveError: it is broken.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return sum(entry.file_size for entry in opened.infolist())
    except BROKEN as error:
        raise ArchiveError(f"a broken archive ({error})") from error


def _check(entries: Sequence[zipfile.ZipInfo], *, most_bytes: int, most_files: int) -> None:
    if len(entries) > most_files:
        raise ArchiveError(f"{len(entries):,} entries, more than the {most_files:,} that were expected")
    n_bytes = sum(entry.file_size for entry in entries)
    if n_bytes > most_bytes:
        raise ArchiveError(
            f"{n_bytes:,} bytes when unpacked, more than the {most_bytes:,} that were expected"
        )
    files: set[PurePosixPath] = set()
    for entry in entries:
        path = safe_path(entry.filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive was not made on a Unix
        if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            raise ArchiveError(f"a link or device, not a file: {entry.filename!r}")
        if not entry.is_dir():
            if path in files:
                raise ArchiveError(f"two files of the name {entry.filename!r}")
            files.add(path)
    above = {parent for path in files for parent in path.parents}
    both = sorted(files & above)
    if both:
        raise ArchiveError(f"a file and a folder of the name {str(both[0])!r}")


def _copy(content: Readable, written: BinaryIO, *, most_bytes: int) -> None:
    """Copy a stream, at most so many bytes: what an archive says of its sizes may be a lie."""
    n_left = most_bytes
    while chunk := content.read(CHUNK_BYTES):
        n_left -= len(chunk)
        if n_left < 0:
            raise ArchiveError(f"more content than the {most_bytes:,} bytes that were expected")
        written.write(chunk)


def remove(folder: Path) -> None:
    """Remove what was unpacked, if anything was."""
    if folder.exists():
        shutil.rmtree(folder)
