"""Notices that a process has ended on which this one depends, also while this one waits in vain."""

import contextlib
import multiprocessing
import os
import select
import sys
import threading
from collections.abc import Mapping
from multiprocessing.process import BaseProcess

POLL_S = 0.5
GRACE_S = 15.0  # for this process to come to an end of its own: an error is on its way to the user


def end_with_parent() -> None:
    """What a process of a pool does first: a pool whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), name="end with parent", daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


class Watch:
    """Watches other ranks of this machine as long as the block runs; ends this process if one is gone.

    Without it a rank would wait for a sum that nobody completes: NCCL, and every call on a disk or a GPU,
    knows nothing of processes. Linux only; elsewhere the next sum over gloo tells.
    """

    def __init__(self, processes: Mapping[int, int]) -> None:
        """Be ready to watch, given process ids by rank."""
        self.processes = processes
        self._lost: int | None = None
        self._is_lost, self._is_over = threading.Event(), threading.Event()

    def __enter__(self) -> "Watch":
        """Begin."""
        if sys.platform == "linux":
            threading.Thread(target=self._look, name="watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no longer."""
        self.end()

    def end(self) -> None:
        """From now on the others may end."""
        self._is_over.set()

    def explain(self, error: RuntimeError) -> None:
        """Say in a sentence of a lost rank that it is the reason of `error`, if there is one.

        Raises:
            ConnectionError: names the rank.
        """
        if self._is_lost.wait(2 * POLL_S):
            raise ConnectionError(self._sentence()) from error

    def _look(self) -> None:
        lost = self._first_to_end()
        if lost is None or self._is_over.is_set():
            return
        self._lost = lost
        self._is_lost.set()
        if not self._is_over.wait(GRACE_S):
            print(f"error: {self._sentence()}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(1)  # nothing gentler gets a thread out of a call that does not return

    def _first_to_end(self) -> int | None:
        """The rank whose process ended first, or None once the watch is over."""
        assert sys.platform == "linux"
        with contextlib.ExitStack() as opened:
            poll, ranks = select.poll(), {}
            for rank, process in self.processes.items():
                try:
                    descriptor = os.pidfd_open(process)
                except ProcessLookupError:
                    return rank
                opened.callback(os.close, descriptor)
                poll.register(descriptor, select.POLLIN)  # readable when it has ended
                ranks[descriptor] = rank
            while not self._is_over.is_set():
                for descriptor, _ in poll.poll(1000 * POLL_S):
                    return ranks[descriptor]
        return None

    def _sentence(self) -> str:
        assert self._lost is not None
        return (
            f"rank {self._lost} (process {self.processes[self._lost]}) has ended in the middle of training; "
            f"the same command goes on from the last checkpoint"
        )
