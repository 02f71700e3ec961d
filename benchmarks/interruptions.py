"""Kills a whole small run at random moments, starts it again until it is done, compares with an unbroken run.

    python benchmarks/interruptions.py --kills 50 --ranks 1 --seed 0 --out kills.json

Half of the kills come at a moment drawn uniformly from the duration of the unbroken run, half in a stage
drawn uniformly, at a moment drawn uniformly from its duration. A kill is SIGKILL to the whole process group,
to the main process alone, or, with two ranks, to rank 1 alone: then the rest must end within a minute.
Starts are forks of a process that has imported torch and no more, which then call the command line's `main`;
every fifth run starts `python -m histo_ssl` anew each time, and tiles in two processes.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from starts import LOOK_S, STAGES, Start

REPOSITORY = Path(__file__).resolve().parents[1]
JOB = [
    "method=dino",
    "backbone=timm",
    "backbone.name=test_vit",
    "method.head={n_outputs: 32, n_hidden: 32, n_bottleneck: 16}",
    "views.kinds.local.count=2",
    "data={n_slides: 4, n_patients: 4, n_sites: 1, size_px: 900, region_um: 100, seed: 0}",
    "tiling.stride_px=32",
    "training={epochs: 1, batch_size: 8}",
    "task.protocol.n_bootstrap=20",
    "checkpoint_every=5",
    "log_every=1",
    "logger=none",
]
MINUTE_S = 60.0
RUN_S = 600.0  # no start of this job may take longer
AGAIN = 0.3  # chance that a restart is killed as well
REAL_EVERY = 5  # runs


@dataclass
class Kill:
    """What was done to a start, and what came of it."""

    case: int
    whom: str  # group, main or rank1
    stage: str
    seconds: float  # from the start
    is_real: bool  # a fresh interpreter rather than a fork
    end_s: float = 0.0  # from then until the main process had ended


@dataclass
class Tally:
    """Everything that is counted."""

    victims: tuple[str, ...]
    kills: list[Kill] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    n_cases: int = 0
    n_starts: int = 0

    def fail(self, what: str) -> None:
        """Note what should not have happened, and say it at once."""
        self.failures.append(f"case {self.n_cases}: {what}")
        print(self.failures[-1], flush=True)


def unbroken(runs: Path, *, arguments: Sequence[str], is_real: bool) -> dict[str, float]:
    """Seconds that each stage of a run takes that nobody disturbs."""
    start = Start(runs, arguments=arguments, is_real=is_real)
    seconds = dict.fromkeys(STAGES, 0.0)
    last = start.began
    while start.is_running:
        now = time.monotonic()
        seconds[start.stage] += now - last
        last = now
        time.sleep(LOOK_S)
    if start.code:
        sys.exit(f"error: the unbroken run failed:\n{start.log.read_text()}")
    return seconds


def outcome(runs: Path) -> dict[str, Any]:
    """All that a run has made, without times: by file, what must be equal."""
    files = sorted(path for path in runs.rglob("*") if path.is_file() and path.suffix != ".lock")
    made: dict[str, Any] = {}
    for path in files:
        name = path.relative_to(runs).as_posix()
        made[name] = "exists"
        if path.name == "metrics.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            made[name] = [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]
        elif path.name == "status.csv":
            made[name] = _without(path, "seconds", "modified_ns")  # slides are drawn anew in each run
        elif path.suffix == ".h5":
            with h5py.File(path) as file:
                made[name] = {key: np.asarray(data).tobytes() for key, data in file.items()}
        elif path.suffix in (".safetensors", ".npy", ".png", ".tif", ".csv") or path.name == "results.json":
            made[name] = path.read_bytes()
    return made


def _without(path: Path, *columns: str) -> str:
    return pd.read_csv(path, dtype=str).drop(columns=list(columns)).to_csv()


def differences(made: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names of files that are missing, too many, or not equal."""
    return sorted(name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name))


def strike(start: Start, *, whom: str, rng: np.random.Generator, seconds: Mapping[str, float]) -> str | None:
    """Kill at a random moment; returns the stage hit, or None if the run was over before."""
    if rng.random() < 0.5 and whom != "rank1":
        moment = start.began + rng.uniform(0, sum(seconds.values()))
    else:
        wanted = "pretrain" if whom == "rank1" else rng.choice(STAGES[STAGES.index(start.stage) :])
        start.wait(lambda: not start.is_running or start.stage == wanted, at_most_s=RUN_S)
        moment = time.monotonic() + rng.uniform(0, seconds[wanted])
    start.wait(lambda: not start.is_running, at_most_s=moment - time.monotonic())
    if whom == "rank1":
        start.wait(lambda: not start.is_running or start.rank1() is not None, at_most_s=RUN_S)
    victim = start.rank1() if whom == "rank1" else start.pid
    if not start.is_running or victim is None:
        return None
    stage = start.stage
    (os.killpg if whom == "group" else os.kill)(victim, signal.SIGKILL)
    return stage


