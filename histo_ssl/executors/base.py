"""What the stages know of an executor: it does the same work for every item, somewhere, within limits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How work is spread over child processes, and what each of its items may take."""

    n: int  # at a time on this machine; 0: in this process, without limits. A cluster has as many as it has
    timeout_s: float  # for one item
    memory_gb: float  # beyond what a child takes at rest
    timeout_name: str = "slide_timeout_s"  # where a user sets the time


@dataclass(frozen=True)
class Ended(Generic[Item]):
    """An item whose process did not live to give its result."""

    item: Item
    reason: str


class Executor(Protocol):
    """Does work for a list of items. Changes where and how fast, never a byte of what is written."""

    is_here: bool  # on this machine alone, so that this process may as well do it
    embed_timeout_s: float  # for the embedding of one slide, where it isn't done in this process

    def each(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        processes: Processes,
        *,
        folder: Path,
    ) -> Iterator[tuple[int, Result | Ended[Item]]]:
        """The results of all items with their places in the list, in any order.

        Args:
            work: picklable. What it writes is written atomically, and not again if it is there: an item
                whose worker is lost is done by another.
            items: picklable.
            processes: what each item may take.
            folder: that the work writes into; a cluster's workers must see it.

        Returns:
            For an item whose process hung or crashed each time, why.

        Raises:
            ValueError: nobody could do the work.
        """


def out_of_time(processes: Processes) -> str:
    """Why an item that took too long has no result."""
    return f"the reader did not finish within {processes.timeout_name}={processes.timeout_s:g}"


def crashed(status: int | None) -> str:
    """Why an item whose process ended has no result."""
    return f"the reader crashed (exit status {status})"
