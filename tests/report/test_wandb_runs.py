"""Weights & Biases from the command line: on two ranks, in sweeps, over kills, without its server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_ssl.report.wandb import FLUSH_S

JOB = [
    *("method=dino", "backbone=timm", "backbone.name=test_vit"),
    "method.head={n_outputs: 32, n_hidden: 32, n_bottleneck: 16}",
    *("views.kinds.local.count=2", "loader.n_workers=0", "trainer.precision=32-true"),
    *("training={epochs: 3, batch_size: 8}", "log_every=1", "checkpoint_every=3"),  # 15 steps
    "stages=[tile,pretrain]",
]
PROGRAM = ("-m", "histo_ssl")
ON_TWO_RANKS = "trainer=ddp_cpu"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a data set of 40 tiles of noise."""
    root = tmp_path_factory.mktemp("images") / "any"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"{i:02}.png")
    return ["data=images", f"data.root={root.parent}"]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """An environment in which nobody is logged in."""
    return {"NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": "", "WANDB_MODE": "offline"}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _sessions(leader: int) -> Iterator[int]:
    """Living processes of a program's session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            facts = path.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if facts[0] != "Z" and facts[3] == str(leader):
            yield int(path.parent.name)


def _sync(folder: Path, server: Any) -> None:
    command = [sys.executable, "-m", "wandb", "sync", folder.name]
    settings = os.environ | server.environment
    sent = subprocess.run(
        command, env=settings, cwd=folder.parent, capture_output=True, text=True, check=False
    )
    assert sent.returncode == 0, sent.stderr


def test_two_jobs_of_two_ranks_end_with_one_folder_and_one_run_each(
    warm: Any, images: list[str], settings: dict[str, str], wandb_server: Any, tmp_path: Path
) -> None:
    sweep = {**settings, "HISTO_SSL_SWEEP": "both"}
    ended = warm.run(*PROGRAM, "-m", *JOB, "seed=0,1", ON_TWO_RANKS, *images, cwd=tmp_path, **sweep)
    assert ended.returncode == 0, ended.stderr
    folders = sorted(path.parent.name for path in tmp_path.glob("runs/pretrain/*/done.json"))
    runs = sorted(tmp_path.glob("runs/wandb/*run-*"))
    assert len(folders) == len(runs) == 2
    assert {run.name.rpartition("-")[2] for run in runs} == {name.rpartition("-")[2] for name in folders}
    for run in runs:
        _sync(run, wandb_server)
    begun = [run for run in wandb_server.runs if run["groupName"]]
    assert {run["groupName"] for run in begun} == {"both"}
    assert {run["displayName"] for run in begun} == set(folders)
    assert sum("loss" in row for row in wandb_server.history) == 2 * 15  # once each, not once for each rank


def test_a_training_that_was_killed_and_started_again_is_one_run_whose_steps_are_there_once(
    warm: Any, images: list[str], settings: dict[str, str], wandb_server: Any, tmp_path: Path
) -> None:
    job = [*PROGRAM, *JOB, ON_TWO_RANKS, "training.epochs=16", *images]  # 80 steps
    started = warm.start(*job, cwd=tmp_path, **settings)
    give_up_at = time.monotonic() + 120

    def n_steps() -> int:
        return sum(path.read_text().count("\n") for path in tmp_path.glob("runs/pretrain/*/metrics.jsonl"))

    while (n_flushed := n_steps()) <= 4:
        assert time.monotonic() < give_up_at
        assert started.poll() is None, started.stderr
        time.sleep(0.02)
    time.sleep(2 * FLUSH_S)
    for process in list(_sessions(started.pid)):  # W&B's own, too
        os.kill(process, signal.SIGKILL)
    started.wait()
    n_killed = n_steps()
    assert n_flushed < n_killed < 80
    again = warm.run(*job, cwd=tmp_path, **settings)
    assert again.returncode == 0, again.stderr
    runs = sorted(tmp_path.glob("runs/wandb/offline-run-*"))
    assert len(runs) == 2  # on the disk; their name on the server is the same
    for run in runs:
        _sync(run, wandb_server)
    assert len({run["displayName"] for run in wandb_server.runs if run["displayName"]}) == 1
    (metrics,) = tmp_path.glob("runs/pretrain/*/metrics.jsonl")
    losses = [line["loss"] for line in _lines(metrics)]
    assert len(losses) == 80
    sent = wandb_server.curve("loss")
    assert {step: len(values) for step, values in sent.items() if len(values) > 1} == {}
    missing = set(range(80)) - set(sent)  # at most what the last second before the kill brought
    assert missing <= set(range(n_flushed, n_killed + 1))  # of the last step W&B may know before the log does
    assert {step: value for step, (value,) in sent.items()} == pytest.approx(
        {step: losses[step] for step in sent}
    )


def test_a_run_without_the_server_that_it_was_told_of_ends_well_and_soon(
    warm: Any, images: list[str], settings: dict[str, str], tmp_path: Path
) -> None:
    dead = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "x" * 40, "WANDB_MODE": "online"}
    started = time.monotonic()
    ended = warm.run(*PROGRAM, *JOB, "trainer=cpu", *images, cwd=tmp_path, **{**settings, **dead})
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - started < 100  # 20 s of them wait for the server
    assert "W&B is not to be reached (" in ended.stderr
    assert list(tmp_path.glob("runs/pretrain/*/done.json"))
    assert len(list(tmp_path.glob("runs/wandb/offline-run-*"))) == 1
