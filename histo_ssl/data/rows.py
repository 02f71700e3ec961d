"""Which tiles a training draws, without a list of them all: there may be 100 million.

No torch here: processes that draw and survey slides begin in a third of the time without it.

Letters: B places asked for at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class RowList(Protocol):
    """Numbers of tiles by their place in a list, as an array of them has."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, places: NDArray[np.int64], /) -> Any:
        """The numbers at some places, (B,) int64."""


class Runs:
    """Numbers of tiles in rising order, kept as runs of neighbours: one per slide rather than one per tile.

    Args:
        bounds: first number of each run and the one behind its last, in order.
    """

    def __init__(self, bounds: Iterable[tuple[int, int]]) -> None:
        starts_stops = np.array([(start, stop) for start, stop in bounds if start < stop], np.int64).reshape(
            -1, 2
        )
        self._starts = starts_stops[:, 0]
        self._n_before = np.concatenate([[0], np.cumsum(starts_stops[:, 1] - starts_stops[:, 0])]).astype(
            np.int64
        )

    def __len__(self) -> int:
        return int(self._n_before[-1])

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers at some places, (B,); place 2 of the runs 5-6 and 9-11 has 9."""
        run = np.searchsorted(self._n_before, places, side="right") - 1
        found: NDArray[np.int64] = self._starts[run] + places - self._n_before[run]
        return found


@dataclass(frozen=True)
class InRuns:
    """Numbers of tiles of which neighbours are to be drawn together.

    Args:
        rows: the numbers.
        run_length: places of `rows` in a row that stay together.
    """

    rows: RowList
    run_length: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers at some places, (B,), as of `rows`."""
        found: NDArray[np.int64] = self.rows[places]
        return found
