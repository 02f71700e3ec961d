"""Repositories in timm's layout, as a folder and as the hub's cache keeps them; no test has a network."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from histo_ssl.backbones.hub import (
    hub_backbone,
    open_repository,
    repository_weights,
    self_contained,
    supervised_weights,
)
from histo_ssl.backbones.resnet_trunc import truncated_resnet
from histo_ssl.backbones.timm import timm_backbone, timm_variant
from histo_ssl.backbones.weights import load_weights

COMMIT = "0" * 40
# what UNI's config.json holds, with a smaller ViT: layer scale, and a size that is not the architecture's own
OPTIONS = {"img_size": 96, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}
MEAN, STD = [0.7, 0.6, 0.5], [0.1, 0.2, 0.3]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub where nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = timm.create_model("test_vit", **OPTIONS).eval()
    with torch.no_grad():  # layer scale is born at 1e-5: wake it, or every model is alike
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made


@pytest.fixture
def repository(tmp_path: Path, model: nn.Module) -> Callable[..., Path]:
    """Writes a folder as a model's owner uploads it."""

    def write(*, weights: str = "model.safetensors", **changes: Any) -> Path:
        folder = tmp_path / "repository"
        folder.mkdir(exist_ok=True)
        config = {
            "architecture": "test_vit",
            "num_classes": 0,
            "num_features": 64,
            "global_pool": "token",
            "model_args": OPTIONS,
            "pretrained_cfg": {
                "tag": "uni_mass100k",
                "custom_load": False,
                "input_size": [3, 96, 96],
                "fixed_input_size": True,
                "mean": MEAN,
                "std": STD,
                "num_classes": 0,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        }
        (folder / "config.json").write_text(json.dumps(config | changes))
        if weights == "model.safetensors":
            save_file(model.state_dict(), folder / weights)
        else:
            torch.save(model.state_dict(), folder / weights)
        return folder

    return write


def into_cache(folder: Path, cache: Path, name: str) -> None:
    """What the hub's client leaves behind when it has downloaded a repository."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, home / "snapshots" / COMMIT)


def tiles(side: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("place", ["local-dir:{folder}", "hf-hub:owner/uni", "hf-hub:owner/uni@main"])
def test_a_repository_gives_its_own_architecture_weights_and_normalisation(
    repository: Callable[..., Path], model: nn.Module, cache: Path, weights: str, place: str
) -> None:
    folder = repository(weights=weights)
    into_cache(folder, cache, "owner/uni")
    name = place.format(folder=folder)
    ours = hub_backbone(name=name, drop_path=0.0).eval()
    found = repository_weights(name)
    load_weights(ours, found)
    for side in (96, 64):
        with torch.no_grad():
            torch.testing.assert_close(ours(tiles(side)), model(tiles(side)), rtol=0, atol=1e-6)
    assert found.normalisation == ((0.7, 0.6, 0.5), (0.1, 0.2, 0.3))
    assert (found.tile_px, found.mpp) == (96, None)


def test_an_older_repository_keeps_all_in_one_mapping(tmp_path: Path, model: nn.Module) -> None:
    facts = {"mean": MEAN, "std": STD, "input_size": [3, 160, 160], "num_classes": 0}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", **facts}))
    found = open_repository(f"local-dir:{tmp_path}")
    assert (found.architecture, found.options) == ("test_vit", {})
    assert (list(found.facts["mean"]), list(found.facts["std"])) == (MEAN, STD)


def test_a_card_s_architecture_needs_no_repository(repository: Callable[..., Path], model: nn.Module) -> None:
    name = f"local-dir:{repository()}"
    target = "histo_ssl.backbones.hub.hub_backbone"
    card = self_contained({"_target_": target, "name": name, "drop_path": 0.0})
    assert card.pop("_target_") == "histo_ssl.backbones.timm.timm_variant"
    rebuilt = timm_variant(**json.loads(json.dumps(card))).eval()
    rebuilt.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(tiles()), model(tiles()), rtol=0, atol=1e-6)
    plain = {"_target_": "histo_ssl.backbones.timm.timm_backbone", "name": "resnet18", "drop_path": 0.0}
    assert self_contained(plain) == plain


def test_weights_that_do_not_fit_their_config_are_refused(repository: Callable[..., Path]) -> None:
    folder = repository(model_args={**OPTIONS, "init_values": None})
    with pytest.raises(
        ValueError, match=r"timm can't load model.safetensors as test_vit: .*ls1.gamma"
    ) as caught:
        repository_weights(f"local-dir:{folder}")
    assert "\n" not in str(caught.value)


def test_a_repository_for_another_library_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 768}))
    with pytest.raises(ValueError, match=r"names no architecture of timm \(model_type vit\)"):
        open_repository(f"local-dir:{tmp_path}")


def test_a_name_that_is_no_repository_is_told_what_one_looks_like() -> None:
    with pytest.raises(ValueError, match=r"backbone.name=: expected hf-hub:owner/name or local-dir:folder"):
        hub_backbone(name="", drop_path=0.0)


def test_a_card_can_make_timm_load_nothing() -> None:
    with pytest.raises(ValueError, match=r"backbone.options: checkpoint_path, pretrained would load weights"):
        timm_variant(name="test_vit", drop_path=0.0, options={"pretrained": True, "checkpoint_path": "/x"})


def test_a_folder_without_weights_says_which_files_it_lacks(repository: Callable[..., Path]) -> None:
    folder = repository()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors or pytorch_model.bin in that folder"):
        repository_weights(f"local-dir:{folder}")


def test_a_pickle_in_a_repository_is_not_run(repository: Callable[..., Path], tmp_path: Path) -> None:
    folder = repository()
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1), "evil": Path(tmp_path)}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: refused and not run, since it asks for pathlib"
    ):
        repository_weights(f"local-dir:{folder}")


@pytest.mark.parametrize("is_offline", [True, False])
def test_without_a_hub_a_sentence_says_what_to_put_where_and_it_comes_soon(
    cache: Path, monkeypatch: pytest.MonkeyPatch, is_offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    started = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        supervised_weights(truncated_resnet(name="resnet50", drop_path=0.0), {"resnet50": "tv_in1k"})
    assert time.monotonic() - started < 10
    for part in (
        "hf-hub:timm/resnet50.tv_in1k: no model.safetensors in the cache ",
        str(cache),
        "HF_HUB_OFFLINE is set" if is_offline else "http://127.0.0.1:9 can't be reached",
        "'hf download timm/resnet50.tv_in1k'",
        "models--timm--resnet50.tv_in1k",
        "HF_HUB_CACHE",
        "method.path=FILE",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torchvision_s_resnet_from_timm_s_place_in_the_cache_gives_the_study_s_features(
    cache: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    (tmp_path / "uploaded").mkdir()
    save_file(theirs.state_dict(), tmp_path / "uploaded" / "model.safetensors")
    into_cache(tmp_path / "uploaded", cache, "timm/resnet18.tv_in1k")
    ours = truncated_resnet(name="resnet18", drop_path=0.0).eval()
    weights = supervised_weights(ours, {"resnet18": "tv_in1k"})
    load_weights(ours, weights)
    theirs.layer4 = theirs.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(ours(tiles()), theirs(tiles()), rtol=0, atol=1e-6)
    # torchvision's documentation of ResNet18_Weights.IMAGENET1K_V1
    assert weights.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert weights.tile_px == 224


def test_half_of_the_weights_is_not_enough(cache: Path, tmp_path: Path) -> None:
    half = torchvision.models.resnet18(weights=None).state_dict()
    del half["layer2.0.conv1.weight"]
    (tmp_path / "uploaded").mkdir()
    save_file(half, tmp_path / "uploaded" / "model.safetensors")
    into_cache(tmp_path / "uploaded", cache, "timm/resnet18.tv_in1k")
    with pytest.raises(
        ValueError, match=r"can't load model.safetensors as resnet18: .*layer2.0.conv1.weight"
    ):
        supervised_weights(timm_backbone(name="resnet18", drop_path=0.0), {"resnet18": "tv_in1k"})


def test_an_unknown_tag_is_answered_with_those_that_there_are(cache: Path) -> None:
    with pytest.raises(
        ValueError, match=r"method.tags.resnet18=best: timm \S+ has no such .*resnet18.tv_in1k"
    ):
        supervised_weights(timm_backbone(name="resnet18", drop_path=0.0), {"resnet18": "best"})


def test_an_architecture_that_is_not_listed_gets_timm_s_default(cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hf-hub:timm/resnet18.a1_in1k: no model.safetensors"):
        supervised_weights(timm_backbone(name="resnet18", drop_path=0.0), {})
