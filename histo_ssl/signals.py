"""How the program ends when it is told to: in order, with one line, by the signal's own exit status.

Only the standard library is imported here, so that a signal is answered from the first moment on.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

HANDLED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
)  # Ctrl-C; an end; what SLURM sends before the time is up
SHELL_BASE = 128  # a shell reports a death by signal n as 128 + n

Handler = Callable[[int, FrameType | None], Any]


class Stopped(BaseException):
    """The program was told to end by a signal, and what is written so far is sound. Its text is one line."""

    def __init__(self, signum: int, *, where: str = "") -> None:
        """Say at which place of its work, such as " at step 12", the program stopped."""
        super().__init__(
            f"stopped by {signal.Signals(signum).name}{where}; the same command goes on from here"
        )
        self.status = exit_status(signum)


def exit_status(signum: int) -> int:
    """Status of a program that a signal ended: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1 on Linux."""
    return SHELL_BASE + signum


def ended_by(status: int) -> int:
    """The signal that ended a process, 0 where none did, by the status that `subprocess` tells of it.

    One that was not yet ready to answer has the signal's negative: Python sets no handlers before it has
    imported.

    >>> ended_by(143), ended_by(-15), ended_by(1)
    (15, 15, 0)
    """
    return -status if status < 0 else max(0, status - SHELL_BASE)


@contextlib.contextmanager
def answered_by(handler: Handler) -> Iterator[None]:
    """`handler` answers the signals that end a program while the block runs, the former ones after it.

    In a thread other than the main one Python gives no say over signals: there the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {signum: signal.signal(signum, handler) for signum in HANDLED}
    try:
        yield
    finally:
        for signum, was in former.items():
            signal.signal(signum, was)


def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a handler's arguments)
    """Unwind whatever runs, as Ctrl-C does.

    Raises:
        Stopped: always.
    """
    raise Stopped(signum)
