"""What a slide file is known by, so that one that was replaced since it was tiled is noticed."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tifffile import FileHandle

from histo_ssl.slides.local import LocalFile
from histo_ssl.slides.stores import RemoteFile, current, is_remote

END_BYTES = 2**16  # read at either end of the file; what scanners write anew (tags, first tiles) lies there
DIGEST_BYTES = 16

File = FileHandle | LocalFile | RemoteFile
State = tuple[int, int, str]


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A file's size, time and ends. A copy of the same bytes has the same stamp but for its time."""

    n_bytes: int
    modified_ns: int  # 0 for a remote file of which the store does not say it
    digest: str  # of the file's first and last 64 KiB; "" for a remote file in older status.csv


def stamp(file: File) -> Stamp:
    """The stamp of an open file."""
    n_bytes, modified_ns, _ = state(file)
    return Stamp(n_bytes=n_bytes, modified_ns=modified_ns, digest=_digest(file, n_bytes=n_bytes))


def state(file: File) -> State:
    """Size in bytes, time of the last change in ns and a store's version, as of now."""
    if isinstance(file, RemoteFile):
        known = file.now()
        return known.n_bytes, known.modified_ns, known.version
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, ""


def is_same(file: File, known: Stamp) -> bool:
    """Whether an open file is the one that was stamped.

    Of a local one bytes are read only if its time differs; stores say times in seconds, or not at all.
    """
    n_bytes, modified_ns, _ = state(file)
    if n_bytes != known.n_bytes or not known.digest:
        return n_bytes == known.n_bytes
    is_exact = not isinstance(file, RemoteFile)
    return (is_exact and modified_ns == known.modified_ns) or _digest(file, n_bytes=n_bytes) == known.digest


def lies_unchanged(path: str, known: Stamp | None) -> bool:
    """Whether the file at a path is the one that was stamped; it is opened only if its time differs."""
    if known is None:
        return False
    if is_remote(path):
        return _lies_in_its_store(path, known)
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


def _lies_in_its_store(url: str, known: Stamp) -> bool:
    try:
        return is_same(RemoteFile(url, current()), known)
    except (OSError, ValueError):
        return False


def stamp_in(row: Mapping[Any, Any]) -> Stamp | None:
    """The stamp in a row of status.csv; None where the slide could not be opened, or an old row has none."""
    if not row.get("n_bytes"):
        return None
    return Stamp(**{field.name: row[field.name] for field in fields(Stamp)})


def _digest(file: File, *, n_bytes: int) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for start in (0, max(0, n_bytes - END_BYTES)):
        file.seek(start)
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()
