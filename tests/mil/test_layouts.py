"""Files of other programs are read as they are, and say of their tiles what they say."""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from histo_ssl.embeddings import write_embeddings
from histo_ssl.mil.features import open_features

N, D = 70, 6
FEATURES = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
COORDS = np.stack([512 * (np.arange(N) % 9), 512 * (np.arange(N) // 9)], axis=1)
ROWS = np.array([0, 3, 4, 31, 32, 69])
NO_MPP = math.nan


def _holds(path: Path, features: NDArray[np.floating], *, dtype: type) -> None:
    """The file's features, whole and in part."""
    found = open_features(path)
    assert (found.n_tiles, found.dim, found.read().dtype) == (N, D, dtype)
    np.testing.assert_array_equal(found.read(), features)
    np.testing.assert_array_equal(found.read(ROWS), features[ROWS])
    assert found.read(ROWS[:0]).shape == (0, D)


def test_clams_file_is_read_as_it_is(programs: Any, tmp_path: Path) -> None:
    path = tmp_path / "h5_files" / "S1.h5"
    programs.clams_file(path, FEATURES, COORDS)
    _holds(path, FEATURES, dtype=np.float32)
    found = open_features(path)
    np.testing.assert_array_equal(found.coords(slide_mpp=NO_MPP), COORDS)
    assert (found.layout.name, found.layout.encoder, found.layout.side_level0(0.25)) == ("clam", "", None)


def test_the_side_of_clams_tiles_is_known_where_the_attributes_of_its_patches_were_kept(
    programs: Any,
    tmp_path: Path,
) -> None:
    path = tmp_path / "S1.h5"
    programs.clams_file(path, FEATURES, COORDS)
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])})
    assert open_features(path).layout.side_level0(NO_MPP) == 1024


def test_an_axis_of_length_one_between_or_before_is_no_obstacle(programs: Any, tmp_path: Path) -> None:
    programs.clams_file(tmp_path / "between.h5", FEATURES[:, None], COORDS)
    _holds(tmp_path / "between.h5", FEATURES, dtype=np.float32)
    with h5py.File(tmp_path / "before.h5", "w") as file:
        file["features"], file["coords"] = FEATURES[None], COORDS[None]
    _holds(tmp_path / "before.h5", FEATURES, dtype=np.float32)
    np.testing.assert_array_equal(open_features(tmp_path / "before.h5").coords(slide_mpp=NO_MPP), COORDS)
    with h5py.File(tmp_path / "chunked.h5", "w") as file:
        file.create_dataset("features", data=FEATURES[None], chunks=(1, 16, 4), compression="gzip")
        file["coords"] = COORDS
    _holds(tmp_path / "chunked.h5", FEATURES, dtype=np.float32)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (torch.from_numpy(FEATURES), np.float32),
        (torch.from_numpy(FEATURES).half(), np.float16),
        (torch.from_numpy(FEATURES).bfloat16(), np.float32),
        (torch.from_numpy(FEATURES).double(), np.float32),
        (torch.from_numpy(FEATURES)[:, None].requires_grad_(), np.float32),
    ],
)
def test_clams_tensors_are_read_in_the_types_that_torch_has(
    tmp_path: Path, stored: torch.Tensor, dtype: type, is_zip: bool
) -> None:
    path = tmp_path / "pt_files" / "S1.pt"
    path.parent.mkdir()
    torch.save(stored, path, _use_new_zipfile_serialization=is_zip)
    _holds(path, stored.detach().float().reshape(N, D).numpy(), dtype=dtype)


def test_a_tensor_alone_has_no_positions_and_says_so(programs: Any, tmp_path: Path) -> None:
    programs.clams_tensor(tmp_path / "S1.pt", FEATURES)
    with pytest.raises(ValueError, match=r"S1\.pt: it has no positions .* no map can be drawn; give HDF5"):
        open_features(tmp_path / "S1.pt").coords(slide_mpp=0.25)


def test_tridents_file_says_how_its_tiles_were_cut_and_by_which_encoder_they_were_seen(
    programs: Any,
    tmp_path: Path,
) -> None:
    path = tmp_path / "20x_256px_0px_overlap" / "features_uni_v1" / "S1.h5"
    programs.tridents_file(path, FEATURES.astype(np.float16), COORDS)
    _holds(path, FEATURES.astype(np.float16), dtype=np.float16)
    found = open_features(path)
    np.testing.assert_array_equal(found.coords(slide_mpp=NO_MPP), COORDS)
    layout = found.layout
    assert (layout.name, layout.encoder, layout.tile_px) == ("trident", "uni_v1", 256)
    assert layout.side_level0(NO_MPP) == 512
    assert layout.mpp is None  # magnifications are all that it states
    with h5py.File(path, "a") as file:
        file["features"].attrs["encoder"] = "conch_v15"
        del file["coords"].attrs["patch_size_level0"]
    assert open_features(path).layout.encoder == "conch_v15"
    assert open_features(path).layout.side_level0(NO_MPP) == 256 * 40 / 20


