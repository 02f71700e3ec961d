"""Blocks of remote files kept on a local disk, so that none is fetched twice while there is room.

All processes that are given the same folder share it: workers, ranks, and a stage with those that come
after it. A block is written under a temporary name and renamed; it ends in its CRC-32, and one that a full
disk or a power cut has damaged is fetched anew. The least recently read go first.
"""

import contextlib
import fcntl
import logging
import os
import struct
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

AT_HAND_BYTES = 2**25  # in memory, per process: one large window, so that it is not read from the disk twice
LOOK_AFTER = 1 / 8  # of the room: what this process writes between two looks at what lies there
CHECK = struct.Struct("<I")  # CRC-32
TALLY = struct.Struct("<4Q")
TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Traffic:
    """What was read of remote files."""

    n_asked: int = 0  # bytes that readers asked for, from the cache or not
    n_sent: int = 0  # bytes that stores sent
    n_requests: int = 0
    n_again: int = 0  # of the requests: made because the one before had failed

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        again = f" ({self.n_again:,} of them again)" if self.n_again else ""
        return (
            f"stores sent {self.n_sent / 1e6:.1f} MB in {self.n_requests:,} requests{again} "
            f"for {self.n_asked / 1e6:.1f} MB that were read"
        )


class Blocks:
    """The blocks in a folder, as one process sees them.

    Args:
        folder: of the blocks; made where it is missing.
        tallies: folder in which each process counts its traffic.
        n_bytes: room for blocks on the disk.
    """

    def __init__(self, folder: Path, *, tallies: Path, n_bytes: int) -> None:
        self.folder, self.tallies, self.n_bytes = folder, tallies, n_bytes
        self.at_hand: OrderedDict[str, bytes] = OrderedDict()
        self.traffic = Traffic()
        self._lock = threading.Lock()
        self._n_at_hand = 0
        self._n_written = n_bytes  # so that the first block looks at what earlier runs have left
        self._is_full = False
        self._tally: int | None = None

    def find(self, name: str) -> bytes | None:
        """The block of that name, None if it is not here."""
        with self._lock:
            if name in self.at_hand:
                self.at_hand.move_to_end(name)
                return self.at_hand[name]
        path = self._path(name)
        try:
            stored = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        block, check = stored[: -CHECK.size], stored[-CHECK.size :]
        if check != CHECK.pack(zlib.crc32(block)):
            return None
        self._take_in_hand(name, block)
        return block

    def keep(self, name: str, block: bytes) -> None:
        """Keep a block. A disk that can't hold it costs speed, not the run."""
        self._take_in_hand(name, block)
        if self.n_bytes < len(block):
            return
        try:
            path = self._path(name)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._write(path, block + CHECK.pack(zlib.crc32(block)))
        except OSError as error:
            if not self._is_full:
                log.warning(
                    "%s: blocks of remote slides can't be kept there (%s), so they are fetched again and "
                    "again; name another folder with store.cache_dir, or lower store.cache_mb",
                    self.folder,
                    error.strerror,
                )
            self._is_full = True

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """While one process fetches of a file, others that want of the same one wait, and find it here."""
        path = self._path(name)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a disk without locks costs bytes that are fetched twice
                path.parent.mkdir(mode=0o700, exist_ok=True)
                fcntl.flock(stack.enter_context(path.open("wb")), fcntl.LOCK_EX)
            yield

    def count(self, traffic: Traffic) -> None:
        """Add to what this process has read, where `traffic_of` finds it."""
        with self._lock, contextlib.suppress(OSError):
            self.traffic += traffic
            if self._tally is None:
                self._tally, _ = tempfile.mkstemp(dir=self.tallies)
            os.pwrite(self._tally, TALLY.pack(*astuple(self.traffic)), 0)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _take_in_hand(self, name: str, block: bytes) -> None:
        with self._lock:
            self._n_at_hand += len(block) - len(self.at_hand.pop(name, b""))
            self.at_hand[name] = block
            while self._n_at_hand > AT_HAND_BYTES:
                self._n_at_hand -= len(self.at_hand.popitem(last=False)[1])

    def _write(self, path: Path, content: bytes) -> None:
        with self._lock:
            self._n_written += len(content)
            is_time = self._n_written >= LOOK_AFTER * self.n_bytes
            if is_time:
                self._n_written = 0
        if is_time:
            self._make_room()
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-{path.name}")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _make_room(self) -> None:
        """Remove the least recently read blocks until what may be written before the next look fits, too."""
        found = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        n_left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if n_left <= (1 - LOOK_AFTER) * self.n_bytes:
                return
            path.unlink(missing_ok=True)
            n_left -= size


def traffic_of(tallies: Path) -> Traffic:
    """What all processes that count in a folder have read until now."""
    total = Traffic()
    for path in tallies.iterdir():
        content = path.read_bytes()
        if len(content) == TALLY.size:  # or nothing was counted yet
            total += Traffic(*TALLY.unpack(content))
    return total
