"""Two processes on the CPU from the command line: they train as one would, and none outlives another."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer
from PIL import Image

from histo_ssl.parallel import ranks

JOB = [
    "method=dino",
    "backbone=timm",
    "backbone.name=test_vit",
    "backbone.drop_path=0.0",  # dropout is drawn per rank
    "method.head={n_outputs: 32, n_hidden: 32, n_bottleneck: 16}",
    "views.kinds.local.count=2",
    "training={epochs: 3, batch_size: 8}",
    "loader.n_workers=0",
    "trainer.precision=32-true",
    "log_every=1",
    "checkpoint_every=3",
    "logger=none",
    "stages=[tile,pretrain]",
]
LONG = "training.epochs=8"  # 40 steps
LISTEN, CONNECTED = "0A", "01"  # in /proc/net/tcp
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
SLURM = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
SLURM |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "pretrain"}
N_STEPS = 15

Started = list[Any]
Launch = Callable[..., Started]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a data set of 40 tiles of noise, each of its own colour."""
    root = tmp_path_factory.mktemp("images") / "any"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        tile = rng.integers(0, 120, (32, 32, 3)) + rng.integers(0, 136, 3)
        Image.fromarray(tile.astype(np.uint8)).save(root / f"{i:02}.png")
    return ["data=images", f"data.root={root.parent}"]


@pytest.fixture
def launch(warm: Any, tmp_path: Path) -> Iterator[Launch]:
    """A function that starts a run under a launcher, and hands back the processes that it started."""
    every: Started = []

    def start(*arguments: str, **how: str) -> Started:
        started = _launched(warm, tmp_path, *arguments, **how)
        every.extend(started)
        return started

    yield start
    for process in every:
        for pid in _session(process.pid):
            os.kill(pid, signal.SIGKILL)


