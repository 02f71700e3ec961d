"""What was made once and is kept while there is room: pictures of tiles, maps of slides, clusterings."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Memory(Generic[V]):
    """Values by key, the least recently used forgotten first; safe for threads, and no value is made twice.

    Args:
        limit: of the sizes of all values together.
        size: of one value, in the limit's unit.
    """

    def __init__(self, *, limit: int, size: Callable[[V], int]) -> None:
        self._limit, self._size = limit, size
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not there; others that ask for it meanwhile wait for it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            try:
                value = make()
                self._keep(key, value)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def _keep(self, key: Hashable, value: V) -> None:
        with self._lock:
            if key not in self._kept:
                self._total += self._size(value)
            self._kept[key] = value
            while self._total > self._limit and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._total -= self._size(old)
