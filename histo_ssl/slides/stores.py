"""Slides behind `https://`, `s3://`, `gs://` and whatever else fsspec opens, as files of cached blocks.

A file is read in aligned blocks, neighbours in one request and requests together. Nothing of a connection is
carried into another process: each opens its own.
"""

import atexit
import hashlib
import io
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from histo_ssl.slides.blocks import Blocks, Traffic, traffic_of
from histo_ssl.slides.fetching import WHOLE_BYTES, Known, Range, RemoteObject, no_ranges

LOOK_S = 60.0  # between two looks at whether an open file is still the same
REQUEST_BYTES = 2**23  # longest range of one request
AHEAD_BYTES = 2**24  # fetched before it is read


@dataclass(frozen=True, kw_only=True)
class Store:
    """How remote slides are read (see `store` in `conf/config.yaml`). Changes no result."""

    block_kb: int
    cache_mb: int
    cache_dir: str | None
    timeout_s: float
    n_tries: int
    tallies: str = ""  # folder in which processes count what they read; of a store in use


# What is used where nobody has read the configuration, which says the same (tests/slides/test_stores.py).
UNASKED = Store(block_kb=16, cache_mb=1024, cache_dir=None, timeout_s=30, n_tries=5)


class _InUse:
    """What this process was told, and the folder that it has made for it."""

    asked: Store = UNASKED
    made: Store | None = None


def is_remote(path: str) -> bool:
    """Whether a path is an address with a protocol, `https://...`, rather than a local one."""
    return "://" in path and not path.startswith("file://")


def use(store: Store) -> None:
    """Read remote slides that are opened from now on, here and in workers, in that way."""
    _InUse.asked, _InUse.made = store, None


def current() -> Store:
    """How remote slides are read, with its folders, which are there; temporary ones end with this process."""
    if _InUse.made is None:
        asked = _InUse.asked
        folder = Path(tempfile.mkdtemp(prefix="histo_ssl-"))
        atexit.register(_remove, folder, os.getpid())
        (folder / "tallies").mkdir()
        blocks = Path(asked.cache_dir).expanduser().resolve() if asked.cache_dir else folder / "blocks"
        blocks.mkdir(mode=0o700, parents=True, exist_ok=True)
        _InUse.made = replace(asked, cache_dir=str(blocks), tallies=str(folder / "tallies"))
    return _InUse.made


def store_for(paths: Iterable[str]) -> Store | None:
    """How to read files, some of which are remote; None where none is."""
    return current() if any(map(is_remote, paths)) else None


def traffic() -> Traffic:
    """What this process and its workers have read of remote slides until now."""
    return traffic_of(Path(_InUse.made.tallies)) if _InUse.made else Traffic()


