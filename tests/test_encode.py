"""An encoder carries what one must know of it, and builds nothing at a stranger's word."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.encode import Card, Encoder, load_encoder, read_card, save_encoder

ARCHITECTURE = {"_target_": "histo_ssl.backbones.timm.timm_backbone", "name": "resnet18", "drop_path": 0.0}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    card = Card(
        architecture=ARCHITECTURE,
        dim=512,
        mean=(0.7, 0.5, 0.7),
        std=(0.2, 0.3, 0.2),
        tile_px=32,
        mpp=0.5,
        method="dino",
        fingerprint="0123456789",
    )
    return Encoder(timm_backbone(name="resnet18", drop_path=0.0).eval(), card)


def test_a_saved_encoder_comes_back_with_its_card_and_gives_the_same_embeddings(
    encoder: Encoder, tmp_path: Path
) -> None:
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    again = load_encoder(tmp_path / "encoder.safetensors")
    assert again.card == encoder.card
    tiles = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(again(tiles), encoder(tiles))


def test_tiles_are_normalised_as_the_card_says(encoder: Encoder) -> None:
    tile = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)  # 0.2 of 255
    normalised = torch.tensor([(0.2 - 0.7) / 0.2, (0.2 - 0.5) / 0.3, (0.2 - 0.7) / 0.2]).view(1, 3, 1, 1)
    expected = encoder.backbone(normalised.expand(1, 3, 32, 32))
    torch.testing.assert_close(encoder(tile), expected)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 3, 16, 48), (0, 3, 8, 8)])
@pytest.mark.parametrize("as_read", [True, False])
def test_the_layout_of_tiles_changes_no_bit(
    encoder: Encoder, shape: tuple[int, int, int, int], *, as_read: bool
) -> None:
    tiles = torch.randint(0, 256, shape, dtype=torch.uint8)
    given = tiles.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if as_read else tiles
    kept = given.clone()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.card.mean, encoder.card.std))
    assert torch.equal(encoder.fed(given), (tiles.float() / 255 - mean) / std)
    assert torch.equal(given, kept)


def test_an_encoder_refuses_tiles_of_another_scale_unless_told(encoder: Encoder) -> None:
    encoder.check_scale(0.504, any_mpp=False)
    encoder.check_scale(None, any_mpp=False)
    encoder.check_scale(1.0, any_mpp=True)
    with pytest.raises(
        ValueError, match=r"trained at 0.5 um/px, these tiles have 1: .* embedding.any_mpp=true"
    ):
        encoder.check_scale(1.0, any_mpp=False)


@pytest.mark.parametrize(
    "architecture",
    [
        {"_target_": "os.system", "command": "touch pwned"},
        {"_target_": "histo_ssl.folders.artifacts.os.system", "command": "touch pwned"},
        {"_target_": "histo_ssl.backbones.timm.timm.create_model", "model_name": "resnet18"},
        {"_target_": "histo_ssl.backbones.timm.check_name", "name": "resnet18"},  # builds nothing
        {"_target_": "histo_ssl.backbones.timm._create", "name": "resnet18", "drop_path": 0.0},
        {"_target_": "histo_ssl.backbones.nothing.here"},
        {"_target_": "histo_ssl.backbones.timm.timm_backbone", "weights": "https://evil"},
        {"_target_": "histo_ssl.backbonesx.y"},
        {"_target_": None},
        {},
    ],
)
def test_a_card_can_name_only_our_own_architectures(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.safetensors"
    card = {**vars(encoder.card), "architecture": architecture}
    save_file({"x": torch.zeros(1)}, path, metadata={"card": json.dumps(card)})
    with pytest.raises(ValueError, match=r"evil\.safetensors: its card asks for .*: only architectures of"):
        load_encoder(path)
    assert [found.name for found in tmp_path.iterdir()] == ["evil.safetensors"]


@pytest.mark.parametrize(
    "card", ["no json", "[]", "{}", '{"mean": 1}', "null", '{"mean":[],"std":[],"architecture":3}']
)
def test_a_card_of_garbage_is_refused(tmp_path: Path, card: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"card": card})
    with pytest.raises(ValueError, match=r"x\.safetensors: its encoder's card can't be read"):
        load_encoder(tmp_path / "x.safetensors")


def test_weights_of_another_architecture_and_a_torn_file_are_refused(
    encoder: Encoder, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"card": json.dumps(vars(encoder.card))})
    with pytest.raises(ValueError, match=r"x\.safetensors: its weights don't fit its card's architecture"):
        load_encoder(path)
    save_encoder(path, encoder)
    whole = path.read_bytes()
    for n_bytes in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(ValueError, match=r"x\.safetensors: not a whole safetensors file"):
            load_encoder(path)
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ValueError, match=r"x\.safetensors: not a whole safetensors file"):
        load_encoder(path)


def test_a_file_without_a_card_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="without an encoder's card"):
        read_card(tmp_path / "plain.safetensors")
