"""Damaged slides: a few of the thousands that `benchmarks/mutants.py` makes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).resolve().parents[2] / "benchmarks" / "mutants.py"


def figures(*options: str) -> dict[str, object]:
    """What the command prints; it fails on a bug, a crash, a hang, or a wrong pixel of intact bytes."""
    done = subprocess.run(
        [sys.executable, str(COMMAND), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_mutants_never_crash_hang_or_show_other_pixels_of_bytes_that_are_intact() -> None:
    found = figures("--n", "60", "--first", "20000")
    assert found["mutants"] == 60
    assert (found["bugs"], found["crashes"], found["hangs"]) == ([], [], [])
    assert found["untouched and yet different"] == []
    tiles = found["tiles"]
    assert isinstance(tiles, dict)
    assert min(tiles["equal"], tiles["refused"]) > 100  # both happen, or nothing was damaged
    assert found["peak_mb"] < 600  # at rest a process takes about 180
