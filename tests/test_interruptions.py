"""A run that is killed and started again ends as the run that nobody disturbed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it looks at processes as Linux shows them")
def test_killed_runs_end_with_the_files_of_the_unbroken_one(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "interruptions.py")]
    asked = ["--kills", "1", "--ranks", "1", "--seed", "7", "--out", str(tmp_path / "kills.json")]
    killed = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
    assert killed.returncode == 0, killed.stdout + killed.stderr
    record = json.loads((tmp_path / "kills.json").read_text())
    assert record["kills"]
    assert record["failures"] == []
