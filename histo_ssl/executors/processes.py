"""Work in child processes that can be ended: one that hangs, crashes or grows costs its own result only.

Children are forked from a server that has imported the reader and runs no thread, so that one that was ended
is replaced within milliseconds, and no lock of this process is copied. A process has one server, which lives
as long as it does: the first child waits for the server's imports, unless it was started earlier.
"""

import contextlib
import math
import multiprocessing
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, ClassVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from histo_ssl.executors.base import Ended, Item, Processes, Result, crashed, out_of_time

GB = 2**30
LOOK_S = 1.0  # between two looks at whether the pool still works
PRELOADED = "histo_ssl.data.synthetic"  # what children of the server have imported already: all of slides


@dataclass(frozen=True, kw_only=True)
class Local:
    """Child processes of this machine.

    Args:
        retries: how often an item is tried again whose process hung or crashed.
    """

    retries: int
    is_here: ClassVar = True
    embed_timeout_s: ClassVar = math.inf  # embedding is done in this process

    def each(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        processes: Processes,
        *,
        folder: Path,  # noqa: ARG002 (this machine sees it)
    ) -> Iterator[tuple[int, Result | Ended[Item]]]:
        """The results of all items with their places, in their order."""
        yield from enumerate(each(work, items, processes, retries=self.retries))


def each(
    work: Callable[[Item], Result], items: Sequence[Item], processes: Processes, *, retries: int = 0
) -> Iterator[Result | Ended[Item]]:
    """The results of all items, in their order.

    Args:
        work: picklable.
        items: picklable.
        processes: how many, and what each item may take.
        retries: how often an item is tried again whose process hung or crashed.

    Returns:
        For an item whose process hung or crashed each time, why.

    Raises:
        ValueError: no child process can live with so little memory.
    """
    if processes.n == 0:
        yield from map(work, items)
        return
    with _pool(processes, n_items=len(items)) as pool:
        tasks = [_scheduled(pool, work, item, timeout_s=processes.timeout_s) for item in items]
        for item, task in zip(items, tasks, strict=True):
            found = _outcome(pool, task, item, processes)
            for _ in range(retries):
                if isinstance(found, Ended):
                    task = _scheduled(pool, work, item, timeout_s=processes.timeout_s)  # noqa: PLW2901
                    found = _outcome(pool, task, item, processes)
            yield found


def _outcome(
    pool: ProcessPool, task: ProcessFuture[Result], item: Item, processes: Processes
) -> Result | Ended[Item]:
    try:
        return _result(pool, task)
    except OutOfTime:
        return Ended(item, out_of_time(processes))
    except ProcessExpired as error:
        return Ended(item, crashed(error.exitcode))


def _scheduled(
    pool: ProcessPool, work: Callable[[Item], Result], item: Item, *, timeout_s: float
) -> ProcessFuture[Result]:
    try:
        return pool.schedule(work, args=[item], timeout=timeout_s)
    except RuntimeError as error:  # pebble's word for a pool that broke before
        raise BrokenProcessPool(str(error)) from error


def _result(pool: ProcessPool, future: ProcessFuture[Result]) -> Result:
    """The future's result; a pool that breaks before it has looked at the task would never give one."""
    while not futures.wait([future], timeout=LOOK_S).done:
        if not pool.active and not future.done():
            raise BrokenProcessPool("all processes ended")
    return future.result()


def forked_by_server() -> ForkServerContext:
    """The context of processes that the server forks."""
    context = ForkServerContext()
    context.set_forkserver_preload([PRELOADED])
    return context


def start_server() -> None:
    """Start the server, if there is none, and don't wait for its imports, a second of a core."""
    forked_by_server()
    forkserver.ensure_running()


@contextlib.contextmanager
def _pool(processes: Processes, *, n_items: int) -> Iterator[ProcessPool]:
    context = forked_by_server()
    n = min(processes.n, max(1, n_items))
    with ProcessPool(n, initializer=_begin, initargs=(processes.memory_gb,), context=context) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            pool.stop()  # type: ignore[no-untyped-call]
            raise ValueError(
                f"data.max_memory_gb={processes.memory_gb:g}: the processes that read slides ended before "
                "they could begin; raise it"
            ) from error
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]  # or leaving the pool would wait for all that was not begun
            raise


def _begin(memory_gb: float) -> None:
    """What a child does first: bound its memory, and see to it that it does not outlive its parent."""
    bound_memory(memory_gb)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)


def bound_memory(gb: float) -> None:
    """Let allocations fail, as on a full machine, once this process takes so much beyond what it has.

    Data are bounded, not addresses, of which libraries map more than they use. Linux only, elsewhere a no-op.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists() or math.isinf(gb):
        return
    n_pages = int(statm.read_text().split()[5])  # data and stack
    limit = n_pages * resource.getpagesize() + int(gb * GB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
