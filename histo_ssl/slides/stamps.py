"""What a slide file is known by, so that one that was replaced since it was tiled is noticed."""

import hashlib
import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import fsspec
from tifffile import FileHandle

END_BYTES = 2**16  # read at either end of the file; what scanners write anew (tags, first tiles) lies there
DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A file's size, time and ends. A copy of the same bytes has the same stamp but for its time."""

    n_bytes: int
    modified_ns: int  # 0 for a remote file, of which only the size is known
    digest: str  # of the file's first and last 64 KiB; "" for a remote file


def stamp(file: FileHandle) -> Stamp:
    """The stamp of an open file."""
    at = state(file)
    if at is None:
        return Stamp(n_bytes=file.size, modified_ns=0, digest="")
    return Stamp(n_bytes=at[0], modified_ns=at[1], digest=_digest(file, n_bytes=at[0]))


def state(file: FileHandle) -> tuple[int, int] | None:
    """Size in bytes and time of the last change in ns, as of now; None for a remote file."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, io.UnsupportedOperation):
        return None
    return status.st_size, status.st_mtime_ns


def is_same(file: FileHandle, known: Stamp) -> bool:
    """Whether an open file is the one that was stamped. Its bytes are read only if its time differs."""
    at = state(file)
    if at is None or not known.digest:
        return (at[0] if at else file.size) == known.n_bytes
    if at[0] != known.n_bytes:
        return False
    return at[1] == known.modified_ns or _digest(file, n_bytes=at[0]) == known.digest


def lies_unchanged(path: str, known: Stamp | None) -> bool:
    """Whether the file at a path is the one that was stamped; it is opened only if its time differs."""
    if known is None:
        return False
    if not known.digest:
        files, place = fsspec.core.url_to_fs(path)
        return bool(files.exists(place) and files.size(place) == known.n_bytes)
    try:
        status = Path(path.removeprefix("file://")).stat()
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != known.n_bytes:
        return False
    if status.st_mtime_ns == known.modified_ns:
        return True
    with FileHandle(path.removeprefix("file://")) as file:
        return _digest(file, n_bytes=status.st_size) == known.digest


def stamp_in(row: Mapping[Any, Any]) -> Stamp | None:
    """The stamp in a row of status.csv; None where the slide could not be opened, or an old row has none."""
    if not row.get("n_bytes"):
        return None
    return Stamp(**{field.name: row[field.name] for field in fields(Stamp)})


def _digest(file: FileHandle, *, n_bytes: int) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for start in (0, max(0, n_bytes - END_BYTES)):
        file.seek(start)
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()
