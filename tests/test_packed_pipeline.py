"""Pretraining from packs as a user runs it: the same losses, in the same folder, or a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histo_ssl.training.recording import read_metrics

ARGUMENTS = [
    *("method=simclr", "backbone=timm", "backbone.name=test_vit", "views=pair", "trainer=cpu", "logger=none"),
    *("method.projector.n_hidden=16", "method.projector.n_outputs=8", "online=none", "n_processes=2"),
    *(
        "data.n_slides=8",
        "data.n_patients=8",
        "data.size_px=600",
        "data.region_um=100",
        "tiling.stride_px=32",
    ),
    *("training.batch_size=8", "training.epochs=2", "log_every=1", "stages=[tile,pretrain]"),
]

pytestmark = pytest.mark.slow


@pytest.fixture
def run(warm: Any, tmp_path: Path) -> Callable[..., Any]:
    """The program, in an empty folder."""

    def ran(*arguments: str) -> Any:
        return warm.run("-m", "histo_ssl", *ARGUMENTS, *arguments, cwd=tmp_path)

    return ran


def _losses(folder: Path) -> list[float]:
    (path,) = folder.glob("pretrain/*/metrics.jsonl")
    return [line["loss"] for line in read_metrics(path)]


def test_trainings_with_and_without_packs_are_one(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("runs_dir=plain").returncode == 0
    done = run("runs_dir=packed", "data.pack=true")
    assert done.returncode == 0, done.stderr
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    assert len(_losses(plain)) > 8
    assert _losses(plain) == _losses(packed)
    (one,), (other,) = (list(runs.glob("pretrain/*/encoder.safetensors")) for runs in (plain, packed))
    assert one.parent.name == other.parent.name
    assert one.read_bytes() == other.read_bytes()
    (mark,) = packed.glob("packs/*/done.json")
    assert not list(plain.glob("packs/*"))
    assert len(list(mark.parent.glob("*.pack"))) == 4  # of the eight slides four are held out
    assert "pack: storing" in done.stdout


def test_packs_make_no_other_training_and_runs_do(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("runs_dir=runs").returncode == 0
    done = run("runs_dir=runs", "data.pack=true")
    assert done.returncode == 0
    assert "done before" in done.stdout
    assert not list(tmp_path.glob("runs/packs/*"))  # nothing is left to be read
    plain = _losses(tmp_path / "runs")
    assert run("runs_dir=runs", "training.run_length=4").returncode == 0
    folders = sorted((tmp_path / "runs" / "pretrain").glob("*-*/"), key=lambda path: path.stat().st_mtime)
    runs = [line["loss"] for line in read_metrics(folders[-1] / "metrics.jsonl")]
    assert len(folders) == 2
    assert len(runs) == len(plain)
    assert runs != plain  # other tiles in its batches


def test_a_pack_that_is_neither_on_nor_off_is_refused(run: Callable[..., Any]) -> None:
    done = run("data.pack=perhaps")
    assert done.returncode != 0
    assert "data.pack=perhaps: true or false is expected" in done.stderr + done.stdout
