"""A program beside a worker of a cluster that does its work, and that can be ended.

A worker's own threads can't be: a reader that hangs would hold one for ever, one that crashes would take the
worker with it, and its processes may have no children, as a loader of tiles wants them. So each thread has
such a program, which does one item after the other and ends when its worker does.
"""

import contextlib
import copy
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from histo_ssl.executors.base import Ended, Processes, crashed, out_of_time
from histo_ssl.executors.processes import bound_memory

START_S = 600.0  # to import everything, perhaps from a slow disk
DYING_S = 5.0  # for one that has crashed, so that its exit status is its own
LOOK_S = 0.5  # between two looks at whether the program lives and its work is still wanted
READY = "ready"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done for every item."""

    name: str  # no other work has it
    pickled: bytes  # only the program needs what it imports


class Child:
    """The program as its worker sees it.

    Args:
        memory_gb: that an item may take beyond what the program takes once it has its first work.
    """

    def __init__(self, *, memory_gb: float) -> None:
        self.connection, theirs = Pipe()
        self.folder = tempfile.mkdtemp(
            prefix="histo_ssl-"
        )  # of its temporary files, which it may not live to remove
        command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), str(memory_gb)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells the program that the worker is gone
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "TMPDIR": self.folder,
            },
            start_new_session=True,  # so that it is ended with all that it has started
        )
        theirs.close()
        self.memory_gb = memory_gb
        self.has = ""  # name of the work that it was given last

    def done(self, work: Work, item: Any, processes: Processes, *, is_wanted: Callable[[], bool]) -> Any:
        """The result of an item; `Ended` where the program hung or crashed, which it does not outlive.

        Raises:
            Exception: whatever the work raised.
        """
        try:
            if self.has != work.name:
                self.connection.send(())
                self.connection.send_bytes(work.pickled)
                self._answer(START_S, is_wanted)
                self.has = work.name
            self.connection.send((item,))
            is_fine, result = self._answer(processes.timeout_s, is_wanted)
        except TimeoutError:
            self.end()
            return Ended(item, out_of_time(processes))
        except (EOFError, OSError):
            self.end(grace_s=DYING_S)
            return Ended(item, crashed(self.process.returncode))
        if not is_fine:
            raise result
        return result

    def end(self, *, grace_s: float = 0.0) -> None:
        """End the program and all that it has started, unless it ends by itself within some seconds."""
        if self.connection.closed:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own group: what it has started outlives a crash
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.connection.close()
        assert self.process.stdin is not None
        self.process.stdin.close()

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def _answer(self, timeout_s: float, is_wanted: Callable[[], bool]) -> Any:
        give_up_at = time.monotonic() + timeout_s
        while not self.connection.poll(LOOK_S):
            if not self.is_alive and not self.connection.poll():
                raise EOFError
            if time.monotonic() >= give_up_at or not is_wanted():
                raise TimeoutError
        return self.connection.recv()


class Children:
    """The programs of one worker process, as many as it has threads that need one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Child] = []

    @contextlib.contextmanager
    def one(self, *, memory_gb: float) -> Iterator[Child]:
        """A program that is nobody else's meanwhile; those that idle with other limits end."""
        with self._lock:
            fit = [child for child in self._idle if child.memory_gb == memory_gb and child.is_alive]
            unfit = [child for child in self._idle if child not in fit]
            self._idle = fit[1:]
        for other in unfit:
            other.end()
        child = fit[0] if fit else Child(memory_gb=memory_gb)
        try:
            yield child
        finally:
            with self._lock:
                self._idle.append(child)


def main() -> None:
    """Do the work that the worker sends, item after item."""
    connection, memory_gb = Connection(int(sys.argv[1])), float(sys.argv[2])
    threading.Thread(target=_end_with_worker, daemon=True).start()
    work: Callable[[Any], Any] | None = None
    with contextlib.suppress(EOFError):
        while True:
            message: tuple[Any, ...] = connection.recv()
            if message and work is not None:
                connection.send(_outcome(work, *message))
                continue
            is_first, work = work is None, connection.recv()
            if is_first:
                bound_memory(memory_gb)
            connection.send(READY)


def _outcome(work: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    try:
        return True, work(item)
    except Exception as error:  # noqa: BLE001 (handed on: the process that waits for the result raises it)
        return False, _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The error as another process can take it: in words where its class can't be pickled."""
    try:
        pickle.dumps(error)
        copy.copy(error)  # made anew of what is sent, as the other process will
    except Exception:  # noqa: BLE001 (whatever a class of another library does)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_worker() -> None:
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