@pytest.mark.parametrize(
    ("version", "tile_px", "unit_um"), [("2.3.0", 224, 1.0), ("2.0.1", None, 1.0), ("1.0.3", 224, 256 / 224)]
)
def test_stamps_positions_become_level_0_px_by_the_um_per_px_of_the_slide(
    programs: Any, tmp_path: Path, version: str, tile_px: int | None, unit_um: float
) -> None:
    um = COORDS / 2  # tiles of 256 um, 512 px apart at 0.5 um/px
    programs.stamps_file(tmp_path / "S1.h5", FEATURES, um / unit_um, version=version)
    _holds(tmp_path / "S1.h5", FEATURES.astype(np.float16), dtype=np.float16)
    found = open_features(tmp_path / "S1.h5")
    np.testing.assert_array_equal(found.coords(slide_mpp=0.5), COORDS)
    np.testing.assert_array_equal(found.coords(slide_mpp=0.25), 2 * COORDS)
    with pytest.raises(
        ValueError, match=r"positions are in um, .* need its um/px; state them in the slide list"
    ):
        found.coords(slide_mpp=NO_MPP)
    layout = found.layout
    assert (layout.name, layout.tile_um, layout.tile_px) == ("stamp", 256, tile_px)
    assert layout.mpp == (pytest.approx(256 / 224) if tile_px else None)
    assert layout.side_level0(0.5) == 512
    assert layout.encoder == ("ctranspath" if version.startswith("1") else "uni2")


def test_positions_of_stamp_in_an_unknown_unit_are_not_guessed(programs: Any, tmp_path: Path) -> None:
    programs.stamps_file(tmp_path / "S1.h5", FEATURES, COORDS, version="1.0.3")  # 512 apart, and not 224
    found = open_features(tmp_path / "S1.h5")
    assert found.read().shape == (N, D)
    with pytest.raises(ValueError, match="no positions that can be found on the slide"):
        found.coords(slide_mpp=0.5)


def test_our_own_file_says_who_made_it_of_which_tiles(tmp_path: Path) -> None:
    about = {"encoder": "0123456789", "method": "dino", "tile_px": 256, "mpp": 0.5}
    write_embeddings(tmp_path / "S1.h5", features=FEATURES, coords=COORDS, attributes=about)
    _holds(tmp_path / "S1.h5", FEATURES, dtype=np.float32)
    layout = open_features(tmp_path / "S1.h5").layout
    assert (layout.name, layout.encoder, layout.tile_px, layout.mpp) == ("histo_ssl", "0123456789", 256, 0.5)
    assert layout.side_level0(0.25) == 512
    write_embeddings(tmp_path / "half.h5", features=FEATURES.astype(np.float16), coords=COORDS, attributes={})
    _holds(tmp_path / "half.h5", FEATURES.astype(np.float16), dtype=np.float16)


@pytest.mark.parametrize("dtype", [">f4", ">f2", "<f8", "<i2"])
def test_numbers_of_other_types_come_in_a_type_that_torch_has(tmp_path: Path, dtype: str) -> None:
    features = (8 * FEATURES).astype(dtype)
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"], file["coords"] = features, COORDS.astype(np.float64)
    expected = np.float16 if dtype == ">f2" else np.float32
    _holds(tmp_path / "S1.h5", features.astype(expected), dtype=expected)
    torch.from_numpy(open_features(tmp_path / "S1.h5").read())
    assert open_features(tmp_path / "S1.h5").coords(slide_mpp=NO_MPP).dtype == np.int64


def test_positions_that_are_no_numbers_are_refused(programs: Any, tmp_path: Path) -> None:
    programs.stamps_file(tmp_path / "S1.h5", FEATURES, COORDS * np.nan)
    with h5py.File(tmp_path / "S2.h5", "w") as file:
        file["features"], file["coords"] = FEATURES, np.full((N, 2), b"1,2")
    for name in ("S1.h5", "S2.h5"):
        with pytest.raises(ValueError, match=rf"{name}: positions that are no finite numbers"):
            open_features(tmp_path / name).coords(slide_mpp=0.5)


def test_positions_between_pixels_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"], file["coords"] = FEATURES, COORDS + 0.5
    with pytest.raises(ValueError, match=r"S1\.h5: its positions should be whole px of level 0"):
        open_features(tmp_path / "S1.h5").coords(slide_mpp=NO_MPP)
