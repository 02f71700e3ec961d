"""Frozen methods go the same way as the others: an encoder with its card, embeddings, scores."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from hydra.errors import InstantiationException
from PIL import Image
from safetensors.torch import save_file

from histo_ssl import stages
from histo_ssl.config.plan import Plan
from histo_ssl.config.preflight import prepared
from histo_ssl.data.sources import open_source
from histo_ssl.embed import load_embeddings
from histo_ssl.encode import load_encoder
from histo_ssl.export import ENCODER
from histo_ssl.folders.artifacts import counts, is_done, read_json
from histo_ssl.scoring import subjects_of

pytestmark = pytest.mark.slow

VIT = ["backbone=timm", "backbone.name=test_vit"]
DINO = ["method=dino", "method.head.n_outputs=32", "method.head.n_hidden=32", "method.head.n_bottleneck=16"]
HALVES = ["method.mean=[0.5,0.5,0.5]", "method.std=[0.5,0.5,0.5]"]


@pytest.fixture
def planned(
    compose: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Plan]:
    """A function from overrides to a plan, on 24 random images of two classes, far from any hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    for i, tile in enumerate(pixels):
        path = tmp_path / "images" / "AB"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path)
    small = ["data=images", f"data.root={tmp_path}/images", "tiling.mpp=0.5", f"runs_dir={tmp_path}/runs"]
    small += ["training.epochs=1", "training.batch_size=8"]
    small += ["loader.n_workers=0", "n_processes=1", "trainer=cpu", "logger=none"]
    scored = ["task.protocol.n_bootstrap=10"]

    def plan(*overrides: str) -> Plan:
        own = [] if "task=umap" in overrides else scored
        return prepared(compose(*overrides, *small, *own), known=stages.STAGES)

    return plan


@pytest.fixture
def tiles() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)


def embedded(plan: Plan, tiles: torch.Tensor) -> torch.Tensor:
    """What the encoder in the plan's folder makes of tiles."""
    return load_encoder(plan.pretrain_folder / ENCODER)(tiles)


def test_random_weights_score_exactly_as_their_floor(planned: Callable[..., Plan]) -> None:
    plan = planned("method=random", *VIT, "seed=2")
    stages.run(plan)
    source = open_source(plan.task_tile_folder)
    features = [
        load_embeddings(plan.embedding_folder(encoder.card.fingerprint), source).features
        for subject, encoder in subjects_of(plan, source).items()
        if subject != "colour"
    ]
    np.testing.assert_array_equal(*features)
    results = read_json(plan.result_folder / "results.json")
    values = {s: [x["value"] for x in results["scores"] if x["subject"] == s] for s in ("encoder", "random")}
    assert values["encoder"] == values["random"]
    assert counts(plan.pretrain_folder) == {"steps": 0}
    card = read_json(plan.pretrain_folder / "card.json")
    assert (card["method"], card["tile_px"], card["mpp"]) == ("random", None, None)


def test_the_best_encoder_of_a_training_is_no_longer_unbiased_where_another_test_is_drawn(
    planned: Callable[..., Plan],
) -> None:
    grouped = r"data.group_pattern='\d(\d)\d'"  # 000 to 023: three patients
    trained = planned(*DINO, *VIT, grouped)
    stages.run(trained)
    best = trained.pretrain_folder / "encoder_best.safetensors"
    flattered = {}
    for seed in range(4):
        plan = planned(
            "method=checkpoint", f"method.path={best}", *VIT, grouped, f"task.protocol.seed={seed}"
        )
        stages.run(plan)
        notes = read_json(plan.result_folder / "results.json")["notes"]
        flattered[seed] = any("its scores are flattered" in note for note in notes)
    assert not flattered[0]  # the test that its training kept away from
    assert any(flattered.values())


@pytest.mark.parametrize("name", ["last.ckpt", "encoder.safetensors"])
def test_our_own_files_come_back_as_the_encoder_that_they_were(
    planned: Callable[..., Plan], tiles: torch.Tensor, name: str
) -> None:
    trained = planned(*DINO, *VIT, "stages=[tile,pretrain]")
    stages.run(trained)
    path = trained.pretrain_folder / name
    again = planned("method=checkpoint", f"method.path={path}", *VIT, "stages=[pretrain]")
    stages.run(again)
    assert torch.equal(embedded(again, tiles), embedded(trained, tiles))
    was, card = (read_json(plan.pretrain_folder / "card.json") for plan in (trained, again))
    assert {k: v for k, v in card.items() if was[k] != v}.keys() == {"method", "fingerprint"}


