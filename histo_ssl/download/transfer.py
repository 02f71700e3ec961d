"""Fetches a file over HTTP, goes on where it stopped, and believes it only with the right checksum."""

import contextlib
import hashlib
import http.client
import logging
import re
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from histo_ssl.download.catalogue import RemoteFile
from histo_ssl.folders.artifacts import publish
from histo_ssl.progress import Progress

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0  # without a byte
OK, PARTIAL, BEYOND_END = 200, 206, 416
PART = ".part"
# What is raised where a server can't be reached, or no longer.
UNREACHABLE = (
    *(http.client.HTTPException, TimeoutError, ConnectionError),
    *(ssl.SSLError, urllib.error.URLError),
)


class TransferError(ValueError):
    """A file could not be fetched, or is not the one that it should be."""


def fetch(file: RemoteFile, folder: Path) -> Path:
    """The whole file in `folder`, its checksum verified; one that lies there already is verified alone.

    A transfer that breaks off is taken up again as long as it gets on; what has come stays in `<name>.part`.

    Raises:
        TransferError: it can't be had, or has another size or checksum.
    """
    path = folder / file.name
    if path.exists():
        verify(path, file)
        return path
    part = folder / f"{file.name}{PART}"
    if not file.n_bytes or _size(part) != file.n_bytes:
        _transfer(file, part)
    try:
        verify(part, file)
    except TransferError as error:
        part.unlink()
        raise TransferError(f"{error}; it was removed") from error
    publish(part, path)
    return path


def verify(path: Path, file: RemoteFile) -> None:
    """Hold a file against the size and MD5 that are known of it.

    Raises:
        TransferError: it differs.
    """
    size = _size(path)
    if file.n_bytes is not None and size != file.n_bytes:
        raise TransferError(f"{path} has {size:,} bytes, {file.n_bytes:,} were expected")
    if file.md5 is None:
        log.info("%s: no checksum is known; the archive's own are all that is held against it", path.name)
        return
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != file.md5:
        raise TransferError(f"{path} has the MD5 {found}, {file.md5} was expected")


def _transfer(file: RemoteFile, part: Path) -> None:
    """Fetch what `part` lacks, in as many connections as it takes, each of which has to bring something."""
    while True:
        n_before = _size(part)
        try:
            if _append(file, part, n_before=n_before):
                return
            reason = f"the connection ended after {_size(part):,} bytes"
        except urllib.error.HTTPError as error:
            raise TransferError(f"the server answers {error.code} {error.reason}") from error
        except UNREACHABLE as error:
            reason = f"no connection ({getattr(error, 'reason', None) or error or type(error).__name__})"
        if _size(part) == n_before:
            kept = (
                f"; {n_before:,} bytes are kept, and the same command goes on from there" if n_before else ""
            )
            raise TransferError(f"{reason}{kept}")
        log.info("%s: %s; trying to go on", file.name, reason)


def _append(file: RemoteFile, part: Path, *, n_before: int) -> bool:
    """Add to `part` what one connection brings; whether the file is then whole."""
    headers = {"User-Agent": "histo_ssl", **({"Range": f"bytes={n_before}-"} if n_before else {})}
    with _opened(urllib.request.Request(file.url, headers=headers)) as response:
        if response.status == BEYOND_END:
            return True  # all of it is there, as its checksum will show
        total = _total(response, n_before=n_before)
        _check_total(total, file)
        _check_room(part, (total or 0) - n_before)
        most = total if total is not None else file.n_bytes or file.most_bytes
        _write(response, part, most_bytes=most, n_before=n_before)
    return total is None or _size(part) == total


@contextlib.contextmanager
def _opened(request: urllib.request.Request) -> Iterator[http.client.HTTPResponse]:
    """The server's answer; of its refusals only the one that there is nothing left to send."""
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != BEYOND_END:
            raise
        response = error
    with response:
        yield response


def _total(response: http.client.HTTPResponse, *, n_before: int) -> int | None:
    """Bytes of the whole file, as the server says; None where it doesn't.

    Raises:
        TransferError: it sends another stretch than was asked for.
    """
    if n_before == 0:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None
    stretch = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status != PARTIAL or not stretch or int(stretch[1]) != n_before:
        raise TransferError(
            f"the server can't go on after the {n_before:,} bytes that are here; delete {PART} to begin anew"
        )
    return int(stretch[2])


def _check_total(total: int | None, file: RemoteFile) -> None:
    if total is not None and file.n_bytes is not None and total != file.n_bytes:
        raise TransferError(f"the server has {total:,} bytes, {file.n_bytes:,} were expected")
    if total is not None and total > file.most_bytes:
        raise TransferError(f"the server has {total:,} bytes, no more than {file.most_bytes:,} were expected")


def _check_room(part: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if n_bytes > free:
        raise TransferError(f"{n_bytes:,} bytes are to come, {part.parent} has room for {free:,}")


def _write(response: IO[bytes], part: Path, *, most_bytes: int, n_before: int) -> None:
    """Append the answer's body, as long as the file gets no longer than `most_bytes`."""
    n_left = most_bytes - n_before
    megabytes = Progress(
        part.stem, n_items=most_bytes // CHUNK_BYTES, noun="MB", n_before=n_before // CHUNK_BYTES
    )
    with part.open("ab") as written, megabytes:
        while n_left > 0 and (chunk := response.read(min(CHUNK_BYTES, n_left))):
            written.write(chunk)
            n_left -= len(chunk)
            megabytes.advance(1)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
