"""One start of a run in a process of its own, to be looked at and killed from outside. Linux only."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

# Stage -> what is there when it is done; "start" ends with the first line that the run prints.
DONE = {
    "draw": ("data/*/done.json", 1),
    "tile": ("tiles/*/done.json", 1),
    "pretrain": ("pretrain/*/done.json", 1),
    "embed": ("embeddings/*/done.json", 3),
    "evaluate": ("results/*/done.json", 1),
}
STAGES = ("start", *DONE, "report")
LOOK_S = 0.005
PROCESSES = Path("/proc")


class Start:
    """One start of the job, in a session of its own."""

    def __init__(self, runs: Path, *, arguments: Sequence[str], is_real: bool) -> None:
        """Start it; what it prints is in `<runs>.log`.

        Args:
            runs: where it writes.
            arguments: of the command line.
            is_real: start `python -m histo_ssl` rather than fork this process.
        """
        self.runs, self.log, self.is_real = runs, runs.with_suffix(".log"), is_real
        self.log.unlink(missing_ok=True)
        self.began = time.monotonic()
        process = get_context("fork").Process(
            target=_be_the_job, args=([*arguments, f"runs_dir={runs}"], self.log, is_real)
        )
        process.start()
        assert process.pid is not None
        self.process, self.pid = process, process.pid
        self.wait(self.log.exists, at_most_s=10.0)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    @property
    def stage(self) -> str:
        """The stage that it is in."""
        if not self.log.stat().st_size:
            return "start"
        unfinished = (name for name, (files, n) in DONE.items() if len(list(self.runs.glob(files))) < n)
        return next(unfinished, "report")

    @property
    def is_running(self) -> bool:
        """Whether the main process lives."""
        return self.process.is_alive()

    @property
    def code(self) -> int | None:
        """Exit status of the main process, once it has one."""
        return self.process.exitcode

    def processes(self) -> list[int]:
        """Those of its session that live."""
        found = ((int(path.name), _facts(path)) for path in PROCESSES.glob("[0-9]*"))
        return [pid for pid, facts in found if facts and facts[3] == str(self.pid) and facts[0] != "Z"]

    def rank1(self) -> int | None:
        """The process that its rank 0 has started, if it has yet."""
        children = (pid for pid in self.processes() if _facts(PROCESSES / str(pid))[1:2] == [str(self.pid)])
        return next((pid for pid in children if b"LOCAL_RANK=1\0" in _environment(pid)), None)

    def wait(self, until: Callable[[], bool], *, at_most_s: float) -> bool:
        """Whether it came true in time."""
        give_up_at = time.monotonic() + at_most_s
        while not until() and time.monotonic() < give_up_at:
            time.sleep(LOOK_S)
        return until()


def _facts(process: Path) -> list[str]:
    """State, parent, group, session; nothing if it has gone."""
    try:
        return (process / "stat").read_text().rpartition(") ")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _environment(pid: int) -> bytes:
    try:
        return (PROCESSES / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _be_the_job(arguments: list[str], log: Path, is_real: bool) -> None:
    """Turn this fork into the job."""
    os.setsid()
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    if is_real:
        os.execv(sys.executable, [sys.executable, "-m", "histo_ssl", *arguments])
    from histo_ssl import cli

    sys.argv = ["histo_ssl", *arguments]
    cli.main()