def _launched(
    warm: Any, cwd: Path, *arguments: str, by: str = "lightning", runs: str = "runs", path: str = ""
) -> Started:
    run = partial(warm.start, cwd=cwd)
    job = ["-m", "histo_ssl", *JOB, *arguments, f"runs_dir={cwd / runs}"]
    if by == "slurm":
        slurm = {**SLURM, "MASTER_PORT": str(_free_port()), "PATH": f"{path}:{os.environ['PATH']}"}
        return [run(*job, **slurm, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
    if by == "torchrun":
        return [run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *job)]
    return [run(*job)]


@pytest.fixture(scope="module")
def unbroken(warm: Any, images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a long training on two ranks makes that nobody disturbs."""
    cwd = tmp_path_factory.mktemp("unbroken")
    ended = _finish(_launched(warm, cwd, *images, LONG, "trainer=ddp_cpu", by="slurm"))
    assert [status for status, _ in ended] == [0, 0], ended
    return cwd / "runs"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _finish(started: Started, *, within_s: float = 240.0) -> list[tuple[int, str]]:
    """Exit status and standard error of each process."""
    return [(process.wait(within_s), process.communicate()[1]) for process in started]


def _facts(pid: int) -> list[str]:
    """State, parent, group and session of a process; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _session(leader: int) -> list[int]:
    """Living processes that were started by a process, directly or not."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    facts = {pid: _facts(pid) for pid in pids}
    return [pid for pid, found in facts.items() if found and found[0] != "Z" and found[3] == str(leader)]


def _ranks(leader: int) -> dict[int, int]:
    """Process ids by rank of what a process started with itself, as far as they say so."""
    found = {}
    for pid in _session(leader):
        settings = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        numbers = [int(word[11:]) for word in settings if word.startswith(b"LOCAL_RANK=")]
        found |= {numbers[0]: pid} if numbers else {}
    return found


def _wait_for(path: Path, pattern: str, *, started: Started) -> None:
    give_up_at = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert time.monotonic() < give_up_at, f"no {pattern}"
        assert all(process.poll() is None for process in started), started[0].communicate()
        time.sleep(0.05)


def _losses(runs: Path) -> list[dict[str, float]]:
    (path,) = runs.glob("pretrain/*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]


def _weights(runs: Path) -> bytes:
    (path,) = runs.glob("pretrain/*/encoder.safetensors")
    return path.read_bytes()


def _sockets(pid: int, *, state: str) -> list[str]:
    """Local addresses of a process's TCP sockets in that state, in the kernel's hexadecimal digits."""
    inodes = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(path.readlink().name.removeprefix("socket:").strip("[]"))
    tables = (Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6"))
    rows = [line.split() for table in tables for line in table]
    return [row[1].partition(":")[0] for row in rows if row[3] == state and row[9] in inodes]


@pytest.mark.slow
def test_two_ranks_train_as_one_does_and_alike_under_every_launcher(
    launch: Launch, images: list[str], tmp_path: Path
) -> None:
    for by in ("lightning", "torchrun", "slurm"):
        ended = _finish(launch(*images, "trainer=ddp_cpu", by=by, runs=by))
        assert [status for status, _ in ended] == [0] * len(ended), ended
        assert _losses(tmp_path / by) == _losses(tmp_path / "lightning")
        assert _weights(tmp_path / by) == _weights(tmp_path / "lightning")
    ((status, errors),) = _finish(launch(*images, "trainer=cpu", runs="one"))
    assert status == 0, errors
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "lightning")
    assert len(one) == len(two) == N_STEPS
    for name in ("loss", "teacher_entropy", "kl", "centre_norm", "lr", "weight_decay"):
        # float32 sums in another order: measured at most 2.4e-6 in these steps
        for a, b in zip(one, two, strict=True):
            assert b[name] == pytest.approx(a[name], rel=2e-5, abs=1e-7), (name, a["step"])


@pytest.mark.slow
@pytest.mark.parametrize(("by", "victim"), [("lightning", 0), ("lightning", 1), ("slurm", 0)])
def test_a_killed_rank_ends_the_training_with_a_sentence_and_the_next_start_ends_as_if_unbroken(
    launch: Launch, images: list[str], unbroken: Path, tmp_path: Path, by: str, victim: int
) -> None:
    started = launch(*images, LONG, "trainer=ddp_cpu", by=by)
    _wait_for(tmp_path / "runs", "pretrain/*/last.ckpt", started=started)
    pids = {0: started[0].pid, 1: started[-1].pid if by == "slurm" else _ranks(started[0].pid)[1]}
    os.kill(pids[victim], signal.SIGKILL)
    killed_at = time.monotonic()
    while any(_session(process.pid) for process in started):
        assert time.monotonic() - killed_at < 60, "a rank outlives the other"
        time.sleep(0.05)
    errors = "".join(errors for _, errors in _finish(started))
    assert errors == (
        f"error: rank {victim} (process {pids[victim]}) has ended in the middle of training; "
        "the same command goes on from the last checkpoint\n"
    )
    assert started[0].returncode == (-signal.SIGKILL if victim == 0 else 1)
    again = _finish(launch(*images, LONG, "trainer=ddp_cpu", by=by))
    assert [status for status, _ in again] == [0] * len(again), again
    assert _losses(tmp_path / "runs") == _losses(unbroken)
    assert _weights(tmp_path / "runs") == _weights(unbroken)


@pytest.mark.slow
def test_a_preempted_job_of_two_ranks_is_requeued_once_and_its_next_start_ends_as_if_unbroken(
    launch: Launch, images: list[str], unbroken: Path, tmp_path: Path
) -> None:
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nif [ "$1" = show ]; then echo JobState=RUNNING; fi\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    started = launch(*images, LONG, "trainer=ddp_cpu", by="slurm", path=str(tmp_path))
    _wait_for(tmp_path / "runs", "pretrain/*/last.ckpt", started=started)
    for process in started:  # SLURM tells all
        process.terminate()
    ended = _finish(started)
    assert [status for status, _ in ended] == [143, 0], ended
    assert (tmp_path / "asked").read_text() == "show job 1\nrequeue 1\n"
    assert ended[0][1].startswith("stopped by SIGTERM at step ")
    again = _finish(launch(*images, LONG, "trainer=ddp_cpu", by="slurm"))
    assert [status for status, _ in again] == [0, 0], again
    assert _losses(tmp_path / "runs") == _losses(unbroken)
    assert _weights(tmp_path / "runs") == _weights(unbroken)


@pytest.mark.slow
def test_a_rank_that_waits_for_tiles_ends_when_rank_0_is_killed(launch: Launch, tmp_path: Path) -> None:
    started = launch("data.n_slides=400", "data.n_patients=400", "trainer=ddp_cpu", by="slurm")
    while not _sockets(started[1].pid, state=CONNECTED):
        time.sleep(0.05)
    started[0].kill()
    assert started[1].wait(60) == 1
    assert (
        started[1].communicate()[1] == "error: rank 0 has ended before pretraining; its last words say why\n"
    )


@pytest.mark.slow
def test_ranks_of_one_machine_listen_on_the_loopback_address_alone(
    launch: Launch, images: list[str], tmp_path: Path
) -> None:
    started = launch(*images, LONG, "trainer=ddp_cpu", by="slurm")
    _wait_for(tmp_path / "runs", "pretrain/*/last.ckpt", started=started)
    heard = [at for process in started for at in _sockets(process.pid, state=LISTEN)]
    assert len(heard) >= 3  # the store and a gloo of each rank
    assert set(heard) <= set(LOOPBACK)


def test_a_launcher_that_starts_another_number_of_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "1",
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match="2 processes were started, the trainer is set up for 1; give trainer="
    ):
        ranks.check_launched(Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False))


def test_rank_0_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "MEET_S", {True: 0.3, False: 0.3})
    port = _free_port()
    monkeypatch.setenv("MASTER_PORT", str(port))
    trainer = Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    with pytest.raises(ConnectionError, match=f"rank 0 can't be reached at 127.0.0.1:{port}"):
        ranks.is_called(trainer, "training", is_done=lambda: False)
    assert not ranks.is_called(trainer, "training", is_done=lambda: True)
