"""Folders that are either finished or known not to be: fingerprints, atomic writes, locks, done marks.

A stage writes one folder. Its name ends in a fingerprint of everything it depends on; a lock lets one
process write it; each file appears whole or not at all; `done.json` comes last and lists what must be there.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from histo_ssl.folders.changes import LISTING, Listing, difference
from histo_ssl.folders.disk import NotWrittenError
from histo_ssl.folders.provenance import provenance
from histo_ssl.folders.redaction import redacted

log = logging.getLogger(__name__)

DONE = "done.json"
CONFIG = "config.json"  # what the work is made of; the first file of a folder
PROVENANCE = "provenance.json"
FINGERPRINT_DIGITS = 10  # 40 bits: one clash expected among a million folders
TEMPORARY = ".tmp-"  # prefix of names that a killed process may leave behind

Counts = Mapping[str, int]


class Picture(Protocol):
    """An image that saves itself, such as Pillow's."""

    def save(self, fp: io.BytesIO, format: str, *, compress_type: int) -> None:
        """Write itself."""


def fingerprint(config: Any, *inputs: str) -> str:
    """Hash of a plain configuration and of the fingerprints it builds on: 10 hexadecimal digits.

    Args:
        config: nested mappings, lists, strings, numbers, booleans and None; the order of keys has no meaning.
        inputs: fingerprints of the folders that the work reads.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
    True
    """
    text = json.dumps([config, list(inputs)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def file_fingerprint(path: Path) -> str:
    """Hash of a file's bytes, whatever its name: 64 hexadecimal digits, remembered until it changes."""
    facts = path.stat()
    return _hashed(path, facts.st_size, facts.st_mtime_ns)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends, and vanishes if it raises.

    The bytes are on the disk (fsync) before the rename, so a reader sees the old file or the whole new one.

    Raises:
        NotWrittenError: the disk would not take it; any OSError of the block counts as such.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: a folder that vanished shall be missed
        yield temporary
        publish(temporary, path)
    except OSError as error:
        raise NotWrittenError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, once its bytes are on the disk."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """`data` as the file `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_image(path: Path, image: Picture) -> None:
    """`image` as a PNG, atomically; encoded in memory, since encoders don't say why a disk refused them.

    By run lengths, in half the time of zlib's search: files of slides are 4 % larger, of masks 12 % smaller.
    """
    stream = io.BytesIO()
    image.save(stream, format="png", compress_type=zlib.Z_RLE)
    write_bytes(path, stream.getvalue())


def write_text(path: Path, text: str) -> None:
    """`text` as the UTF-8 file `path`, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """`content` as an indented JSON file, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file that `write_json` wrote."""
    return json.loads(path.read_text())


def complete(
    folder: Path, *, build: Callable[[Path], Counts], label: str, config: Any, listing: Listing | None = None
) -> Path:
    """`folder`, finished: taken as it is when its done mark holds, else built under a lock.

    Args:
        folder: where the work is written; what an interrupted `build` left there is kept for the next.
        build: writes into the folder; returns counts of what it made.
        label: name of the work in messages, such as "tile".
        config: the configuration that the fingerprint was made of; kept in `config.json` from the start.
        listing: the files that the work reads, where it was made of them, too.

    Raises:
        NotWrittenError: the disk would not take it, or the folder vanished meanwhile.
    """
    if is_done(folder):
        log.info("%s: done before, taken from %s", label, folder)
        return folder
    with exclusive(folder, label=label):
        if is_done(folder):
            log.info("%s: done by another process meanwhile, taken from %s", label, folder)
            return folder
        made_of = {"work": label, "config": redacted(config), LISTING: listing or {}}
        _build(folder, build=build, label=label, made_of=made_of)
    return folder


def is_done(folder: Path) -> bool:
    """Whether the folder is finished: its mark is whole, every file it lists is there in its full size."""
    try:
        mark = read_json(folder / DONE)
        if mark["digest"] != _digest(mark["counts"], mark["files"]):
            return False
        files: dict[str, int] = mark["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except (ValueError, KeyError, TypeError, RecursionError):  # garbage instead of a mark
        return False


def finished(folder: Path, *, stage: str) -> Path:
    """`folder`, which an earlier stage must have finished.

    Raises:
        FileNotFoundError: it has not.
    """
    if not is_done(folder):
        raise FileNotFoundError(f"{folder}: not finished yet; put '{stage}' before this one in stages=[...]")
    return folder


def counts(folder: Path) -> dict[str, int]:
    """What the work in a finished folder counted, such as `{"slides": 12, "tiles": 2710}`."""
    return dict(read_json(folder / DONE)["counts"])


@contextlib.contextmanager
def exclusive(folder: Path, *, label: str) -> Iterator[None]:
    """Only one process at a time is in this block for a given folder; the lock dies with its process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is making %s; waiting for it", label, folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, *, build: Callable[[Path], Counts], label: str, made_of: Mapping[str, Any]) -> None:
    started = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    if not (folder / CONFIG).exists():
        _say_what_is_new(folder, label=label, made_of=made_of)
        write_json(folder / CONFIG, made_of)
    counted = dict(build(folder))
    if not (folder / CONFIG).exists():  # deleted meanwhile: what is there now is not all that was made
        raise NotWrittenError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / DONE))
    write_json(folder / PROVENANCE, provenance(made_of["config"], started=started))
    files = _sizes(folder)
    write_json(folder / DONE, {"counts": counted, "files": files, "digest": _digest(counted, files)})
    text = ", ".join(f"{n:,} {name}" for name, n in counted.items())
    log.info("%s: %s in %.1f s, written to %s", label, text or "done", time.time() - started, folder)


def _say_what_is_new(folder: Path, *, label: str, made_of: Mapping[str, Any]) -> None:
    """Log what differs from the nearest folder of the same work beside it, if there is any."""
    begun = {path.parent.name: _read_config(path) for path in folder.parent.glob(f"*/{CONFIG}")}
    alike = {name: other for name, other in begun.items() if other.get("work") == label}
    words = difference(made_of["config"], made_of[LISTING], alike)
    if words:
        log.info("%s: a new folder; %s", label, words)


def _read_config(path: Path) -> dict[str, Any]:
    """What a folder is made of; nothing where that can't be read."""
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _digest(counted: Any, files: Any) -> str:
    return fingerprint([counted, files])


@functools.cache
def _hashed(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 (they tell when to read again)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in files
        if path.name != DONE and not path.name.startswith(TEMPORARY)
    }


def sweep(folder: Path) -> None:
    """Remove the temporary files of a process that was killed; for one that holds the folder's lock."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
