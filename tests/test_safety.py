"""What surviving costs can be measured on the configuration as it is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_round_of_the_benchmark_tells_the_share_of_a_step_that_goes_into_the_checks(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "safety.py"), "1"]
    paths = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}
    measured = subprocess.run(command, env=paths, capture_output=True, text=True, check=False)
    assert measured.returncode == 0, measured.stderr
    shares = [float(share) for share in re.findall(r"(\d+\.\d+) of a step", measured.stdout)]
    assert len(shares) == 2
    assert all(0 < share < 0.02 for share in shares)