def until_done(
    job: Callable[[], Start], *, tally: Tally, rng: np.random.Generator, seconds: Mapping[str, float]
) -> None:
    """Start one run again and again, killing it at least once, until it is done."""
    starts = [job()]
    while len(starts) == 1 or rng.random() < AGAIN:
        whom = str(rng.choice(tally.victims))
        stage = strike(starts[-1], whom=whom, rng=rng, seconds=seconds)
        if stage is None:
            break
        tally.kills.append(Kill(tally.n_cases, whom, stage, starts[-1].seconds, starts[-1].is_real))
        _see_it_end(starts[-1], tally)
        starts.append(job())
    last = starts[-1]
    if not last.wait(lambda: not last.is_running, at_most_s=RUN_S):
        tally.fail(f"hangs in {last.stage}")
        os.killpg(last.pid, signal.SIGKILL)
    if last.code:
        tally.fail(f"the last start failed: {last.log.read_text()[-2000:]}")
    tally.n_starts += len(starts)
    _check_for_orphans(starts, tally)


def _see_it_end(start: Start, tally: Tally) -> None:
    """The main process ends within a minute of the kill, with a sentence if it was not the one killed."""
    kill, killed_at = tally.kills[-1], time.monotonic()
    if not start.wait(lambda: not start.is_running, at_most_s=MINUTE_S):
        tally.fail(f"still runs a minute after a kill of {kill.whom}")
        os.killpg(start.pid, signal.SIGKILL)
    kill.end_s = time.monotonic() - killed_at
    print(f"run {kill.case}: {kill.whom} killed in {kill.stage} after {kill.seconds:.1f} s", flush=True)
    # with status 0 rank 1 had nothing left to do but to end; what was made is compared like any other
    is_told = start.code == 1 and "error: rank 1" in start.log.read_text()
    if kill.whom == "rank1" and start.code != 0 and not is_told:
        tally.fail(f"status {start.code}, no sentence on rank 1: {start.log.read_text()[-2000:]}")


def _check_for_orphans(starts: Sequence[Start], tally: Tally) -> None:
    """No process of a start lives on for a minute."""
    for start in starts:
        if not start.wait(lambda start=start: not start.processes(), at_most_s=MINUTE_S):  # type: ignore[misc]
            tally.fail(f"processes {start.processes()} outlive their run")
            for pid in start.processes():
                os.kill(pid, signal.SIGKILL)


def run(*, n_kills: int, n_ranks: int, seed: int, folder: Path) -> Tally:
    """Kill as often as asked; every run that survives is compared with the unbroken one and then removed."""
    trainer = ["trainer=cpu"] if n_ranks == 1 else ["trainer=ddp_cpu"]
    tally = Tally(victims=("group", "main") if n_ranks == 1 else ("group", "main", "rank1"))
    arguments = [*JOB, *trainer, "loader.n_workers=0"]
    seconds, expected = {}, {}
    runs = folder / "runs"  # the same each time, since status.csv holds paths
    for is_real in (False, True):
        seconds[is_real] = unbroken(runs, arguments=[*arguments, "n_processes=1"], is_real=is_real)
        expected[is_real] = outcome(runs)
        shutil.rmtree(runs)
    for name in differences(expected[True], expected[False]):
        tally.fail(f"{name} differs between two unbroken runs")
    while len(tally.kills) < n_kills:
        rng = np.random.default_rng([seed, tally.n_cases])
        is_real = tally.n_cases % REAL_EVERY == 0
        settings = [f"loader.n_workers={rng.choice([0, 2])}", f"n_processes={1 + is_real}"]
        job = partial(Start, runs, arguments=[*JOB, *trainer, *settings], is_real=is_real)
        until_done(job, tally=tally, rng=rng, seconds=seconds[is_real])
        for name in differences(outcome(runs), expected[False]):
            tally.fail(f"{name} differs from the unbroken run's")
        shutil.rmtree(runs)
        tally.n_cases += 1
    return tally


def table(tally: Tally) -> str:
    """Kills by stage and victim, and what is asked of them, in lines of text."""
    hits = Counter((kill.stage, kill.whom) for kill in tally.kills)
    lines = ["".join(f"{word:>10}" for word in ("stage", *tally.victims))]
    for stage in STAGES:
        lines.append(
            "".join(f"{word:>10}" for word in (stage, *(hits[stage, whom] for whom in tally.victims)))
        )
    slowest = max((kill.end_s for kill in tally.kills), default=0.0)
    n_real = sum(kill.is_real for kill in tally.kills)
    lines.append(
        f"{len(tally.kills)} kills ({n_real} of fresh interpreters) in {tally.n_cases} runs, "
        f"{tally.n_starts} starts; {len(tally.failures)} failures or differences; "
        f"the main process ended at most {slowest:.1f} s after a kill"
    )
    return "\n".join([*lines, *tally.failures])


def main() -> None:
    """Run what the command line says; exit 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--ranks", type=int, choices=(1, 2), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all kills")
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    sys.path.insert(0, str(REPOSITORY))
    from histo_ssl import stages  # noqa: F401 (torch, Lightning and all else that forks share)

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = run(n_kills=asked.kills, n_ranks=asked.ranks, seed=asked.seed, folder=Path(folder))
    record = asdict(tally) | {"ranks": asked.ranks, "seed": asked.seed, "seconds": time.monotonic() - began}
    asked.out.write_text(json.dumps(record, indent=2) + "\n")
    print(table(tally))
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main()
