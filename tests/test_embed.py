"""Embeddings of files are those of a plain forward pass, and those of no other tiles."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import Loading
from histo_ssl.embed import Embedding, embed_tiles, load_embeddings
from histo_ssl.embeddings import UNREADABLE
from histo_ssl.encode import Encoder
from histo_ssl.tasks.floors import colour_floor

Source = Callable[[int], TileSource]
LOADING = Loading(n_workers=0, start_method="fork", timeout_s=0)


def _how(*, max_failed: float = 0.0, dtype: str = "float32", precision: str = "32-true") -> Embedding:
    rounding = {"dtype": dtype, "precision": precision}
    return Embedding(batch_size=3, loading=LOADING, **rounding, any_mpp=False, max_failed=max_failed)


def _embed(
    source: TileSource, folder: Path, *, max_failed: float = 0.0, dtype: str = "float32"
) -> dict[str, int]:
    how = _how(max_failed=max_failed, dtype=dtype)
    return embed_tiles(colour_floor(source), source, folder=folder, how=how)


def _tear(source: TileSource, row: int) -> Path:
    """Cut the file of a tile short."""
    path = Path(source.images["path"][row])
    path.write_bytes(path.read_bytes()[:100])
    return path


def test_embeddings_of_files_are_those_of_one_forward_pass(image_source: Source, tmp_path: Path) -> None:
    source = image_source(7)
    assert _embed(source, tmp_path) == {"tiles": 7, "files": 1, UNREADABLE: 0}
    embeddings = load_embeddings(tmp_path, source)
    tiles = torch.from_numpy(np.stack([source.read(i) for i in range(7)])).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(embeddings.features, colour_floor(source)(tiles).numpy())
    assert embeddings.row.tolist() == list(range(7))
    assert embeddings.label.tolist() == source.table()["label"].tolist()


def test_half_precision_takes_half_the_space_and_rounds_by_a_part_in_two_thousand(
    image_source: Source, tmp_path: Path
) -> None:
    source = image_source(7)
    _embed(source, tmp_path / "exact")
    _embed(source, tmp_path / "half", dtype="float16")
    with h5py.File(tmp_path / "half" / f"{source.parts()[0].name}.h5") as file:
        assert file["features"].dtype == np.float16
    exact, half = (load_embeddings(tmp_path / name, source).features for name in ("exact", "half"))
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, exact.astype(np.float16))
    np.testing.assert_allclose(half, exact, rtol=2**-11, atol=2**-25)


class Product(nn.Module):
    """Two numbers of a tile's means, by one product of matrices; notes the type that it is made in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)
        self.dtypes: set[torch.dtype] = set()
        nn.init.constant_(self.layer.weight, 1 / 3)

    def forward(self, tiles_B3SS: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layer(tiles_B3SS.mean(dim=(2, 3)))
        self.dtypes.add(made.dtype)
        return made


def test_a_forward_pass_in_bfloat16_is_rounded_to_its_eight_bits_and_kept_in_float32(
    image_source: Source, tmp_path: Path
) -> None:
    source, features, product = image_source(7), {}, Product()
    card = replace(colour_floor(source).card, dim=2)
    for precision, dtype in {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}.items():
        product.dtypes.clear()
        how = _how(precision=precision)
        embed_tiles(Encoder(product, card), source, folder=tmp_path / precision, how=how)
        assert product.dtypes == {dtype}
        features[precision] = load_embeddings(tmp_path / precision, source).features
    exact, rounded = features["32-true"], features["bf16-mixed"]
    assert (exact != rounded).any()
    np.testing.assert_allclose(rounded, exact, rtol=2**-6)  # of inputs, weights and outputs, 2^-9 each


def test_the_next_batch_is_asked_for_before_the_last_one_of_a_slide_is_written(
    image_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histo_ssl.data.images.PART_TILES", 3)
    source, there = image_source(7), []

    class Watched(Product):
        def forward(self, tiles_B3SS: torch.Tensor) -> torch.Tensor:
            there.append(len(list(tmp_path.glob("*.h5"))))
            return super().forward(tiles_B3SS)

    card = replace(colour_floor(source).card, dim=2)
    embed_tiles(Encoder(Watched(), card), source, folder=tmp_path, how=_how())
    assert there == [0, 0, 1]  # batches are slides here: the second is begun before the first is written


@dataclass
class Noted:
    """Tiles that leave a file once they are asked for."""

    source: TileSource
    folder: Path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["source"], name)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> np.ndarray:
        (self.folder / str(i)).touch()
        return self.source.read(i)


def test_the_next_slide_is_read_while_one_is_computed(
    image_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histo_ssl.data.images.PART_TILES", 3)
    source, began = image_source(9), []
    asked_for = tmp_path / "asked for"
    asked_for.mkdir()

    class Patient(Product):
        def forward(self, tiles_B3SS: torch.Tensor) -> torch.Tensor:
            began.append(3 * (len(began) + 1))  # the first tile of the slide after this one
            give_up_at = time.monotonic() + 60
            while began[-1] < 9 and not (asked_for / str(began[-1])).exists():
                assert time.monotonic() < give_up_at, "computing waits for reading and reading for computing"
                time.sleep(0.01)
            return super().forward(tiles_B3SS)

    loading = replace(LOADING, n_workers=1, timeout_s=60)
    encoder = Encoder(Patient(), replace(colour_floor(source).card, dim=2))
    (tmp_path / "made").mkdir()
    how = replace(_how(), loading=loading)
    embed_tiles(encoder, Noted(source, asked_for), folder=tmp_path / "made", how=how)
    assert began == [3, 6, 9]
    assert len(load_embeddings(tmp_path / "made", source)) == 9


def test_embedding_goes_on_where_it_stopped(
    image_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histo_ssl.data.images.PART_TILES", 2)
    source = image_source(5)
    _embed(source, tmp_path)
    names = [part.name for part in source.parts()]
    assert [part.stop - part.start for part in source.parts()] == [2, 2, 1]
    before = {name: (tmp_path / f"{name}.h5").stat().st_mtime_ns for name in names}
    whole = load_embeddings(tmp_path, source).features
    (tmp_path / f"{names[1]}.h5").unlink()
    _embed(source, tmp_path)
    after = {name: (tmp_path / f"{name}.h5").stat().st_mtime_ns for name in names}
    assert [before[name] == after[name] for name in names] == [True, False, True]
    np.testing.assert_array_equal(load_embeddings(tmp_path, source).features, whole)


def test_embeddings_of_other_images_are_noticed_although_all_their_positions_are_zero(
    image_source: Source, tmp_path: Path
) -> None:
    source, other = image_source(4), image_source(4)
    _embed(source, tmp_path)
    assert len(load_embeddings(tmp_path, source)) == 4
    assert other.table()["slide"].tolist() == source.table()["slide"].tolist()
    other.images.loc[1, "path"] = other.images.loc[1, "path"].replace("002", "902")
    other._paths = source._paths
    with pytest.raises(ValueError, match="embeddings are of other tiles than the index lists"):
        load_embeddings(tmp_path, other)
    _embed(other, tmp_path)  # a file of other tiles, or a torn one, is made again
    assert len(load_embeddings(tmp_path, other)) == 4


@pytest.mark.parametrize("n_bytes", [0, 100, -1])
def test_a_torn_file_of_embeddings_is_made_again(image_source: Source, tmp_path: Path, n_bytes: int) -> None:
    source = image_source(3)
    _embed(source, tmp_path)
    path = tmp_path / f"{source.parts()[0].name}.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:n_bytes])
    _embed(source, tmp_path)
    assert path.read_bytes() == whole


def test_a_tile_that_cannot_be_read_is_left_out_and_told_of(
    image_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("histo_ssl.data.images.PART_TILES", 4)
    source = image_source(7)
    _embed(source, tmp_path / "whole")
    whole = load_embeddings(tmp_path / "whole", source)
    torn = [_tear(source, row) for row in (1, 6)]
    counted = _embed(source, tmp_path / "torn", max_failed=0.3)
    assert counted == {"tiles": 7, "files": 2, UNREADABLE: 2}
    left = load_embeddings(tmp_path / "torn", source)
    assert left.row.tolist() == [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(left.features, whole.features[left.row])
    assert left.slide.tolist() == whole.slide[left.row].tolist()
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 2
    assert all(str(path) in line for path, line in zip(torn, told, strict=True))
    assert _embed(source, tmp_path / "torn", max_failed=0.3) == counted  # it was found before, and is no news


def test_too_many_tiles_that_cannot_be_read_stop_the_embedding_and_are_named(
    image_source: Source, tmp_path: Path
) -> None:
    source = image_source(7)
    path = _tear(source, 3)
    with pytest.raises(
        ValueError, match=rf"1 of 7 tiles can't be read, .*max_failed_tiles=0\.1 .*{path.name}"
    ):
        _embed(source, tmp_path, max_failed=0.1)
    assert _embed(source, tmp_path, max_failed=1 / 7)[UNREADABLE] == 1


def test_no_tile_that_can_be_read_is_no_embedding(image_source: Source, tmp_path: Path) -> None:
    source = image_source(2)
    _tear(source, 0), _tear(source, 1)
    assert _embed(source, tmp_path, max_failed=1.0) == {"tiles": 2, "files": 1, UNREADABLE: 2}
    assert load_embeddings(tmp_path, source).features.shape == (0, colour_floor(source).card.dim)


def test_embeddings_of_an_image_that_was_another_one_under_its_name_are_noticed(
    image_source: Source, tmp_path: Path
) -> None:
    source, other = image_source(4), image_source(4)
    _embed(source, tmp_path)
    other.images.loc[2, "n_bytes"] += "0"
    with pytest.raises(ValueError, match="embeddings are of other tiles than the index lists"):
        load_embeddings(tmp_path, other)
