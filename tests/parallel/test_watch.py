"""A process notices within seconds that another has ended, whatever call it is in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from histo_ssl.parallel.watch import Watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process descriptors are Linux's")

SETTINGS = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
# A rank that is in a call that does not return, and watches a process that ends.
STUCK = """
import subprocess, sys, time
from histo_ssl.parallel import watch
watch.GRACE_S = 0.2
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
with watch.Watch({3: other.pid}):
    time.sleep(60)
"""


@pytest.fixture
def others() -> list[subprocess.Popen[bytes]]:
    """Two processes that sleep for a minute."""
    started = [subprocess.Popen(SLEEP) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_an_error_is_explained_by_the_rank_that_has_ended(others: list[subprocess.Popen[bytes]]) -> None:
    cut = RuntimeError("Connection closed by peer")
    with Watch({1: others[0].pid, 2: others[1].pid}) as watch:
        others[1].kill()
        with pytest.raises(ConnectionError, match=rf"rank 2 \(process {others[1].pid}\) has ended") as raised:
            watch.explain(cut)
    assert raised.value.__cause__ is cut


def test_a_rank_that_had_ended_before_is_noticed(others: list[subprocess.Popen[bytes]]) -> None:
    others[0].kill()
    others[0].wait()
    with Watch({1: others[0].pid}) as watch, pytest.raises(ConnectionError, match="rank 1"):
        watch.explain(RuntimeError())


def test_an_error_of_another_reason_is_left_as_it_is(others: list[subprocess.Popen[bytes]]) -> None:
    with Watch({1: others[0].pid}) as watch:
        watch.explain(RuntimeError("out of memory"))


def test_a_process_may_end_once_the_watch_is_over(others: list[subprocess.Popen[bytes]]) -> None:
    with Watch({1: others[0].pid}) as watch:
        watch.end()
        others[0].kill()
        watch.explain(RuntimeError())


def test_a_process_that_is_stuck_ends_with_a_sentence() -> None:
    started = time.monotonic()
    stuck = subprocess.run(
        [sys.executable, "-c", STUCK], env=SETTINGS, capture_output=True, text=True, check=False
    )
    assert stuck.returncode == 1
    assert stuck.stderr.startswith("error: rank 3 (process ")
    assert stuck.stderr.count("\n") == 1
    assert time.monotonic() - started < 20  # of the minute that the call takes


# A parent that starts a process of a pool and is killed while that waits for work.
POOL = """
import os, signal, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from histo_ssl.parallel.watch import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_of_a_pool_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    killed = subprocess.run(
        [sys.executable, str(tmp_path / "pool.py")],
        stdout=subprocess.PIPE,
        env=SETTINGS,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    child, give_up_at = Path(f"/proc/{int(killed.stdout)}"), time.monotonic() + 10
    while child.exists() and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert not child.exists()
