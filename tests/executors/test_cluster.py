"""Work on a cluster: limits, retries and words of one machine, and a sentence where there is none to work."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from histo_ssl.executors import cluster as cluster_module
from histo_ssl.executors.base import Ended, Processes
from histo_ssl.executors.cluster import Cluster
from histo_ssl.folders.disk import NotWrittenError


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a scheduler with two workers of one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


def limits(*, timeout_s: float = 60) -> Processes:
    return Processes(n=0, timeout_s=timeout_s, memory_gb=1)


def workers(address: str | None, *, retries: int = 0, wait_s: float = 20) -> Cluster:
    return Cluster(address=address, retries=retries, wait_s=wait_s, embed_timeout_s=60)


def misbehaves(item: tuple[str, Path]) -> str:
    """What its name says; a file of the folder counts the tries."""
    name, folder = item
    n_before = len(list(folder.glob(f"{name}.*")))
    (folder / f"{name}.{n_before}").touch()
    if name == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hangs":
        subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(60) # {folder}"])
        time.sleep(3600)
    if name == "grows":
        try:
            bytearray(2 * 2**30)
        except MemoryError:
            return "refused"
    if name == "recovers" and n_before == 0:
        os._exit(7)
    if name == "full":
        raise NotWrittenError(28, "No space left on device", "somewhere")
    return name


def test_one_that_crashes_hangs_or_grows_costs_its_own_result_and_is_tried_as_often_as_asked(
    address: str, tmp_path: Path
) -> None:
    items = [(name, tmp_path) for name in ("a", "crashes", "b", "hangs", "grows", "recovers", "c")]
    found = workers(address, retries=1).each(misbehaves, items, limits(timeout_s=1), folder=tmp_path)
    results = dict(found)
    assert [results[i] for i in (0, 2, 4, 5, 6)] == ["a", "b", "refused", "recovers", "c"]
    assert results[1] == Ended(items[1], "the reader crashed (exit status -11)")
    assert results[3] == Ended(items[3], "the reader did not finish within slide_timeout_s=1")
    tries = {name: len(list(tmp_path.glob(f"{name}.*"))) for name, _ in items}
    assert tries == {"a": 1, "crashes": 2, "b": 1, "hangs": 2, "grows": 1, "recovers": 2, "c": 1}
    assert _running(str(tmp_path)) == []  # what a hung one had started is ended with it


def test_an_error_of_ours_is_raised_here_as_it_is(address: str, tmp_path: Path) -> None:
    with pytest.raises(NotWrittenError, match="somewhere: not written, the disk is full"):
        list(workers(address).each(misbehaves, [("full", tmp_path)], limits(), folder=tmp_path))


def test_work_that_nobody_waits_for_any_more_ends(address: str, tmp_path: Path) -> None:
    results = workers(address).each(
        misbehaves, [("hangs", tmp_path), ("a", tmp_path)], limits(), folder=tmp_path
    )
    assert next(results) == (1, "a")
    _until(lambda: _running(str(tmp_path)))
    results.close()
    _until(lambda: not _running(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_cluster_that_is_not_there_is_told_of_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_S", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(ValueError, match=f"executor.address={address}: no Dask scheduler answers there"):
            list(workers(address).each(str, [1], limits(), folder=tmp_path))


@pytest.mark.parametrize("address", ["127.0.0.1", "tcp://host", "http://127.0.0.1:8787", "nonsense://x"])
def test_no_client_is_made_for_what_is_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("distributed.Client", lambda *_, **__: pytest.fail("it would hang as it ends"))
    with pytest.raises(ValueError, match=f"executor.address={address}: no Dask scheduler answers there"):
        list(workers(address).each(str, [1], limits(), folder=tmp_path))


def test_a_cluster_without_workers_is_waited_for_and_then_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster_module, "LOOK_S", 0.2)
    caplog.set_level(logging.INFO)
    with LocalCluster(n_workers=0, dashboard_address=":0") as empty:
        started = time.monotonic()
        with pytest.raises(ValueError, match=r"no worker for executor\.wait_s=1 s; start some"):
            list(workers(empty.scheduler_address, wait_s=1).each(str, [1], limits(), folder=tmp_path))
        assert 1 <= time.monotonic() - started < 10
        assert f"{empty.scheduler_address} has 0 workers" in caplog.text


def test_a_scheduler_that_goes_away_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "LOOK_S", 0.2)
    where = ["--scheduler-file", str(tmp_path / "scheduler.json")]
    with (
        _program("scheduler", "--port", "0", "--dashboard-address", ":0", *where) as scheduler,
        _program("worker", "--nthreads", "1", "--dashboard-address", ":0", *where) as worker,
    ):
        _until((tmp_path / "scheduler.json").exists)
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        items = [("a", tmp_path), ("hangs", tmp_path)]
        results = workers(address).each(misbehaves, items, limits(), folder=tmp_path)
        assert next(results) == (0, "a")
        scheduler.kill()
        with pytest.raises(ValueError, match="Dask's scheduler went away"):
            next(results)
        assert _running(f"time.sleep(60) # {tmp_path}")
        worker.kill()
    _until(lambda: not _running(f"time.sleep(60) # {tmp_path}"))  # no program outlives its worker


def _program(name: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """A program of Dask's, as a user starts it."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def test_workers_of_another_version_or_that_do_not_see_the_folder_are_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "code_digest", lambda: "of yesterday")
    with pytest.raises(ValueError, match="another version of histo-ssl"):
        list(workers(address).each(str, [1], limits(), folder=tmp_path))
    monkeypatch.undo()
    for written, words in (
        (lambda path, data: None, f"does not see {tmp_path}: runs_dir has to lie on a disk"),
        (lambda path, data: path.write_text("of somebody else"), "not what was written there"),
    ):
        monkeypatch.setattr(Path, "write_bytes", written)
        with pytest.raises(ValueError, match=words):
            list(workers(address).each(str, [1], limits(), folder=tmp_path))


def test_without_the_library_or_an_address_a_sentence_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"executor\.address is missing: .*tcp://host:8786"):
        workers(None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'histo-ssl\[dask\]'"):
        workers("tcp://host:8786")


def _running(word: str) -> list[int]:
    """Processes that have a word in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes().decode(errors="replace") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _until(condition, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
