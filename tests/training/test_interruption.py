"""Told to end, a training ends in order: its step is finished, written, and gone on from."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.methods.base import SSLMethod
from histo_ssl.signals import HANDLED, Stopped, answered_by, stop
from histo_ssl.training.checkpoints import LAST, Checkpoints, damage
from histo_ssl.training.interruption import requeue

Source = Callable[[int], TileSource]
Fit = Callable[..., SSLMethod]
Start = Callable[..., Any]
STATUS = {signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGTERM: 143}


def _send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def _step(folder: Path) -> int:
    return int(torch.load(folder / LAST, weights_only=True)["global_step"])


@pytest.mark.parametrize("signum", HANDLED)
def test_a_signal_ends_a_training_after_its_step_with_a_checkpoint_and_its_own_status(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path, signum: int
) -> None:
    before = [signal.getsignal(each) for each in HANDLED]
    with pytest.raises(Stopped) as stopped:
        fit_tiny(tmp_path, source=image_source(17), callbacks=[tiny.At(5, partial(_send, signum))], every=100)
    assert stopped.value.status == STATUS[signum]
    name = signal.Signals(signum).name
    assert str(stopped.value) == f"stopped by {name} at step 5; the same command goes on from here"
    assert _step(tmp_path) == 5
    assert [signal.getsignal(each) for each in HANDLED] == before


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_goes_on_after_a_signal_as_if_there_had_been_none(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path, accumulate: int
) -> None:
    source = image_source(17)
    run = partial(fit_tiny, source=source, accumulate=accumulate)
    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "broken", callbacks=[tiny.At(5, partial(_send, signal.SIGTERM))])
    assert _step(tmp_path / "broken") == 5
    resumed = run(tmp_path / "broken")
    assert tiny.timeless(tmp_path / "broken") == tiny.timeless(tmp_path / "whole")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_signal_between_accumulated_batches_waits_for_the_whole_step(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    class AtBatch(tiny.At):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int
        ) -> None:
            if number == self.step:
                self.action()

    callbacks = [AtBatch(4, partial(_send, signal.SIGTERM))]  # the first half of the third step
    with pytest.raises(Stopped, match="at step 3"):
        fit_tiny(tmp_path, source=image_source(17), callbacks=callbacks, accumulate=2)
    assert _step(tmp_path) == 3


def test_only_our_handlers_act_while_a_training_runs(
    image_source: Source, fit_tiny: Fit, tiny: ModuleType, tmp_path: Path
) -> None:
    seen: list[str] = []

    def look() -> None:
        seen.extend(getattr(signal.getsignal(each), "__qualname__", "") for each in HANDLED)

    fit_tiny(tmp_path, source=image_source(17), callbacks=[tiny.At(2, look)])
    assert seen == ["Interruption._note"] * 3


@pytest.mark.parametrize("signum", HANDLED)
def test_a_signal_before_the_first_step_is_answered_as_before_the_training(
    image_source: Source,
    fit_tiny: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    signum: int,
) -> None:
    caplog.set_level("INFO", logger="lightning")
    make = TileDataModule.train_dataloader

    def told(data: TileDataModule) -> Any:
        _send(signum)  # Lightning installs its handlers before it asks for the data
        return make(data)

    monkeypatch.setattr(TileDataModule, "train_dataloader", told)
    with answered_by(stop), pytest.raises(Stopped) as stopped:
        fit_tiny(tmp_path, source=image_source(17))
    assert stopped.value.status == STATUS[signum]
    assert "Received SIGTERM" not in caplog.text  # it would talk to other ranks from inside of a handler


def _children(pid: int) -> set[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], check=False, capture_output=True, text=True
    )
    return {int(word) for word in listed.stdout.split()}


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def _wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def _n_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("signum", HANDLED)
def test_a_signal_to_all_processes_of_a_run_leaves_its_workers_to_it(
    image_source: Source, start: Start, tmp_path: Path, signum: int
) -> None:
    process = start(tmp_path / "run", source=image_source(17), n_workers=2, epochs=1000, every=10_000)
    _wait_for(lambda: _n_lines(tmp_path / "run" / "ids.jsonl") > 5, seconds=60)
    workers = _children(process.pid)
    assert len(workers) == 2
    os.killpg(process.pid, signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == STATUS[signum]
    step = _step(tmp_path / "run")
    assert (
        said
        == f"stopped by {signal.Signals(signum).name} at step {step}; the same command goes on from here\n"
    )
    assert step == _n_lines(tmp_path / "run" / "ids.jsonl")  # every step that was made is in the checkpoint
    _wait_for(lambda: not any(map(_is_running, workers)), seconds=15)


@pytest.mark.slow
def test_a_killed_training_leaves_no_worker_behind(
    image_source: Source, start: Start, tmp_path: Path
) -> None:
    process = start(tmp_path / "run", source=image_source(17), n_workers=2, epochs=1000)
    _wait_for(lambda: _n_lines(tmp_path / "run" / "ids.jsonl") > 5, seconds=60)
    workers = _children(process.pid)
    assert len(workers) == 2
    process.kill()
    _wait_for(lambda: not any(map(_is_running, workers)), seconds=30)  # they look every 5 s


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_leaves_a_sound_checkpoint(
    image_source: Source, start: Start, tiny: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    slow = tiny.Odd(image_source(17), {row: partial(time.sleep, 1.0) for row in range(17)})
    process = start(folder, source=slow, every=1)
    _wait_for((folder / LAST).exists, seconds=60)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # a step takes 4 s
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - started < 3
    assert process.returncode == 130
    assert said.strip() == "stopped at once; the same command goes on from the last checkpoint"
    assert damage(folder / LAST) is None


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_ends_both_with_one_checkpoint(
    image_source: Source, start: Start, tmp_path: Path
) -> None:
    folder, source = tmp_path / "run", image_source(17)
    ranks = start(folder, n_ranks=2, source=source, epochs=1000, every=10_000)
    _wait_for(lambda: _n_lines(folder / "ids.jsonl") > 10, seconds=90)
    ranks[1].send_signal(signal.SIGTERM)
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [143, 0]
    assert f"stopped by SIGTERM at step {_step(folder)}; the same command goes on from here\n" in said[0]
    assert "stopped" not in said[1]


@pytest.mark.slow
def test_an_error_on_one_of_two_ranks_does_not_leave_the_other_waiting(
    image_source: Source, start: Start, tiny: ModuleType, tmp_path: Path
) -> None:
    torn = tiny.Odd(image_source(17), dict.fromkeys(range(17), tiny.TearOnRank(1)))
    ranks = start(tmp_path / "run", n_ranks=2, source=torn)
    _, said = ranks[1].communicate(timeout=90)
    ended = time.monotonic()
    assert "torn.svs: cannot be read" in said
    ranks[0].communicate(timeout=60)
    assert time.monotonic() - ended < 30
    assert [rank.returncode == 0 for rank in ranks] == [False, False]


class _OnSlurm:
    detect = staticmethod(lambda: True)


def _fake_scontrol(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, status: int = 0, state: str = "RUNNING"
) -> Path:
    program = folder / "scontrol"
    shown = f"JobId=77 JobName=j\\n   JobState={state} Reason=None"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = show ]; then printf "{shown}"; else echo "$@" >> {folder}/asked; fi\n'
        f"exit {status}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return folder / "asked"


@pytest.mark.parametrize(
    ("signum", "state", "asked"),
    [
        (signal.SIGUSR1, "RUNNING", ["requeue 77"]),  # its time is nearly up
        (signal.SIGTERM, "RUNNING", ["requeue 77"]),  # it is preempted
        (signal.SIGTERM, "COMPLETING", []),  # it was cancelled
        (signal.SIGINT, "RUNNING", []),
    ],
)
def test_under_slurm_a_job_that_must_give_way_is_requeued_once_its_checkpoint_is_written(
    image_source: Source,
    fit_tiny: Fit,
    tiny: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    state: str,
    asked: list[str],
) -> None:
    path = _fake_scontrol(tmp_path, monkeypatch, state=state)
    monkeypatch.setattr("histo_ssl.training.interruption.SLURMEnvironment", _OnSlurm)
    with pytest.raises(Stopped):
        fit_tiny(
            tmp_path / "a", source=image_source(17), callbacks=[tiny.At(3, partial(_send, signum))], every=99
        )
    assert (path.read_text().splitlines() if path.exists() else []) == asked
    assert Checkpoints(tmp_path / "a").find() == tmp_path / "a" / LAST


def test_a_job_of_an_array_is_requeued_by_its_own_name_and_a_failure_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = _fake_scontrol(tmp_path, monkeypatch, status=1)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with caplog.at_level(logging.WARNING):
        requeue(signal.SIGUSR1)
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3; rm -r /")
        requeue(signal.SIGUSR1)
    assert asked.read_text() == "requeue 12_3\n"
    assert "job 12_3 was not requeued" in caplog.messages[0]
    assert "is no job of SLURM's" in caplog.messages[1]


@pytest.mark.slow
def test_a_run_and_a_sweep_end_by_the_signals_status_with_one_line_and_go_on(
    warm: Any, tmp_path: Path
) -> None:
    small = [
        "method=dino", "backbone=timm", "backbone.name=test_vit", "method.head.n_outputs=32",
        "method.head.n_hidden=32", "method.head.n_bottleneck=16", "training.batch_size=8",
        "loader.n_workers=1", "n_processes=1", "trainer=cpu", "logger=none", "data.n_slides=4",
        "data.size_px=800", "data.region_um=100", "tiling.stride_px=32",
        "stages=[tile,pretrain]", "log_every=1",
    ]  # fmt: skip

    def run(*arguments: str) -> Any:
        return warm.start("-m", "histo_ssl", *arguments, *small, cwd=tmp_path)

    def n_steps() -> int:
        return sum(_n_lines(path) for path in tmp_path.glob("runs/pretrain/*/metrics.jsonl"))

    tiling = run("training.epochs=50")
    _wait_for((tmp_path / "runs" / "data").exists, seconds=120)
    tiling.terminate()
    assert tiling.communicate(timeout=60)[1] == "stopped by SIGTERM; the same command goes on from here\n"
    assert tiling.returncode == 143
    for number, (arguments, end) in enumerate(
        [
            (["training.epochs=50"], lambda process: process.send_signal(signal.SIGTERM)),
            (["training.epochs=50"], lambda process: os.killpg(process.pid, signal.SIGINT)),
            (["-m", "training.epochs=50,51"], lambda process: process.send_signal(signal.SIGTERM)),
            (["-m", "training.epochs=50,51"], lambda process: os.killpg(process.pid, signal.SIGINT)),
        ]
    ):
        before, process = n_steps(), run(*arguments)
        _wait_for(lambda before=before: n_steps() > before + 2, seconds=120)
        end(process)
        said = process.communicate(timeout=60)[1]
        name, status = [("SIGTERM", 143), ("SIGINT", 130)][number % 2]
        assert process.returncode == status
        assert said.startswith(f"stopped by {name} at step ")
        assert said.count("\n") == 1
    assert len(list(tmp_path.glob("runs/pretrain/*/last.ckpt"))) == 1  # no later job of the sweep was started
