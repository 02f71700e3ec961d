"""Methods that train nothing: what they load, what they say of it, and what their folders depend on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from histo_ssl.config.plan import Plan
from histo_ssl.methods.frozen import Feeding, FrozenMethod

Compose = Callable[..., Plan]


def made(plan: Plan) -> FrozenMethod:
    method: FrozenMethod = instantiate(plan.group("method"), backbone=instantiate(plan.group("backbone")))
    return method


@pytest.fixture
def resnet_file(tmp_path: Path) -> Path:
    """A checkpoint of torchvision's ResNet-18."""
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def test_random_weights_are_those_of_the_floor_of_the_same_seed(compose: Compose) -> None:
    plan = compose("method=random", "backbone=vit_t", "seed=3")
    torch.manual_seed(3)
    floor: nn.Module = instantiate(plan.group("backbone"))()
    for (name, a), b in zip(
        floor.state_dict().items(), made(plan).encoder().state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_checkpoint_s_card_takes_from_the_configuration_what_the_file_does_not_say(
    compose: Compose, resnet_file: Path
) -> None:
    halves = "[0.5,0.5,0.5]"
    plan = compose(
        "method=checkpoint",
        "backbone=resnet18",
        f"method.path={resnet_file}",
        f"method.mean={halves}",
        f"method.std={halves}",
        "method.tile_px=256",
        "method.mpp=0.5",
    )
    feeding = made(plan).feeding
    assert (feeding.mean, feeding.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (feeding.tile_px, feeding.mpp) == (256, 0.5)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], r"method.path is missing: give a checkpoint"),
        (["method.path=none.pth"], r"none.pth: no such file of weights"),
        (
            ["method.path={file}"],
            r"does not say which mean its RGB is normalised by: set method.mean, \[0.485",
        ),
        (["method.path={file}", "method.mean=[0.5,0.5,0.5]"], r"does not say which std .* set method.std"),
        (["method.path={file}", "method.mean=[0.5]"], r"method.mean=\[0.5\]: three numbers"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(
    compose: Compose, resnet_file: Path, overrides: list[str], sentence: str
) -> None:
    given = [override.format(file=resnet_file) for override in overrides]
    with pytest.raises(InstantiationException, match=sentence) as caught:
        made(compose("method=checkpoint", "backbone=resnet18", *given))
    assert isinstance(caught.value.__cause__, ValueError | FileNotFoundError)


class Tokens(nn.Module):
    """Ends in tokens where features are expected."""

    num_features = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), 10, 4)


def test_an_encoder_that_does_not_end_in_features_is_refused() -> None:
    feeding = Feeding(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), tile_px=None, mpp=None)
    method = FrozenMethod(encoder=Tokens(), feeding=feeding)
    with pytest.raises(ValueError, match=r"makes \(1, 10, 4\) of one tile of 224 px; expected \(1, 4\)"):
        method.check()


@pytest.mark.parametrize(
    "override",
    ["data=slides", "tiling=study", "views=pair", "training.epochs=9", "training.batch_size=7", "seed=5"],
)
def test_an_encoder_that_is_not_trained_depends_on_no_training(compose: Compose, override: str) -> None:
    chosen = ("method=imagenet", "backbone=resnet50_trunc")
    base, other = compose(*chosen), compose(*chosen, override)
    assert other.pretrain_folder == base.pretrain_folder
    assert base.pretrain_folder.name.rpartition("-")[0] == "imagenet-resnet50_trunc"


@pytest.mark.parametrize("override", ["backbone=resnet50", "method.tags.resnet50=tv2_in1k"])
def test_another_backbone_or_tag_is_another_encoder(compose: Compose, override: str) -> None:
    base = compose("method=imagenet", "backbone=resnet50_trunc")
    changed = {"method=imagenet", override} | (
        set() if "backbone" in override else {"backbone=resnet50_trunc"}
    )
    assert compose(*sorted(changed, reverse=True)).pretrain_folder != base.pretrain_folder


def test_random_weights_depend_on_the_seed(compose: Compose) -> None:
    folders = {compose("method=random", "backbone=vit_t", f"seed={seed}").pretrain_folder for seed in (0, 1)}
    assert len(folders) == 2


def test_a_checkpoint_is_known_by_its_content_not_by_its_name(compose: Compose, tmp_path: Path) -> None:
    def fingerprint(path: Path) -> str:
        return compose("method=checkpoint", "backbone=vit_t", f"method.path={path}").encoder_fingerprint

    first, copy = tmp_path / "a.pth", tmp_path / "b.pth"
    first.write_bytes(b"1234")
    copy.write_bytes(b"1234")
    before = fingerprint(first)
    assert fingerprint(copy) == before
    copy.write_bytes(b"1235")  # of the same size
    assert fingerprint(copy) != before
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"1234")
    in_folder = fingerprint(Path(f"local-dir:{tmp_path}/folder"))
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"1235")
    assert fingerprint(Path(f"local-dir:{tmp_path}/folder")) != in_folder


def test_an_architecture_of_a_folder_counts_by_what_is_in_it_and_a_name_by_itself(
    compose: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").write_text("a file of that name in the folder of the command")
    names = ("backbone=resnet18", "method=dino"), ("backbone=resnet18", "method=random")
    before = [compose(*overrides).encoder_fingerprint for overrides in names]
    (tmp_path / "resnet18").unlink()
    assert [compose(*overrides).encoder_fingerprint for overrides in names] == before

    def of_folder(folder: Path, method: str) -> str:
        return compose(
            "backbone=hub", f"backbone.name=local-dir:{folder}", f"method={method}"
        ).encoder_fingerprint

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"architecture": "resnet18"}')
    for method in ("dino", "random"):
        same = of_folder(tmp_path / "one", method)
        assert of_folder(tmp_path / "two", method) == same
        (tmp_path / "two" / "config.json").write_text('{"architecture": "resnet34"}')
        assert of_folder(tmp_path / "two", method) != same
        (tmp_path / "two" / "config.json").write_text('{"architecture": "resnet18"}')
