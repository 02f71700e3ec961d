"""What a sweep came to: each job leaves a few facts in its folder, and the sweep ends with a table of them.

A job runs in a process of its own, maybe on another machine. It says what it came to in a file that the
environment variable `OUTCOME` names; the process that started it adds how long it took and how it ended.
"""

import contextlib
import io
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from histo_ssl.folders.artifacts import read_json, write_json

OUTCOME = "HISTO_SSL_OUTCOME"
SWEEP = "HISTO_SSL_SWEEP"  # name of the sweep, by which a dashboard groups its jobs
FILE = "outcome.json"  # in the folder of a job of a sweep
SAID = "said.json"  # beside it: what the job itself says
TABLE_COLUMNS = 110
MINUTE_S = 60


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job of a sweep came to."""

    number: int
    overrides: list[str]
    seconds: float
    reason: str  # why it failed, "" where it did not
    results: list[str] = field(default_factory=list)  # folders, one for each task

    def primary(self) -> list[dict[str, Any]]:
        """The scores that stand for its tasks: task, protocol, metric, value, low, high."""
        found = [primary_score(Path(folder)) for folder in self.results]
        return [score for score in found if score]


class Sweep(Callback):
    """Hydra calls it when a sweep begins; `told` prints the table when it is over."""

    folders: ClassVar[list[Path]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002 (Hydra's own)
        """Remember where the sweep's jobs leave what they came to."""
        self.folders.append(Path(str(config.hydra.sweep.dir)))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Prints the table of the sweeps that end in this block, however they end."""
    is_stopped = True
    try:
        yield
        is_stopped = False
    except Exception:  # a job failed; the others were run
        is_stopped = False
        raise
    finally:
        for folder in Sweep.folders:
            outcomes = read_outcomes(folder)
            if outcomes:
                print(table_text(outcomes, is_stopped=is_stopped))  # noqa: T201 (the table is what a sweep is for)
        Sweep.folders.clear()


def say(**facts: Any) -> None:
    """Leave facts for the process that started this job; the first to say something is believed.

    Outside of a sweep, nothing is written.
    """
    path = os.environ.get(OUTCOME)
    if path and not Path(path).exists():
        write_json(Path(path), facts)


def primary_score(result: Path) -> dict[str, Any] | None:
    """The encoder's score that stands for a result's task; None of a task that has none."""
    try:
        content = read_json(result / "results.json")
    except (FileNotFoundError, ValueError):
        return None
    for score in content["scores"]:
        key = (score["subject"], score["protocol"], score["metric"], score["label"])
        if key == ("encoder", *content["primary"], "") and score["value"] is not None:
            names = ("protocol", "metric", "value", "low", "high")
            return {"task": content["task"], **{name: score[name] for name in names}}
    return None


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, str]]:
    """Variables for the process of a job of a sweep; what it came to is written when the block ends.

    The block sets "status" among them to how the process ended, as a text.
    """
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    said, started = folder / SAID, time.monotonic()
    said.unlink(missing_ok=True)  # of a job that was started again in its place
    variables = {OUTCOME: str(said), SWEEP: os.environ.get(SWEEP) or Path(str(job.sweep.dir)).name}
    try:
        yield variables
    finally:
        facts = read_json(said) if said.exists() else {}
        status = variables.pop("status", "")
        reason = facts.get("reason") or (how_it_ended(int(status)) if status else "nobody saw how it ended")
        outcome = Outcome(
            number=int(job.job.num),
            overrides=list(job.overrides.task),
            seconds=round(time.monotonic() - started, 1),
            reason=reason,
            results=facts.get("results", []),
        )
        write_json(folder / FILE, asdict(outcome))


def how_it_ended(status: int) -> str:
    """Why a job failed that could say nothing, by its exit status, which is minus the signal that killed it.

    >>> how_it_ended(0), how_it_ended(3)
    ('', 'ended with status 3')
    """
    if status == -signal.SIGKILL:
        return (
            "killed by SIGKILL, as a system does that has no memory left; the same command goes on from here"
        )
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; the same command goes on from here"
    return f"ended with status {status}" if status else ""


def score_of(folder: Path) -> float | None:
    """The score that stands for the first task of a job, by which jobs are chosen; None where it has none."""
    results = Outcome(**read_json(folder / FILE)).results
    score = primary_score(Path(results[0])) if results else None
    return float(score["value"]) if score else None


def read_outcomes(sweep: Path) -> list[Outcome]:
    """Of the jobs of a sweep that have ended, by their numbers."""
    found = [Outcome(**read_json(path)) for path in sweep.glob(f"*/{FILE}")]
    return sorted(found, key=lambda outcome: outcome.number)


def differing(outcomes: Iterable[Outcome]) -> list[list[str]]:
    """Of each job's arguments those that not all jobs have.

    >>> jobs = [Outcome(number=i, overrides=["a=1", f"b={i}"], seconds=0, reason="") for i in (0, 1)]
    >>> differing(jobs)
    [['b=0'], ['b=1']]
    """
    of_jobs = [outcome.overrides for outcome in outcomes]
    shared = set.intersection(*map(set, of_jobs)) if len(of_jobs) > 1 else set()
    return [[word for word in words if word not in shared] for words in of_jobs]


def table_text(outcomes: list[Outcome], *, is_stopped: bool = False) -> str:
    """The table, a line per job that has ended, and the number of those that failed, with why.

    Args:
        outcomes: of the jobs.
        is_stopped: whether the sweep was told to end, so that there may be jobs that it had not come to.
    """
    from rich import box  # noqa: PLC0415 (not before a sweep's end)
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("job", "", "score", "95 % interval", "time"):
        table.add_column(name, justify="left" if name == "" else "right")
    failed = [outcome for outcome in outcomes if outcome.reason]
    for outcome, words in zip(outcomes, differing(outcomes), strict=True):
        scores = outcome.primary()
        # Of several tasks each is named.
        tasks = [f"{score['task']} " if len(outcome.results) > 1 else "" for score in scores]
        values = [f"{task}{score['value']:.3f}" for task, score in zip(tasks, scores, strict=True)]
        shown = ["failed"] if outcome.reason else values
        bounds = [f"[{s['low']:.3f}, {s['high']:.3f}]" for s in scores if s["low"] is not None]
        cells = (" ".join(words), "\n".join(shown), "\n".join(bounds), duration(outcome.seconds))
        table.add_row(str(outcome.number), *cells)
    stream = io.StringIO()
    console = Console(file=stream, width=TABLE_COLUMNS, color_system=None, markup=False, emoji=False)
    jobs = f"{len(outcomes)} job{'' if len(outcomes) == 1 else 's'}"
    told = f"sweep stopped; of the {jobs} begun" if is_stopped else f"sweep: {jobs}"
    console.print(f"{told}, {len(failed)} failed", highlight=False)
    console.print(table)
    for outcome in failed:
        console.print(f"job {outcome.number} failed: {outcome.reason}", highlight=False)
    return stream.getvalue()


def duration(seconds: float) -> str:
    """In minutes where there are any.

    >>> duration(7.2), duration(125)
    ('7 s', '2 min')
    """
    return f"{seconds:.0f} s" if seconds < 2 * MINUTE_S else f"{seconds / MINUTE_S:.0f} min"
