"""Slide-level tasks and finetuning as a user runs them, beside what the main job has made already."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histo_ssl.embeddings import read_embeddings

Run = Callable[..., Any]
FROZEN = [
    *("method=random", "backbone=timm", "backbone.name=test_vit", "loader.n_workers=0", "n_processes=1"),
    *("trainer=cpu", "logger=none"),
]
SYNTHETIC = [
    *("data.n_slides=16", "data.n_patients=8", "data.n_sites=2", "data.size_px=600", "data.region_um=100"),
    "tiling.stride_px=32",
]
BAGS = [
    *("task.folds.n_folds=2", "task.recipe.epochs=2", "task.n_maps=2", "task.protocol.n_bootstrap=20"),
    *("task.recipe.batch_bags=4", "task.recipe.patience=null"),  # four patients leave none to choose by
]
TUNING = [
    *("task.protocol.tuning.epochs=1", "task.protocol.tuning.lrs=[1e-3]", "task.protocol.n_bootstrap=20"),
    "online=none",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The program, in one folder."""
    cwd = tmp_path_factory.mktemp("slides")

    def ran(*arguments: str, n_jobs: int = 1) -> Any:
        flags = ["-m"] if n_jobs > 1 else []
        given = [*FROZEN, *SYNTHETIC, *arguments]
        done = warm.run("-m", "histo_ssl", *flags, *given, cwd=cwd)
        done.cwd = cwd
        return done

    return ran


def _is_on_a_page(cwd: Path, text: str) -> bool:
    """Whether the page of some run says so."""
    return any(text in path.read_text() for path in (cwd / "runs" / "report" / "runs").iterdir())


def _results(cwd: Path, task: str) -> list[dict[str, Any]]:
    files = sorted((cwd / "runs" / "results").glob(f"*-{task}-*/results.json"))
    return [json.loads(file.read_text()) | {"folder": file.parent} for file in files]


def test_slides_are_scored_by_folds_beside_their_floors(run: Run) -> None:
    done = run("task=slides", *BAGS)
    assert done.returncode == 0, done.stderr
    (result,) = _results(done.cwd, "slides")
    assert set(result["folds"]) == {"encoder", "colour", "random"}
    assert set(result["folds"]["encoder"]["clam_sb"]) == {"k0", "k1"}
    predictions = pd.read_csv(result["folder"] / "predictions.csv").query("subject == 'encoder'")
    assert len(predictions) == predictions["slide"].nunique() == 16
    assert predictions.groupby("patient")["fold"].nunique().max() == 1
    table = pd.read_csv(result["folder"] / "folds.csv")
    assert sorted(table["subject"].unique()) == ["colour", "encoder", "random"]
    shown = sorted((result["folder"] / "attention").glob("*_tiles.png"))
    assert len(shown) == 2
    index = done.cwd / "runs" / "report" / "index.html"
    assert "Differences of AUC and C-index on the same patients" in index.read_text()
    assert _is_on_a_page(done.cwd, "Where the model looked")


