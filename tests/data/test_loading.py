"""The processes that read tiles end with a sentence, and only at their parent's word."""

import gc
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from histo_ssl.data.loading import Loading, TileLoader, start_tracker

START_METHODS = ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"]


class Numbers(Dataset[Any]):
    """Batches of a number; one of them does something else first."""

    def __init__(self, *, odd: int = -1, action: Callable[[], None] | None = None) -> None:
        self.odd, self.action = odd, action

    def __getitems__(self, wanted: list[int]) -> torch.Tensor:
        if self.odd in wanted:
            assert self.action is not None
            self.action()
        return torch.tensor(wanted)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000.0)


def tear() -> None:
    raise ValueError("a.svs: cannot be read: torn") from OSError("torn")


def vanish() -> None:
    raise FileNotFoundError("a.svs: no such file")


def _batches(numbers: Numbers, loading: Loading) -> Iterator[Any]:
    return iter(TileLoader(numbers, [[i] for i in range(10)], loading))


def _loading(start_method: str = "fork", *, n_workers: int = 2, timeout_s: int = 60) -> Loading:
    return Loading(n_workers=n_workers, start_method=start_method, timeout_s=timeout_s)


def _kill(pid: int, signum: int) -> None:
    subprocess.run(["kill", f"-{signum}", str(pid)], check=True)  # another process than the parent


def _workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("start_method", START_METHODS)
def test_workers_outlive_the_signals_that_others_send(start_method: str) -> None:
    batches = _batches(Numbers(), _loading(start_method))
    first = [int(next(batches)) for _ in range(2)]  # one of each worker: both have started
    for pid in _workers():
        for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            _kill(pid, signum)
    assert [*first, *(int(batch) for batch in batches)] == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_killed_worker_ends_the_reading_with_a_sentence(start_method: str) -> None:
    batches = _batches(Numbers(odd=4, action=die), _loading(start_method, timeout_s=600))
    assert next(batches).tolist() == [0]
    started = time.monotonic()
    with pytest.raises(ChildProcessError, match=r"was killed .*loader\.n_workers=1; the same comm") as error:
        list(batches)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_hung_worker_ends_the_reading_with_a_sentence_and_is_ended(
    monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    monkeypatch.setattr("histo_ssl.data.loading.POLL_S", 1.0)
    gc.collect()  # other tests' tracebacks hold iterators
    before = set(_workers())
    loader = TileLoader(Numbers(odd=4, action=hang), [[i] for i in range(10)], _loading(start_method))
    batches = iter(loader)
    # workers may need longer to start than they may take for a batch
    assert [next(batches).tolist() for _ in range(2)] == [[0], [1]]
    loader.loading = _loading(start_method, timeout_s=2)
    workers, started = set(_workers()) - before, time.monotonic()
    assert len(workers) == 2
    with pytest.raises(TimeoutError, match=r"within loader\.timeout_s=2 s: .*same command") as error:
        list(batches)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 30
    del error, batches
    gc.collect()  # the error's traceback holds the iterator
    give_up_at = time.monotonic() + 30
    while any(_is_running(pid) for pid in workers):
        assert time.monotonic() < give_up_at
        multiprocessing.active_children()  # buries the dead
        time.sleep(0.1)


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize(
    ("action", "kind", "sentence"),
    [
        (tear, ValueError, "a.svs: cannot be read: torn"),
        (vanish, FileNotFoundError, "a.svs: no such file"),
    ],
)
def test_an_error_in_a_worker_is_told_as_one_in_this_process(
    n_workers: int, action: Callable[[], None], kind: type[Exception], sentence: str
) -> None:
    loading = _loading(n_workers=n_workers)
    with pytest.raises(kind) as error:
        list(_batches(Numbers(odd=4, action=action), loading))
    assert str(error.value) == sentence


def bug() -> None:
    raise KeyError("ours")


@pytest.mark.parametrize("n_workers", [0, 1])
def test_other_errors_keep_their_traceback(n_workers: int) -> None:
    with pytest.raises(KeyError) as error:
        list(_batches(Numbers(odd=4, action=bug), _loading(n_workers=n_workers)))
    assert "ours" in str(error.value)


def test_a_worker_that_is_lost_is_noticed_where_a_batch_is_waited_for_and_nowhere_else() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    batches = _batches(Numbers(), _loading())
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_without_workers_there_is_nothing_to_wait_for() -> None:
    arguments = _loading(n_workers=0).arguments()
    assert "timeout" not in arguments
    assert np.array_equal([int(b) for b in _batches(Numbers(), _loading(n_workers=0))], range(10))


def test_slurm_s_signal_to_all_processes_leaves_multiprocessing_s_helper_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = resource_tracker.ResourceTracker()
    monkeypatch.setattr(resource_tracker, "ensure_running", tracker.ensure_running)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    start_tracker()
    helper = tracker._pid  # type: ignore[attr-defined]
    _kill(helper, signal.SIGUSR1)
    time.sleep(0.3)
    assert Path(f"/proc/{helper}/stat").read_text().split()[2] != "Z"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    _kill(helper, signal.SIGKILL)
    os.waitpid(helper, 0)


class Frozen(Dataset[Any]):
    """How many objects of a worker are never looked through for garbage."""

    def __getitems__(self, wanted: list[int]) -> torch.Tensor:
        return torch.tensor(gc.get_freeze_count())


def test_a_worker_leaves_what_it_inherits_alone() -> None:
    """Looking through it for garbage writes into it, and so copies all that a fork shares."""
    (n_frozen,) = TileLoader(Frozen(), [[0]], _loading(n_workers=1))
    assert n_frozen > 10_000
    assert gc.get_freeze_count() < n_frozen
