"""How far a long loop is: a bar on a terminal, a plain line every few seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0  # in a log
SECONDS_BETWEEN_NOTES = 0.5  # beside a bar


def on_terminal() -> bool:
    """Whether a person watches standard output."""
    return sys.stdout.isatty()


class Progress:
    """Counts the items of a loop; tells their rate, the share of time waiting for data, the time left."""

    def __init__(self, label: str, *, n_items: int, noun: str, n_before: int = 0) -> None:
        """Start counting at `n_before`, what an earlier run has done: it says nothing of this one's speed."""
        self.label, self.n_items, self.noun = label, n_items, noun
        self.n_done = self._n_before = n_before
        self.data_s = 0.0
        self._started = self._last_line = time.monotonic()
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self._bar = Bar(*columns, disable=not on_terminal())
        self._task = self._bar.add_task(label, total=n_items, completed=n_before)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, n_items: int, *, data_s: float = 0.0, note: Callable[[], str] | None = None) -> None:
        """Count items that were done.

        Args:
            n_items: how many.
            data_s: seconds that were spent waiting for their data.
            note: what else to say of them; called only when something is shown, so it may be slow.
        """
        self.n_done += n_items
        self.data_s += data_s
        self._bar.advance(self._task, n_items)
        now = time.monotonic()
        if now - self._last_line < (SECONDS_BETWEEN_LINES if self._bar.disable else SECONDS_BETWEEN_NOTES):
            return
        self._last_line = now
        said = note() if note else ""
        if self._bar.disable:
            log.info("%s%s", self.line(), f", {said}" if said else "")
        else:
            self._bar.update(self._task, description=f"{self.label} {said}".rstrip())

    def line(self) -> str:
        """Such as "embed: 640 of 2,710 tiles, 212/s, 3 % of it waiting for data, 10 s left"."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (self.n_done - self._n_before) / elapsed
        left = f"{(self.n_items - self.n_done) / rate:.0f} s left" if rate else "time left unknown"
        waiting = f", {100 * self.data_s / elapsed:.0f} % of it waiting for data" if self.data_s else ""
        return f"{self.label}: {self.n_done:,} of {self.n_items:,} {self.noun}, {rate:.3g}/s{waiting}, {left}"