def test_a_fold_alone_gives_what_it_gave_in_the_whole(run: Run) -> None:
    done = run("task=slides", *BAGS, "task.only_folds=[k1]")
    assert done.returncode == 0, done.stderr
    whole, alone = sorted(
        _results(done.cwd, "slides"), key=lambda result: -len(result["folds"]["encoder"]["clam_sb"])
    )
    tables = [
        pd.read_csv(result["folder"] / "predictions.csv").query("fold == 'k1'").reset_index(drop=True)
        for result in (whole, alone)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_sweep_over_shares_of_the_labels_prints_the_studys_table(run: Run) -> None:
    labels = {"slide": "slide_id", "patient": "patient_id", "site": "site", "label": "label"}
    columns = [f"task.labels.columns.{ours}={theirs}" for ours, theirs in labels.items()]
    done = run("task=tcga_brca_subtype", *columns, *BAGS, "task.label_fraction=0.5,1.0", n_jobs=2)
    assert done.returncode == 0, done.stderr
    assert sorted(result["label_fraction"] for result in _results(done.cwd, "tcga_brca_subtype")) == [
        0.5,
        1.0,
    ]
    lines = [line for line in done.stdout.splitlines() if line.startswith("random, timm")]
    assert any("±" in line for line in lines)
    assert (done.cwd / "runs" / "report" / "table1.csv").is_file()


def test_survival_is_scored_by_patients(run: Run) -> None:
    first = run("stages=[tile]")
    manifest = pd.read_csv(next(first.cwd.glob("runs/data/*/manifest.csv")))
    number = manifest["patient_id"].str[1:].astype(int)
    labels = manifest.assign(case_id=manifest["patient_id"], survival_months=50 - number, event=1)
    labels[["slide_id", "case_id", "survival_months", "event"]].to_csv(first.cwd / "labels.csv", index=False)
    done = run("task=survival", *BAGS, "task.labels.path=labels.csv", "task.protocol.n_intervals=2")
    assert done.returncode == 0, done.stderr
    (result,) = _results(done.cwd, "survival")
    assert {score["metric"] for score in result["scores"]} == {"c_index", "fold_mean_c_index"}
    assert result["counts"]["n_test"] == 8
    assert _is_on_a_page(first.cwd, "Kaplan-Meier curves by predicted risk")


def test_features_of_another_program_are_scored_as_they_are(run: Run, warm: Any) -> None:
    first = run("task=slides", *BAGS)
    cwd, manifest = first.cwd, pd.read_csv(next(first.cwd.glob("runs/data/*/manifest.csv")))
    made = next(path for path in (cwd / "runs" / "embeddings").iterdir() if path.is_dir())
    (cwd / "h5_files").mkdir()
    for path in made.glob("*.h5"):  # CLAM's layout: both data sets at the top, nothing else
        stored = read_embeddings(path)
        with h5py.File(cwd / "h5_files" / path.name, "w") as file:
            file["features"], file["coords"] = stored.features.astype(np.float16), stored.coords
    manifest[["slide_id", "patient_id", "label"]].to_csv(cwd / "slides.csv", index=False)
    given = ["method=features", "method.path=h5_files", "task=slides", "task.labels.path=slides.csv"]
    done = warm.run("-m", "histo_ssl", *given, *BAGS, "trainer=cpu", "logger=none", "runs_dir=given", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (file,) = (cwd / "given" / "results").glob("features-h5_files-slides-*/results.json")
    result = json.loads(file.read_text())
    assert set(result["folds"]) == {"encoder"}
    assert len(pd.read_csv(file.parent / "predictions.csv")) == 16
    assert "features from elsewhere: there are no floors to compare with" in result["notes"]
    tiles = warm.run("-m", "histo_ssl", *given[:2], "task=knn", "logger=none", cwd=cwd)
    assert tiles.returncode == 1
    assert "it is for task=slides and its like alone" in tiles.stderr


def test_an_encoder_can_learn_on_and_colours_can_not(run: Run) -> None:
    done = run("task=finetune", *TUNING)
    assert done.returncode == 0, done.stderr
    (result,) = _results(done.cwd, "finetune")
    assert {score["subject"] for score in result["scores"]} == {"encoder", "random"}
    assert "colour has no weights that could be tuned: nothing to score" in result["notes"]
    assert "since the task takes the tiles themselves" in done.stdout + done.stderr
    assert "finetune" in (done.cwd / "runs" / "report" / "report.md").read_text()
    again = run("task=finetune", *TUNING)  # all is done already
    assert again.returncode == 0, again.stderr
    assert len(_results(done.cwd, "finetune")) == 1


def test_a_public_set_of_tiles_is_finetuned_on_by_its_own_split(run: Run, tmp_path: Path) -> None:
    classes = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    for folder, n in (("NCT-CRC-HE-100K", 4), ("CRC-VAL-HE-7K", 2)):
        for number, name in enumerate(classes):
            for i in range(n):
                noise = np.random.default_rng([number, i, n]).integers(0, 20, (32, 32, 3))
                path = tmp_path / folder / name / f"{name}-{i}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((25 * number + noise).astype(np.uint8)).save(path)
    done = run("task=crc100k", f"task.root={tmp_path}", "task/protocol=finetune", *TUNING)
    assert done.returncode == 0, done.stderr
    (result,) = _results(done.cwd, "crc100k")
    assert result["classes"] == ["ADI", "BACK", "DEB", "LYM", "MUC", "NORM", "STR", "TUM"]
    assert (result["counts"]["n_train"], result["counts"]["n_test"]) == (36, 18)
    assert result["primary"] == ["finetune", "auc"]
    predictions = pd.read_csv(result["folder"] / "predictions.csv").query("subject == 'encoder'")
    scores = predictions[[f"score_{name}" for name in result["classes"]]]
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-6)
    guessed = (predictions["predicted"] == predictions["label"]).mean()
    (accuracy,) = (
        score["value"]
        for score in result["scores"]
        if (score["subject"], score["metric"], score["label"]) == ("encoder", "accuracy", "")
    )
    assert accuracy == guessed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["task=slides", "task.labels.path=nowhere.csv"],
            "task.labels.path=nowhere.csv: there is no such CSV",
        ),
        (["task=slides", "task.folds.n_folds=9"], "has 4 patients for 9 folds: say task.folds.n_folds=4"),
        (["task=slides", "task/folds=given", "task.folds.path=none"], "no splits_0.csv there"),
        (["task=slides", "task.unit=site"], "task.unit=site: choose one of slide, patient"),
        (
            ["task=slides", "task.folds.n_folds=2", "task.label_fraction=0"],
            "task.label_fraction=0: a share above 0 and up to 1",
        ),
    ],
)
def test_mistakes_are_answered_in_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_a_run_that_was_killed_goes_on_with_the_next_fold(run: Run) -> None:
    done = run("task=slides", *BAGS, "task.protocol.seed=1")
    newest = max((done.cwd / "runs" / "results").glob("*-slides-*"), key=lambda path: path.stat().st_mtime)
    before = json.loads((newest / "results.json").read_text())
    for name in ("done.json", "results.json", "predictions.csv"):
        (newest / name).unlink()
    next((newest / "folds").glob("random-clam_sb-k1.npz")).unlink()
    shutil.rmtree(newest / "attention")
    again = run("task=slides", *BAGS, "task.protocol.seed=1")
    assert again.returncode == 0, again.stderr
    trained = [line for line in (again.stdout + again.stderr).splitlines() if "bags to learn from" in line]
    assert len(trained) == 1
    assert json.loads((newest / "results.json").read_text())["scores"] == before["scores"]
