"""Child processes: what hangs, crashes or grows costs its own result, and nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pebble import ProcessPool
from pebble.pool.base_pool import PoolStatus
from pebble.pool.process import PoolManager

from histo_ssl.executors.base import Ended, Processes
from histo_ssl.executors.processes import GB, PRELOADED, Local, each, forked_by_server, start_server

PATIENT = Processes(n=2, timeout_s=60, memory_gb=1)


def misbehaves(item: str) -> str:
    """What its name says, in the process that it is called in."""
    if item == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "exits":
        os._exit(7)
    if item == "hangs":
        time.sleep(3600)
    if item == "grows":
        try:
            np.ones(2 * GB, np.uint8)
        except MemoryError:
            return "refused"
    if item == "raises":
        raise KeyError(item)
    return f"{item} in another process" if multiprocessing_child() else item


def multiprocessing_child() -> bool:
    import multiprocessing

    return multiprocessing.parent_process() is not None


@pytest.mark.slow
def test_one_that_crashes_hangs_or_grows_costs_its_own_result_and_no_other() -> None:
    items = ["a", "crashes", "b", "hangs", "c", "grows", "exits", "d"]
    started = time.monotonic()
    results = list(each(misbehaves, items, Processes(n=2, timeout_s=2, memory_gb=1)))
    assert time.monotonic() - started < 30
    fine = {i: results[i] for i in (0, 2, 4, 7)}
    assert fine == {i: f"{items[i]} in another process" for i in fine}
    assert results[1] == Ended("crashes", "the reader crashed (exit status -11)")
    assert results[3] == Ended("hangs", "the reader did not finish within slide_timeout_s=2")
    assert results[5] == "refused"  # 2 GB asked, 1 GB allowed
    assert results[6] == Ended("exits", "the reader crashed (exit status 7)")


def recovers(path: Path) -> int:
    """The number of tries, the first of which ends its process."""
    n = len(list(path.parent.glob(f"{path.name}.*")))
    Path(f"{path}.{n}").touch()
    if n == 0 or path.name == "never":
        os._exit(7)
    return n + 1


@pytest.mark.slow
def test_one_whose_process_crashed_is_tried_again_as_often_as_asked(tmp_path: Path) -> None:
    items = [tmp_path / "a", tmp_path / "never", tmp_path / "b"]
    results = list(Local(retries=2).each(recovers, items, PATIENT, folder=tmp_path))
    assert results == [(0, 2), (1, Ended(items[1], "the reader crashed (exit status 7)")), (2, 2)]
    assert len(list(tmp_path.glob("never.*"))) == 3


@pytest.mark.slow
def test_an_error_of_ours_ends_the_loop_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(KeyError, match="raises"):
        list(each(misbehaves, ["raises", *["hangs"] * 20], PATIENT))
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_child_that_cannot_live_with_its_memory_says_which_value_to_raise() -> None:
    with pytest.raises(ValueError, match=r"data\.max_memory_gb=0: .*raise it"):
        list(each(misbehaves, ["a"], Processes(n=1, timeout_s=60, memory_gb=0)))


@pytest.mark.parametrize("is_before", [False, True])
def test_a_pool_that_breaks_before_or_after_it_is_given_work_is_an_error(
    monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    real = ProcessPool.schedule

    def slow(self: ProcessPool, *args: Any, **words: Any) -> Any:
        assert self.active  # begins to work
        monkeypatch.setattr(PoolManager, "schedule", lambda self, task: time.sleep(0.1))  # looks at no task
        self._context.status = PoolStatus.ERROR if is_before else self._context.status
        task = real(self, *args, **words)
        self._context.status = PoolStatus.ERROR
        return task

    monkeypatch.setattr(ProcessPool, "schedule", slow)
    with pytest.raises(ValueError, match="the processes that read slides ended before they could begin"):
        list(each(misbehaves, ["a"], PATIENT))


def test_without_processes_all_is_done_in_this_one() -> None:
    assert list(each(misbehaves, ["a", "b"], Processes(n=0, timeout_s=0, memory_gb=0))) == ["a", "b"]


@pytest.mark.slow
def test_no_child_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            import os, pathlib, sys, time
            from histo_ssl.executors.base import Processes
            from histo_ssl.executors.processes import each

            def hang(folder):
                (pathlib.Path(folder) / f"{os.getpid()}.pid").touch()
                time.sleep(3600)

            if __name__ == "__main__":
                list(each(hang, [sys.argv[1]] * 2, Processes(n=2, timeout_s=600, memory_gb=1)))
        """)
    )
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)]) as parent:
        children = _until(lambda: len(pids := list(tmp_path.glob("*.pid"))) == 2 and pids, seconds=60)
        parent.kill()
    numbers = [int(path.stem) for path in children]
    assert _until(lambda: not any(_is_alive(number) for number in numbers), seconds=10)


def _until(condition, *, seconds: float):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_imported(name: str) -> bool:
    return name in sys.modules


def test_children_of_the_server_find_all_of_slides_imported_and_a_second_start_starts_none() -> None:
    start_server()
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    start_server()
    assert forkserver._forkserver._forkserver_pid == pid  # type: ignore[attr-defined]
    with ProcessPoolExecutor(1, mp_context=forked_by_server()) as pool:
        assert pool.submit(os.getppid).result() == pid
        assert pool.submit(is_imported, PRELOADED).result()
        assert not pool.submit(is_imported, "torch").result()
