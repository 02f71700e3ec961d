"""Heads as a user looks at them: after a training, and of images by a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from histo_ssl.heads.over_slides import SlideHeads

Run = Callable[..., Any]
SMALL = [
    *("backbone=timm", "backbone.name=test_vit", "loader.n_workers=0", "n_processes=1", "trainer=cpu"),
    *("logger=none", "task=attention", "task.protocol.n_bootstrap=50", "task.protocol.n_drawn=2"),
]
DINO = [
    *("method=dino", "method.head.n_outputs=32", "method.head.n_hidden=32", "method.head.n_bottleneck=16"),
    *("views.kinds.local.count=2", "training.epochs=1", "training.batch_size=16"),
]
SYNTHETIC = ["data.n_slides=8", "data.size_px=700", "data.region_um=100"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The program, in one folder."""
    cwd = tmp_path_factory.mktemp("heads")

    def ran(*arguments: str) -> Any:
        done = warm.run("-m", "histo_ssl", *SMALL, *SYNTHETIC, *arguments, cwd=cwd)
        done.cwd = cwd
        return done

    return ran


@pytest.fixture(scope="module")
def looked(run: Run) -> Path:
    """The folder of the result of a training on generated slides."""
    done = run(*DINO)
    assert done.returncode == 0, done.stderr
    (folder,) = [p for p in (done.cwd / "runs" / "results").iterdir() if p.is_dir()]
    assert "nuclei AUC *" in done.stdout
    assert isinstance(folder, Path)
    return folder


def test_the_best_head_and_the_mean_stand_beside_their_floors(looked: Path) -> None:
    results = json.loads((looked / "results.json").read_text())
    found = {
        (s["subject"], s["protocol"]): s
        for s in results["scores"]
        if (s["metric"], s["label"]) == ("nuclei_auc", "")
    }
    subjects, protocols = ("encoder", "colour", "random"), ("best_head", "mean_of_heads")
    assert set(found) == {(subject, protocol) for subject in subjects for protocol in protocols}
    assert results["primary"] == ["best_head", "nuclei_auc"]
    assert all(0 < s["value"] < 1 and s["chance"] == 0.5 for s in found.values())
    assert found["colour", "best_head"]["value"] > 0.9  # nuclei are what haematoxylin stains
    by_label = {s["label"] for s in results["scores"] if s["metric"] == "auc"}
    assert {"nuclei", "stroma"} <= by_label


def test_every_head_has_its_numbers(looked: Path) -> None:
    heads = pd.read_csv(looked / "heads.csv")
    nuclei = heads[(heads["phenotype"] == "nuclei") & (heads["subject"] == "encoder")]
    assert nuclei["head"].tolist() == ["1", "2", "mean"]  # test_vit has two
    assert nuclei["is_best"].sum() == 1
    best = nuclei.loc[nuclei["auc_choosing"].idxmax()]
    assert best["is_best"]
    results = json.loads((looked / "results.json").read_text())
    (score,) = [
        s["value"]
        for s in results["scores"]
        if (s["subject"], s["protocol"], s["metric"]) == ("encoder", "best_head", "nuclei_auc")
    ]
    assert score == pytest.approx(best["auc"])
    assert set(pd.read_csv(looked / "diversity.csv")["subject"]) == {"encoder", "colour", "random"}


def test_the_figures_are_listed_with_words_for_those_who_can_t_see_them(looked: Path) -> None:
    listed = json.loads((looked / "figures" / "figures.json").read_text())
    drawn = sorted(path.stem for path in (looked / "heads").iterdir())
    names = ["heads-auc", "heads-correlation", "tiles", "region-1", "region-2"]
    names += [*(f"heads-{slide}" for slide in drawn), "heads-narrowest"]
    assert sorted(figure["file"] for figure in listed) == sorted(f"{name}.png" for name in names)
    assert len(drawn) == 2
    for figure in listed:
        assert set(figure) == {"file", "title", "alt", "group"}
        assert len(figure["alt"]) > 30
        with Image.open(looked / "figures" / figure["file"]) as image:
            assert min(image.size) > 100


def test_whole_slides_are_seen_under_every_head(looked: Path) -> None:
    tiles = pd.read_csv(next((looked.parents[1] / "tiles").glob("*/status.csv"))).set_index("slide_id")
    for path in (looked / "heads").iterdir():
        seen = SlideHeads.read(path)
        assert len(seen.coords) == tiles.loc[path.stem, "n_tiles"]
        assert seen.n_heads == 2
        assert seen.attention_NHhw.mean(axis=(2, 3)) == pytest.approx(1, abs=2e-3)
        assert (seen.narrowness_NH >= 0).all()


def test_a_checkpoint_draws_an_image_without_a_run(run: Run, looked: Path, shared_data: Path) -> None:
    (encoder,) = (looked.parents[1] / "pretrain").glob("dino-*/encoder.safetensors")
    image = shared_data / "regions" / "hipt_256.png"
    given = ("method=checkpoint", f"method.path={encoder}", f"task.protocol.input={image}")
    done = run(*given)
    assert done.returncode == 0, done.stderr
    (folder,) = (p for p in looked.parent.glob("checkpoint-*") if p.is_dir())
    figures = folder / "figures"
    with Image.open(figures / "001-hipt_256-head1.png") as drawn:
        assert drawn.size == (256, 256)
    (listed,) = json.loads((figures / "figures.json").read_text())
    assert listed["file"] == "001-hipt_256.png"
    notes = json.loads((folder / "results.json").read_text())["notes"]
    assert "1 image, taken to be at 1 um/px" in notes


def test_a_backbone_without_heads_is_refused_before_the_training(run: Run, looked: Path) -> None:
    pretrain = looked.parents[1] / "pretrain"
    before = {path for path in pretrain.iterdir() if path.is_dir()}
    refused = run(*DINO, "backbone.name=resnet18")
    assert refused.returncode == 1
    assert "error: attention: the backbone is a ResNet, which has no heads to look at" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert {path for path in pretrain.iterdir() if path.is_dir()} == before
