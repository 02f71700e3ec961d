"""Part `start`: seconds from the command to the help, and to the first training step of the demonstration."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from contests import CannotRunError, Ratio, Seconds, processor_s, within

N_HELPS, N_DEMOS, GIVE_UP_S, LOOK_S = 5, 2, 300.0, 0.02
COMMAND = (sys.executable, "-m", "histo_ssl")
DEMO = ("method=dino", "backbone=vit_t", "logger=none")


def measure(device: str) -> list[Ratio]:
    """Both, as shares of what they may take on the wall."""
    if device != "cpu":
        raise CannotRunError("`make bench` measures it")
    helps = [_help() for _ in range(N_HELPS + 1)][1:]
    demos = [_first_step() for _ in range(N_DEMOS)]
    return [
        _row(helps, "--help", limit_s=1.5),
        _row(demos, "first step of the demonstration", limit_s=15.0),
    ]


def _row(seconds: list[Seconds], case: str, *, limit_s: float) -> Ratio:
    return within(
        seconds,
        part="start",
        case=case,
        limit_ms=1e3 * limit_s,
        limit=f"{limit_s:g} s",
        item="start",
        clock="wall",
    )


def _help() -> Seconds:
    return _taken(lambda: subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL))


def _first_step() -> Seconds:
    """From the start to the line of metrics of step 1, on an empty folder of runs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*COMMAND, *DEMO, f"runs_dir={folder}/runs", "log_every=1"]
        log = Path(folder) / "log"

        def run() -> None:
            with log.open("w") as output:
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            try:
                _wait_for_step(Path(folder) / "runs", process, log)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

        return _taken(run)


def _wait_for_step(runs: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up_at = time.monotonic() + GIVE_UP_S
    while time.monotonic() < give_up_at:
        for metrics in runs.glob("pretrain/*/metrics.jsonl"):
            lines = metrics.read_text().splitlines()
            if lines and json.loads(lines[0])["step"] >= 1:
                return
        if process.poll() is not None:
            raise AssertionError(f"the demonstration ended before its first step: {log.read_text()[-2000:]}")
        time.sleep(LOOK_S)
    raise CannotRunError(f"the demonstration made no step in {GIVE_UP_S:.0f} s")


def _taken(work: Callable[[], object]) -> Seconds:
    processor, wall = processor_s(), time.perf_counter()
    work()
    return processor_s() - processor, time.perf_counter() - wall
