"""The processes that read tiles: how many, how they start, and how they end."""

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

# Words in the messages of torch's DataLoader.
TIMED_OUT = "DataLoader timed out"
LOST = ("is killed by signal", "exited unexpectedly")
CAUGHT = "Caught "  # begins the message of an error in a worker, which ends in the error's own words
POLL_S = 5.0  # between two looks for workers that are gone
GO_ON = "the same command goes on from what is written"


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How tiles are read. Changes speed and memory, never a byte of a batch.

    Args:
        n_workers: processes beside this one; with 0 it reads by itself.
        start_method: of those processes.
        timeout_s: seconds without any batch after which they count as hung; 0 waits for ever.
    """

    n_workers: int
    start_method: str
    timeout_s: int

    def arguments(self) -> dict[str, Any]:
        """Arguments of a DataLoader; pinned memory where there is a GPU to copy to."""
        common = {"num_workers": self.n_workers, "pin_memory": torch.cuda.is_available()}
        if not self.n_workers:
            return common
        workers = {"multiprocessing_context": self.start_method, "worker_init_fn": obey_parent_only}
        return {**common, **workers, "timeout": POLL_S}


def obey_parent_only(number: int) -> None:  # noqa: ARG001 (a DataLoader numbers its workers)
    """Make this worker outlive signals that are sent to all processes of a run, and end at its parent's word.

    Ctrl-C goes to every process of a terminal, SLURM's signals to every process of a step. The training
    process answers them; to finish its step it needs its workers. They end when it ends them, or is gone.
    """
    gc.freeze()  # what a fork inherits is not looked through for garbage, which would copy all of its pages
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # in a thread, so that also a worker that hangs in a read can be ended
    threading.Thread(target=_end_at_the_parents_word, daemon=True).start()


def start_tracker() -> None:
    """Start multiprocessing's own helper, deaf to the signal that SLURM sends to all processes of a step.

    Killed by it, it would be started again, with a traceback for each worker.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _end_at_the_parents_word() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


class TileLoader(DataLoader[Any]):
    """Batches of tiles; what befalls the processes that read them is told in a sentence, within seconds."""

    def __init__(self, tiles: Dataset[Any], wanted: Any, loading: Loading) -> None:
        """Read, for every list of `wanted`, what `tiles` makes of it: a whole batch."""
        if loading.n_workers and loading.start_method != "fork":
            start_tracker()
        super().__init__(
            tiles,
            batch_sampler=wanted,
            collate_fn=as_it_is,
            generator=torch.Generator(),  # its workers' seeds would be drawn from the training's numbers
            **loading.arguments(),
        )
        self.loading = loading
        self.waited_s = 0.0  # of whoever draws batches, for workers or for reading by itself

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches in order.

        Raises:
            ChildProcessError: a worker was killed.
            TimeoutError: there was no batch within `timeout_s`.
            ValueError, OSError: a tile can't be read; told as if this process had read it.
        """
        with _keeping_handler(
            signal.SIGCHLD
        ):  # torch's would raise anywhere; here a lost worker is looked for
            batches = super().__iter__()
        while True:
            started = time.monotonic()
            try:
                batch = self._next(batches)
            except StopIteration:
                return
            except (RuntimeError, ValueError, OSError, EOFError) as error:
                raise _explained(error, self.loading) from error
            self.waited_s += time.monotonic() - started
            yield batch

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch; torch looks for lost workers each time that it gives up waiting."""
        give_up_at = time.monotonic() + (self.loading.timeout_s or math.inf)
        while True:
            try:
                return next(batches)
            except RuntimeError as error:
                if TIMED_OUT not in str(error):
                    raise
                if time.monotonic() >= give_up_at:
                    raise TimeoutError(
                        f"no tile was read within loader.timeout_s={self.loading.timeout_s} s: see whether "
                        f"the slides' disk answers, or raise it; {GO_ON}"
                    ) from error


def as_it_is(batch: Any) -> Any:
    """The batch: workers make whole ones, there is nothing to collate."""
    return batch


@contextlib.contextmanager
def _keeping_handler(signum: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signum)
    yield
    signal.signal(signum, former)


def _explained(error: Exception, loading: Loading) -> Exception:
    """What to tell of an error of a DataLoader."""
    text = str(error).strip()
    if text.startswith(CAUGHT) and not isinstance(error, RuntimeError):
        return type(error)(text.splitlines()[-1].partition(": ")[2])
    if not any(words in text for words in LOST) and not _broke_off(error, loading):
        return error
    reason, *_ = (text or type(error).__name__).splitlines()
    return ChildProcessError(
        f"a process that reads tiles was killed ({reason}): memory may have run out, try "
        f"loader.n_workers={loading.n_workers // 2}; {GO_ON}"
    )


def _broke_off(error: Exception, loading: Loading) -> bool:
    """Whether a batch got lost on its way here, as one does whose worker is killed once it has sent it."""
    is_of_transport = isinstance(error, OSError | EOFError) and not isinstance(error, TimeoutError)
    return loading.n_workers > 0 and is_of_transport
