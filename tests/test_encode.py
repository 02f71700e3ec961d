"""An encoder carries what one must know of it, and its embeddings are those of a plain forward pass."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.encode import (
    Card,
    Encoder,
    embed_tiles,
    load_embeddings,
    load_encoder,
    read_card,
    save_encoder,
)

Source = Callable[[int], TileSource]
LOADING = Loading(n_workers=0, start_method="fork", timeout_s=0)
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


def _embed(encoder: Encoder, source: TileSource, folder: Path) -> dict[str, int]:
    return embed_tiles(encoder, source, folder=folder, batch_size=3, loading=LOADING, any_mpp=False)


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


def test_embeddings_of_files_are_those_of_one_forward_pass(
    encoder: Encoder, image_source: Source, tmp_path: Path
) -> None:
    source = image_source(7)
    assert _embed(encoder, source, tmp_path) == {"tiles": 7, "files": 1}
    embeddings = load_embeddings(tmp_path, source)
    tiles = torch.from_numpy(np.stack([source.read(i) for i in range(7)])).permute(0, 3, 1, 2)
    np.testing.assert_allclose(
        embeddings.features, encoder(tiles).numpy(), rtol=2e-3, atol=2e-3
    )  # float16 on disk
    assert embeddings.label.tolist() == source.table()["label"].tolist()


def test_embedding_goes_on_where_it_stopped(
    encoder: Encoder, image_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histo_ssl.data.images.PART_TILES", 2)
    source = image_source(5)
    _embed(encoder, source, tmp_path)
    names = [part.name for part in source.parts()]
    assert [part.stop - part.start for part in source.parts()] == [2, 2, 1]
    before = {name: (tmp_path / f"{name}.h5").stat().st_mtime_ns for name in names}
    whole = load_embeddings(tmp_path, source).features
    (tmp_path / f"{names[1]}.h5").unlink()
    _embed(encoder, source, tmp_path)
    after = {name: (tmp_path / f"{name}.h5").stat().st_mtime_ns for name in names}
    assert [before[name] == after[name] for name in names] == [True, False, True]
    np.testing.assert_array_equal(load_embeddings(tmp_path, source).features, whole)


def test_embeddings_of_other_images_are_noticed_although_all_their_positions_are_zero(
    encoder: Encoder, image_source: Source, tmp_path: Path
) -> None:
    source, other = image_source(4), image_source(4)
    _embed(encoder, source, tmp_path)
    assert len(load_embeddings(tmp_path, source)) == 4
    assert other.table()["slide"].tolist() == source.table()["slide"].tolist()
    other.images.loc[1, "path"] = other.images.loc[1, "path"].replace("002", "902")
    other._paths = source._paths
    with pytest.raises(ValueError, match="embeddings are of other tiles than the index lists"):
        load_embeddings(tmp_path, other)
    _embed(encoder, other, tmp_path)  # a file of other tiles, or a torn one, is made again
    assert len(load_embeddings(tmp_path, other)) == 4


@pytest.mark.parametrize("n_bytes", [0, 100, -1])
def test_a_torn_file_of_embeddings_is_made_again(
    encoder: Encoder, image_source: Source, tmp_path: Path, n_bytes: int
) -> None:
    source = image_source(3)
    _embed(encoder, source, tmp_path)
    path = tmp_path / f"{source.parts()[0].name}.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:n_bytes])
    _embed(encoder, source, tmp_path)
    assert path.read_bytes() == whole
