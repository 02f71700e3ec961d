"""Decoded segments that the neighbours of what was read will need, too; per thread, least used first out.

A tile off the stored grid, or one that is resampled, lies over several segments, each of which lies under
several tiles. Read in the order of the grid each is decoded once.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

Segment = NDArray[np.uint8]  # (h, w, c)
Key = tuple[Hashable, ...]  # the open file, and where in it

# Two rows of stored 256 px tiles, which is what tiles of half the resolution need, of a scan 43,000 px wide.
MAX_BYTES = 2**26


class Kept(threading.local):
    """The segments of this thread."""

    def __init__(self) -> None:
        self.segments: OrderedDict[Key, Segment] = OrderedDict()
        self.of_file: dict[Hashable, set[Key]] = {}
        self.n_bytes = 0

    def find(self, key: Key) -> Segment | None:
        """The segment kept under a key, to be read only; None where there is none (any more)."""
        segment = self.segments.get(key)
        if segment is not None:
            self.segments.move_to_end(key)
        return segment

    def keep(self, key: Key, segment: Segment) -> None:
        """Keep a segment that is not there yet; larger ones than all may be together are not kept."""
        if segment.nbytes > MAX_BYTES:
            return
        self.segments[key] = segment
        self.of_file.setdefault(key[0], set()).add(key)
        self.n_bytes += segment.nbytes
        while self.n_bytes > MAX_BYTES:
            oldest, dropped = self.segments.popitem(last=False)
            self.of_file[oldest[0]].remove(oldest)
            self.n_bytes -= dropped.nbytes

    def forget(self, file: Hashable) -> None:
        """Drop the segments of a file that is closed: opened anew it could not find them."""
        for key in self.of_file.pop(file, ()):
            self.n_bytes -= self.segments.pop(key).nbytes


kept = Kept()