class RemoteFile(io.RawIOBase):
    """A file in a store, read at any place; for one thread of one process.

    Args:
        url: that fsspec understands.
        store: how to read it, as `current` says.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the store does not answer, or refuses to.
        ValueError: the library for such addresses is not installed.
    """

    def __init__(self, url: str, store: Store) -> None:
        super().__init__()
        self.blocks = _blocks(store, os.getpid())
        self.object = RemoteObject(url, timeout_s=store.timeout_s, n_tries=store.n_tries)
        self.known = self._asked()
        self.size = self.known.n_bytes
        self.block_bytes = store.block_kb * 1024
        self.place = 0
        self.sends_ranges = False  # known once it has sent one
        identity = f"{url}\n{self.known}\n{self.block_bytes}"
        self.name_of_blocks = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The place that `read` goes on from."""
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, which comes back."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        self.place = max(0, origin + offset)
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, fewer at the file's end; all that are left for -1."""
        stop = self.size if size is None or size < 0 else min(self.size, self.place + size)
        data = self.read_at(self.place, stop - self.place)
        self.place += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer with the next bytes; how many comes back."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Bytes from a place on, fewer where the file ends before."""
        stop = min(self.size, offset + n_bytes)
        if stop <= offset:
            return b""
        self._count(n_asked=stop - offset)
        numbers = range(offset // self.block_bytes, (stop - 1) // self.block_bytes + 1)
        found = self._found(numbers)
        start = numbers[0] * self.block_bytes
        return b"".join(found[number] for number in numbers)[offset - start : stop - start]

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Fetch together what will be read soon, as far as it has room in memory."""
        numbers = sorted(
            {
                number
                for start, stop in ranges
                if 0 <= start < stop <= self.size
                for number in range(start // self.block_bytes, (stop - 1) // self.block_bytes + 1)
            }
        )
        self._found(numbers[: AHEAD_BYTES // self.block_bytes])

    def now(self) -> Known:
        """What the store says of it, at most a minute ago."""
        if time.monotonic() - self.looked_at > LOOK_S:
            return self._asked()
        return self.known

    def _asked(self) -> Known:
        self.looked_at = time.monotonic()
        try:
            return self.object.known()
        finally:
            self._count_requests()

    def _found(self, numbers: Sequence[int]) -> dict[int, bytes]:
        have = self._kept(numbers)
        if all(number in have for number in numbers):
            return have
        with self.blocks.alone(f"{self.name_of_blocks}.lock"):
            have |= self._kept([number for number in numbers if number not in have])
            missing = [number for number in numbers if number not in have]
            return have | self._fetched(missing) if missing else have

    def _kept(self, numbers: Sequence[int]) -> dict[int, bytes]:
        found = ((number, self.blocks.find(self._name(number))) for number in numbers)
        return {number: block for number, block in found if block is not None}

    def _fetched(self, numbers: Sequence[int]) -> dict[int, bytes]:
        runs = list(_runs(numbers, most=max(1, REQUEST_BYTES // self.block_bytes)))
        wanted = [
            (run[0] * self.block_bytes, min(self.size, (run[-1] + 1) * self.block_bytes)) for run in runs
        ]
        # The first range alone, until it has come as one: else each would bring all of the file.
        n_first = len(wanted) if self.sends_ranges else 1
        blocks = self._blocks_of(wanted[:n_first])
        if any(number not in blocks for number in numbers):
            blocks |= self._blocks_of(wanted[n_first:])
        for number, block in blocks.items():
            self.blocks.keep(self._name(number), block)
        return blocks

    def _blocks_of(self, wanted: Sequence[Range]) -> dict[int, bytes]:
        """The blocks of some ranges, or all blocks of the file where its server sends that."""
        try:
            answers = self.object.ranges(wanted)
        finally:
            self._count_requests()
        self._count(n_sent=sum(map(len, answers)))
        blocks: dict[int, bytes] = {}
        for (start, stop), answer in zip(wanted, answers, strict=True):
            self._check(answer, n_bytes=stop - start)
            is_range = len(answer) == stop - start
            self.sends_ranges = is_range and stop - start < self.size
            blocks.update(self._cut(answer, place=start if is_range else 0))
        return blocks

    def _check(self, answer: bytes, *, n_bytes: int) -> None:
        """Refuse what is neither the range that was asked for nor, of a small file, all of it."""
        if len(answer) not in (n_bytes, self.size):
            raise ValueError(f"its server sends {len(answer)} bytes where {n_bytes} were asked for")
        if n_bytes < len(answer) > WHOLE_BYTES:
            raise ValueError(no_ranges(self.size))

    def _cut(self, data: bytes, *, place: int) -> Iterator[tuple[int, bytes]]:
        """Blocks of bytes that begin at a block's place, by their numbers."""
        for i in range(0, len(data), self.block_bytes):
            yield (place + i) // self.block_bytes, data[i : i + self.block_bytes]

    def _name(self, number: int) -> str:
        return f"{self.name_of_blocks}-{number}"

    def _count_requests(self) -> None:
        self._count(n_requests=self.object.n_requests, n_again=self.object.n_again)
        self.object.n_requests = self.object.n_again = 0

    def _count(self, **counted: int) -> None:
        self.blocks.count(Traffic(**counted))


def _runs(numbers: Sequence[int], *, most: int) -> Iterator[list[int]]:
    """Neighbours together, `most` at a time.

    >>> list(_runs([1, 2, 3, 7], most=2))
    [[1, 2], [3], [7]]
    """
    for _, group in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        yield from (run[i : i + most] for i in range(0, len(run), most))


@cache
def _blocks(store: Store, process: int) -> Blocks:  # noqa: ARG001 (a forked child has locks and counts of its own)
    if not (store.cache_dir and Path(store.cache_dir).is_dir()):
        own = current()  # of a machine that does not see the folder of the one that shared out the work
        store = replace(store, cache_dir=own.cache_dir, tallies=own.tallies)
    n_bytes = store.cache_mb * 2**20
    return Blocks(Path(str(store.cache_dir)), tallies=Path(store.tallies), n_bytes=n_bytes)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
