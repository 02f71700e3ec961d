"""The whole way, as a user goes it: slides in, an encoder, its scores and a report out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

SMALL = [
    "method=dino",
    "backbone=timm",
    "backbone.name=test_vit",
    "method.head.n_outputs=32",
    "method.head.n_hidden=32",
    "method.head.n_bottleneck=16",
    "views.kinds.local.count=2",
    "training.epochs=2",
    "training.batch_size=8",
    "loader.n_workers=0",
    "n_processes=1",
    "trainer=cpu",
    "logger=none",
]
SYNTHETIC = ["data.n_slides=8", "data.size_px=800", "data.region_um=100", "tiling.stride_px=32"]

pytestmark = pytest.mark.slow


Run = Callable[..., Any]


@pytest.fixture(scope="module")
def run(warm: Any) -> Run:
    """The program, run in a folder with the small job's values."""

    def ran(*arguments: str, cwd: Path) -> Any:
        flags = [argument for argument in arguments if argument.startswith("-")]
        return warm.run("-m", "histo_ssl", *flags, *SMALL, *(a for a in arguments if a not in flags), cwd=cwd)

    return ran


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.glob(pattern) if path.is_dir())
    assert len(found) == 1, found
    return found[0]


def _times(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): path.stat().st_mtime_ns for path in files if "report" not in path.parts}


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder in which the main job has run on small generated slides, and what it printed."""
    cwd = tmp_path_factory.mktemp("run")
    ran = run(*SYNTHETIC, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return cwd, ran


def test_every_score_stands_beside_its_floors(
    finished: tuple[Path, Any],
) -> None:
    cwd, ran = finished
    results = json.loads((_only(cwd / "runs" / "results", "*") / "results.json").read_text())
    subjects = {"encoder", "colour", "random"}
    assert set(results["confusion"]) == {score["subject"] for score in results["scores"]} == subjects
    chances = {s["metric"]: s["chance"] for s in results["scores"] if s["label"] == ""}
    assert chances["auc"] == 0.5
    assert chances["balanced_accuracy"] == pytest.approx(1 / len(results["classes"]))
    colour = {
        s["metric"]: s["value"] for s in results["scores"] if s["subject"] == "colour" and s["label"] == ""
    }
    assert colour["auc"] > 0.8  # tissues differ in colour, too: a floor that must show
    assert "balanced accuracy" in ran.stdout
    assert "runs/report/index.html" in ran.stdout


def test_the_encoder_is_loaded_from_its_file_alone(
    finished: tuple[Path, Any],
) -> None:
    folder = _only(finished[0] / "runs" / "pretrain", "*")
    card = json.loads((folder / "card.json").read_text())
    assert (card["method"], card["tile_px"], card["mpp"], card["dim"]) == ("dino", 64, 1.0, 64)
    assert card["fingerprint"] == folder.name.rpartition("-")[2]


def test_every_tile_is_embedded_once(finished: tuple[Path, Any]) -> None:
    from histo_ssl.embeddings import read_embeddings

    runs = finished[0] / "runs"
    status = pd.read_csv(_only(runs / "tiles", "*") / "status.csv").set_index("slide_id")
    folders = [path for path in (runs / "embeddings").iterdir() if path.is_dir()]
    assert len(folders) == 3
    for folder in folders:
        counts = {path.stem: len(read_embeddings(path).features) for path in folder.glob("*.h5")}
        assert counts == status["n_tiles"].to_dict()


def test_the_same_command_does_nothing_again(
    run: Run,
    finished: tuple[Path, Any],
) -> None:
    cwd, _ = finished
    before = _times(cwd / "runs")
    again = run(*SYNTHETIC, cwd=cwd)
    assert again.returncode == 0
    assert _times(cwd / "runs") == before
    for stage in ("tile", "pretrain", "embed (encoder)", "evaluate"):
        assert f"{stage}: done before" in again.stdout


def test_another_protocol_scores_the_same_encoder(
    run: Run,
    finished: tuple[Path, Any],
) -> None:
    cwd, _ = finished
    ran = run(*SYNTHETIC, "task.protocol.n_bootstrap=10", cwd=cwd)
    assert ran.returncode == 0
    assert "pretrain: done before" in ran.stdout
    assert "embed (encoder): done before" in ran.stdout
    assert len([path for path in (cwd / "runs" / "results").iterdir() if path.is_dir()]) == 2


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of striped tiles, 30 each, that differ in the direction of the stripes."""
    rng = np.random.default_rng(0)
    for name, axis in (("across", 0), ("along", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            wave = 128 + 100 * np.sin(np.arange(32) + rng.uniform(0, 6))
            tile = np.broadcast_to(np.expand_dims(wave, axis)[..., None], (32, 32, 3)).astype(np.uint8)
            Image.fromarray(tile).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def test_images_go_the_same_way_and_unknown_patients_are_said(
    run: Run, image_folder: Path, tmp_path: Path
) -> None:
    ran = run("data=images", f"data.root={image_folder}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((_only(tmp_path / "runs" / "results", "*") / "results.json").read_text())
    assert results["classes"] == ["across", "along"]
    assert any("patient" in note for note in results["notes"])


def test_slides_that_fail_are_listed_and_past_the_limit_stop_the_run(
    run: Run, finished: tuple[Path, Any], tmp_path: Path
) -> None:
    slides = _only(finished[0] / "runs" / "data", "*") / "slides"
    (tmp_path / "slides").mkdir()
    for path in sorted(slides.glob("*.tif"))[:3]:
        (tmp_path / "slides" / path.name).symlink_to(path)
    (tmp_path / "slides" / "text.svs").write_text("no slide")
    arguments = ["data=slides", f"data.root={tmp_path / 'slides'}"]
    stopped = run(*arguments, cwd=tmp_path)
    assert stopped.returncode == 1
    assert "1 of 4 slides" in stopped.stderr
    assert "data.max_failed=0.1" in stopped.stderr
    assert len(stopped.stderr.strip().splitlines()) == 1
    ran = run(*arguments, "data.max_failed=0.3", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (path,) = (tmp_path / "runs" / "report" / "runs").iterdir()
    page = path.read_text()
    assert "cannot be read as a slide" in page
    assert "nothing to score" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data=slides", "data.root={tmp}/empty"], "no slide there; files ending in .svs"),
        (["data=slides", "data.manifest={tmp}/no_path.csv"], "no column path; found slide_id"),
        (
            ["data=slides", "data.root={tmp}/slides", "tiling=native"],
            "slides need all four; choose tiling=small or tiling=study",
        ),
        (["data=images", "data.root={tmp}/empty"], "no image in it"),
        ([*SYNTHETIC, "backbone.name=vit_tinny_patch16_224"], "the nearest are vit_tiny_patch16_224"),
        ([*SYNTHETIC, "training.batch_size=100000"], "training.batch_size=100000, but there are only"),
        (
            [*SYNTHETIC, "tiling.mpp=0.25"],
            "detail that was never scanned cannot be read; use tiling.mpp >= 0.5",
        ),
        (
            [*SYNTHETIC, "stages=[tile,pretrain,embed]", "+tiling@task.tiling=small"],
            "was trained at 1 um/px, these tiles have 0.5",
        ),
        ([*SYNTHETIC, "tiling.size_px=40"], "cuts views into patches of 16 px, got views of 40 x 40 px"),
        ([*SYNTHETIC, "stages=[embed]", "seed=99"], "not finished yet; put 'pretrain' before this one"),
    ],
)
def test_bad_input_gets_one_sentence(
    run: Run,
    finished: tuple[Path, Any],
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").touch()  # listed, and never opened
    (tmp_path / "no_path.csv").write_text("slide_id,file\na,b.svs\n")
    runs = f"runs_dir={finished[0] / 'runs'}"
    failed = run(runs, *(a.format(tmp=tmp_path) for a in arguments), cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert sentence in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_a_sweep_runs_each_job_in_a_fresh_process(run: Run, finished: tuple[Path, Any]) -> None:
    cwd, _ = finished
    swept = run("-m", *SYNTHETIC, "task.protocol.n_bootstrap=0,11,12", "stages=[evaluate]", cwd=cwd)
    assert swept.returncode == 1
    assert "error: a job of the sweep failed: " in swept.stderr
    assert "task.protocol.n_bootstrap=0" in swept.stderr
    scored = [json.loads(path.read_text()) for path in cwd.glob("runs/results/*/provenance.json")]
    resamples = {made["config"]["protocol"]["n_bootstrap"] for made in scored}
    assert {11, 12} <= resamples  # one job's failure does not stop the others
