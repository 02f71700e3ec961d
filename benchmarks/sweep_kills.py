"""Kills a sweep at random moments, starts it again until it is done, compares with one that nobody disturbed.

    python benchmarks/sweep_kills.py --kills 6 --seed 0 --out kills.json

The sweep is `method=dino,simclr backbone=vit_t,resnet18 task=knn,umap` on a few small slides: 8 jobs that
share 4 encoders. A kill is SIGKILL at a moment drawn uniformly from the duration of the undisturbed sweep, to
the whole process group or to the sweep's own process alone: then its job must end, too, within a minute. With
`--shells 2` every start is of two sweeps at the same time, and the undisturbed one as well. Linux only.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from interruptions import MINUTE_S, REPOSITORY, differences, outcome

AXES = ["method=dino,simclr", "backbone=vit_t,resnet18", "task=knn,umap"]
N_ENCODERS, N_CELLS = 4, 8
JOB = [
    "data={n_slides: 8, size_px: 800, region_um: 100}",
    "tiling.stride_px=32",
    "training={epochs: 1, batch_size: 16}",
    *("checkpoint_every=2", "log_every=1", "loader.n_workers=0", "n_processes=1", "trainer=cpu"),
    *("online=none", "logger=none"),
]
SWEEP_S = 3600.0  # no sweep may take longer
AGAIN = 0.5  # chance that a restart is killed as well
VICTIMS = ("group", "main")


@dataclass
class Tally:
    """Everything that is counted."""

    n_kills: int = 0
    n_starts: int = 0
    n_sweeps: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        """Note what should not have happened, and say it at once."""
        self.failures.append(f"sweep {self.n_sweeps}: {what}")
        print(self.failures[-1], flush=True)


class Shell:
    """One start of the sweep, in a session of its own; what it prints is in `<number>.log`."""

    def __init__(self, folder: Path, *, number: int) -> None:
        self.log = folder / f"{number}.log"
        command = [sys.executable, "-m", "histo_ssl", "-m", *AXES, *JOB, f"runs_dir={folder / 'runs'}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def is_running(self) -> bool:
        """Whether the sweep's own process lives."""
        return self.process.poll() is None

    def processes(self) -> list[int]:
        """All that live in its session, jobs of it and their workers too."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if words[0] != "Z" and int(words[3]) == self.process.pid:
                found.append(int(path.parent.name))
        return found


def wait_until_done(shells: Sequence[Shell], tally: Tally) -> None:
    """See all of them end with status 0."""
    for shell in shells:
        if shell.process.wait(SWEEP_S):
            tally.fail(f"status {shell.process.returncode}:\n{shell.log.read_text()[-3000:]}")


def check_counts(runs: Path, tally: Tally) -> None:
    """4 encoders, 8 results, and no training that was begun twice over."""
    trained = [path for path in (runs / "pretrain").iterdir() if path.is_dir()]
    scored = [path for path in (runs / "results").iterdir() if path.is_dir()]
    if (len(trained), len(scored)) != (N_ENCODERS, N_CELLS):
        tally.fail(f"{len(trained)} encoders, {len(scored)} results")
    for folder in trained:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        steps = [line["step"] for line in lines if "step" in line]
        if steps != sorted(set(steps)):
            tally.fail(f"{folder.name}: steps {steps}")


def strike(shells: Sequence[Shell], *, after_s: float, whom: str) -> bool:
    """Kill all shells at a moment; False if one was done before."""
    end = time.monotonic() + after_s
    while time.monotonic() < end:
        if not all(shell.is_running for shell in shells):
            return False
        time.sleep(0.01)
    for shell in shells:
        (os.killpg if whom == "group" else os.kill)(shell.process.pid, signal.SIGKILL)
    return True


def see_all_end(shells: Sequence[Shell], tally: Tally) -> None:
    """No process of a killed sweep lives on for a minute."""
    for shell in shells:
        shell.process.wait()
        end = time.monotonic() + MINUTE_S
        while (left := shell.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        if left:
            tally.fail(f"processes {left} outlive their sweep")
            for pid in left:
                os.kill(pid, signal.SIGKILL)


def run(*, n_kills: int, n_shells: int, seed: int, folder: Path) -> Tally:
    """Kill as often as asked; every sweep that survives is compared with the undisturbed one."""
    tally, began, runs = Tally(), time.monotonic(), folder / "runs"
    wait_until_done([Shell(folder, number=i) for i in range(n_shells)], tally)
    seconds = time.monotonic() - began
    check_counts(runs, tally)
    expected = without_pages(runs)
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    rng = np.random.default_rng(seed)
    while tally.n_kills < n_kills and not tally.failures:
        shutil.rmtree(runs)
        is_killed, n_before = True, tally.n_kills
        while is_killed:
            tally.n_starts += 1
            shells = [Shell(folder, number=i) for i in range(n_shells)]
            whom = str(rng.choice(VICTIMS))
            is_killed = (tally.n_kills == n_before or rng.random() < AGAIN) and strike(
                shells, after_s=rng.uniform(0, seconds), whom=whom
            )
            if is_killed:
                tally.n_kills += 1
                made = (
                    len(list(runs.glob("pretrain/*/done.json"))),
                    len(list(runs.glob("results/*/done.json"))),
                )
                print(f"kill {tally.n_kills}, {whom}: {made[0]} encoders, {made[1]} results", flush=True)
                see_all_end(shells, tally)
        wait_until_done(shells, tally)
        check_counts(runs, tally)
        for name in differences(without_pages(runs), expected):
            tally.fail(f"{name} differs from the undisturbed sweep's")
        tally.n_sweeps += 1
    return tally


def without_pages(runs: Path) -> dict[str, object]:
    """All that a sweep has made, but for what tells of its starts: `sweeps/`, and pages of the report."""
    made = outcome(runs)
    return {name: made[name] for name in made if not name.startswith(("sweeps/", "report/"))}


def main() -> None:
    """Run what the command line says; exit 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--shells", type=int, default=1)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of what was counted")
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryDirectory() as folder:
        tally = run(n_kills=asked.kills, n_shells=asked.shells, seed=asked.seed, folder=Path(folder))
    asked.out.write_text(
        json.dumps(asdict(tally) | {"seed": asked.seed, "shells": asked.shells}, indent=2) + "\n"
    )
    words = f"{tally.n_kills} kills, {tally.n_starts} starts, {tally.n_sweeps} sweeps done"
    print(f"{words}; {len(tally.failures)} failures or differences")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main()