def test_a_repository_s_model_is_exported_with_all_that_it_needs(
    planned: Callable[..., Plan], tiles: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(5)  # not the seed of the floor
    options = {"img_size": 32, "init_values": 0.5, "num_classes": 0}
    theirs = timm.create_model("test_vit", **options).eval()
    folder = tmp_path / "uni"
    folder.mkdir()
    facts = {"mean": [0.7, 0.6, 0.5], "std": [0.1, 0.2, 0.3], "input_size": [3, 32, 32], "num_classes": 0}
    config = {"architecture": "test_vit", "model_args": options, "pretrained_cfg": facts}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(theirs.state_dict(), folder / "model.safetensors")
    plan = planned("method=checkpoint", f"method.path=local-dir:{folder}", "backbone=hub")
    stages.run(plan)
    exported = load_encoder(plan.pretrain_folder / ENCODER)
    mean, std = (torch.tensor(facts[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = theirs((tiles / 255 - mean) / std)
    torch.testing.assert_close(exported(tiles), expected, rtol=0, atol=1e-6)
    assert exported.card.architecture["_target_"] == "histo_ssl.backbones.timm.timm_variant"
    assert (exported.card.mean, exported.card.tile_px) == ((0.7, 0.6, 0.5), 32)


def test_the_study_s_transfer_row_is_torchvision_s_resnet_without_its_last_stage(
    planned: Callable[..., Plan], tiles: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None).eval()
    home = tmp_path / "cache" / "models--timm--resnet50.tv_in1k"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(theirs.state_dict(), home / "snapshots" / ("0" * 40) / "model.safetensors")
    plan = planned("method=imagenet", "backbone=resnet50_trunc", "stages=[pretrain]")
    stages.run(plan)  # without any tiles: it has no use for them
    theirs.layer4 = theirs.fc = torch.nn.Identity()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = theirs((tiles / 255 - mean) / std)
    assert expected.shape == (3, 1024)
    torch.testing.assert_close(embedded(plan, tiles), expected, rtol=0, atol=1e-6)


def test_a_frozen_encoder_is_likened_to_those_of_its_own_method_and_backbone_alone(
    planned: Callable[..., Plan], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for overrides in (VIT, ["backbone=resnet18"]):
        stages.run(planned("method=random", *overrides, "stages=[pretrain]"))
    assert "new folder" not in caplog.text
    stages.run(planned("method=random", *VIT, "seed=2", "stages=[pretrain]"))
    assert "pretrain (random, timm): a new folder; nearest is random-timm-" in caplog.text
    assert "method.seed 0 -> 2" in caplog.text


def test_a_frozen_method_tiles_nothing_but_its_task(planned: Callable[..., Plan], tmp_path: Path) -> None:
    plan = planned("method=random", *VIT, "stages=[tile]", "tiling.size_px=16", "+tiling@task.tiling=native")
    assert plan.tile_folder != plan.task_tile_folder
    stages.run(plan)
    made = [path for path in (tmp_path / "runs" / "tiles").iterdir() if path.is_dir()]
    assert made == [plan.task_tile_folder]


def test_weights_that_are_out_of_reach_leave_no_finished_folder(planned: Callable[..., Plan]) -> None:
    plan = planned("method=imagenet", "backbone=resnet50_trunc", "stages=[pretrain]")
    with pytest.raises(InstantiationException, match=r"hf download timm/resnet50\.tv_in1k"):
        stages.run(plan)
    assert not is_done(plan.pretrain_folder)


def test_all_are_scored_on_the_tiles_that_each_could_read_and_the_lost_ones_are_told_of(
    planned: Callable[..., Plan], tmp_path: Path
) -> None:
    overrides = ("method=random", *VIT, "max_failed_tiles=0.1")
    plan = planned(*overrides, "stages=[tile,pretrain,embed]")
    stages.run(plan)
    source = open_source(plan.task_tile_folder)
    colour = subjects_of(plan, source)["colour"].card.fingerprint
    shutil.rmtree(plan.embedding_folder(colour))
    path = tmp_path / "images" / "A" / "004.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(len(whole) - 100))  # the same size, torn after the others were read
    stages.run(planned(*overrides))
    results = read_json(plan.result_folder / "results.json")
    assert "1 of 24 tiles could not be read and have no part in the scores" in results["notes"]
    assert results["counts"]["n_train"] + results["counts"]["n_test"] == 23
    predictions = pd.read_csv(plan.result_folder / "predictions.csv")
    tested = {subject: set(found["slide"]) for subject, found in predictions.groupby("subject")}
    assert tested["encoder"] == tested["colour"] == tested["random"]
    assert not any("004" in slide for slide in tested["encoder"])


def test_a_map_of_tiles_ends_in_a_page_that_shows_them(planned: Callable[..., Plan], tmp_path: Path) -> None:
    plan = planned("method=random", *VIT, "task=umap", "task.protocol.max_tiles=10")
    stages.run(plan)
    places = pd.read_csv(plan.result_folder / "predictions.csv", keep_default_na=False)
    shown = places[places["subject"] == "encoder"]
    assert [len(found) for _, found in places.groupby("subject")] == [10, 10, 10]
    sheet = np.asarray(Image.open(plan.result_folder / "thumbnails.png").resize((4, 3), Image.Resampling.BOX))
    for place, slide in enumerate(shown["slide"]):
        tile = np.asarray(Image.open(tmp_path / "images" / slide)).mean(axis=(0, 1))
        np.testing.assert_allclose(sheet[place // 4, place % 4], tile, atol=2)
    page = (tmp_path / "runs" / "report" / "runs" / f"{plan.pretrain_folder.name}.html").read_text()
    assert all(slide in page for slide in shown["slide"])


def test_what_could_not_be_scored_is_refused_before_the_training(
    planned: Callable[..., Plan], tmp_path: Path
) -> None:
    for split, label in (("train", "A"), ("train", "B"), ("test", "C")):
        folder = tmp_path / "images" / split / label
        shutil.copytree(tmp_path / "images" / ("A" if label == "C" else label), folder)
    for name in ("A", "B"):
        shutil.rmtree(tmp_path / "images" / name)
    plan = planned(*DINO, *VIT)
    with pytest.raises(ValueError, match="the test has tiles of class C, train has none"):
        stages.run(plan)
    assert not plan.pretrain_folder.exists()
    unscored = planned(*DINO, *VIT, "stages=[tile,pretrain,embed]")
    stages.run(unscored)
    assert is_done(unscored.pretrain_folder)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["task.tiling.mpp=1.0"],
            "an encoder of this run was trained at 0.5 um/px, these tiles have 1: .*embedding.any_mpp=true",
        ),
        (["task.tiling.size_px=30"], "task.tiling.size_px=30: test_vit cuts views into patches of 16 px"),
    ],
)
def test_tiles_that_the_encoder_could_not_embed_are_refused_before_the_training(
    planned: Callable[..., Plan], overrides: list[str], sentence: str
) -> None:
    plan = planned(*DINO, *VIT, "+tiling@task.tiling=native", "task.tiling.mpp=0.5", *overrides)
    with pytest.raises(ValueError, match=sentence):
        stages.run(plan)
    assert not plan.pretrain_folder.exists()
    if "mpp" in overrides[0]:
        stages.run(planned(*DINO, *VIT, "+tiling@task.tiling=native", *overrides, "embedding.any_mpp=true"))


def test_tiles_of_another_scale_are_not_finetuned_on_unless_that_is_asked_for(
    planned: Callable[..., Plan],
) -> None:
    trained = planned(*DINO, *VIT, "stages=[tile,pretrain]")
    stages.run(trained)
    given = ["method=checkpoint", f"method.path={trained.pretrain_folder / ENCODER}", *VIT]
    tuned = ["task=finetune", "task.protocol.tuning.epochs=1", "task.protocol.tuning.lrs=[1e-3]"]
    other = ["+tiling@task.tiling=native", "task.tiling.mpp=1.0"]
    with pytest.raises(ValueError, match=r"trained at 0\.5 um/px, these tiles have 1: .*any_mpp=true"):
        stages.run(planned(*given, *tuned, *other))
    plan = planned(*given, *tuned, *other, "embedding.any_mpp=true")
    stages.run(plan)
    results = read_json(plan.result_folder / "results.json")
    assert {score["subject"] for score in results["scores"]} == {"encoder", "random"}
    assert not list((plan.runs_dir / "embeddings").glob("*"))


def test_random_weights_are_finetuned_to_exactly_what_their_floor_is(planned: Callable[..., Plan]) -> None:
    tuned = ["task=finetune", "task.protocol.tuning.epochs=1", "task.protocol.tuning.lrs=[1e-3]"]
    plan = planned("method=random", *VIT, "seed=2", *tuned)
    stages.run(plan)
    predictions = pd.read_csv(plan.result_folder / "predictions.csv")
    encoder, random = (
        predictions[predictions["subject"] == who].drop(columns="subject").reset_index(drop=True)
        for who in ("encoder", "random")
    )
    pd.testing.assert_frame_equal(encoder, random, check_exact=True)
    notes = read_json(plan.result_folder / "results.json")["notes"]
    assert "colour has no weights that could be tuned: nothing to score" in notes
