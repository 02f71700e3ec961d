"""Embeddings come back as they were written, or not at all."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histo_ssl.embeddings import EmbeddingSet, narrowed, read_embeddings, write_embeddings

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
COORDS = np.array([[0, 0], [512, 0], [0, 512], [2**31, 512]])
ATTRIBUTES = {"encoder": "0123456789", "tile_px": 256, "mpp": 0.5}


def _set(n: int = 4, **fields: list[str]) -> EmbeddingSet:
    texts = {
        name: np.array(fields.get(name, [""] * n)) for name in ("slide", "patient", "site", "split", "label")
    }
    return EmbeddingSet(features=FEATURES, coords=COORDS, row=np.arange(4), **texts)


def test_a_file_gives_back_the_same_numbers_positions_and_attributes(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5"
    write_embeddings(path, features=FEATURES, coords=COORDS, attributes=ATTRIBUTES)
    stored = read_embeddings(path)
    np.testing.assert_array_equal(stored.features, FEATURES)
    np.testing.assert_array_equal(stored.coords, COORDS)
    assert stored.attributes == ATTRIBUTES
    assert {name: type(value) for name, value in stored.attributes.items()} == {
        "encoder": str,
        "tile_px": int,
        "mpp": float,
    }


def test_the_layout_is_the_one_that_clam_and_trident_read(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "S1.h5", features=FEATURES, coords=COORDS, attributes=ATTRIBUTES)
    with h5py.File(tmp_path / "S1.h5") as file:
        assert {name: (data.shape, data.dtype.str) for name, data in file.items()} == {
            "features": ((4, 3), "<f4"),
            "coords": ((4, 2), "<i8"),
        }
        assert file["coords"].attrs["tile_px"] == 256


def test_a_foreign_file_with_half_precision_and_list_attributes_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"] = FEATURES.astype(np.float16)
        file["coords"] = COORDS[[0, 1, 2, 2]].astype(np.int32)
        file["coords"].attrs.update({"patch_size": 256, "downsample": np.array([1.0, 1.0])})
        file["unreadable"] = np.array([-7, 10**9])  # whatever another program means by it
    stored = read_embeddings(tmp_path / "S1.h5")
    assert (stored.features.dtype, stored.coords.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(stored.features, FEATURES.astype(np.float16))
    assert stored.attributes == {"patch_size": 256}
    assert stored.is_row().tolist() == [True] * 4


def test_features_in_half_precision_stay_so_in_the_file_and_are_read_in_full(tmp_path: Path) -> None:
    half = narrowed(FEATURES, "float16", path=tmp_path / "S1.h5")
    write_embeddings(tmp_path / "S1.h5", features=half, coords=COORDS, attributes=ATTRIBUTES)
    with h5py.File(tmp_path / "S1.h5") as file:
        assert file["features"].dtype == np.float16
    stored = read_embeddings(tmp_path / "S1.h5").features
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, FEATURES.astype(np.float16))


def test_what_half_precision_cannot_hold_is_refused_before_it_is_written(tmp_path: Path) -> None:
    features = FEATURES.copy()
    features[[0, 2], 1] = 65_504, -65_520  # the first is the largest there is
    with pytest.raises(
        ValueError, match=r"S1\.h5: 1 of 4 embeddings reach beyond 65,504, .* keep them in float32"
    ):
        narrowed(features, "float16", path=tmp_path / "S1.h5")
    np.testing.assert_array_equal(narrowed(features, "float32", path=tmp_path / "S1.h5"), features)


def test_places_of_tiles_that_could_not_be_read_come_back(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5"
    write_embeddings(path, features=FEATURES, coords=COORDS, attributes=ATTRIBUTES, unreadable=[1, 4])
    assert read_embeddings(path).is_row().tolist() == [True, False, True, True, False, True]


def test_a_slide_without_tiles_has_embeddings_too(tmp_path: Path) -> None:
    empty = np.zeros((0, 3), np.float32), np.zeros((0, 2), np.int64)
    write_embeddings(tmp_path / "S1.h5", features=empty[0], coords=empty[1], attributes={})
    stored = read_embeddings(tmp_path / "S1.h5")
    assert (stored.features.shape, stored.coords.shape) == ((0, 3), (0, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused_by_the_name_of_their_file(
    tmp_path: Path, bad: float
) -> None:
    broken = FEATURES.copy()
    broken[1:3, 0] = bad
    with pytest.raises(ValueError, match=r"S1\.h5: 2 of 4 embeddings are not finite"):
        write_embeddings(tmp_path / "S1.h5", features=broken, coords=COORDS, attributes={})
    assert list(tmp_path.iterdir()) == []
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"], file["coords"] = broken, COORDS
    with pytest.raises(ValueError, match=r"S1\.h5: 2 of 4 embeddings are not finite"):
        read_embeddings(tmp_path / "S1.h5")


def test_features_and_positions_of_different_tiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"S1\.h5: features \(4, 3\) and coords \(3, 2\) don't belong together"
    ):
        write_embeddings(tmp_path / "S1.h5", features=FEATURES, coords=COORDS[:3], attributes={})


def test_files_that_hold_no_embeddings_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage 'embed' first"):
        read_embeddings(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        read_embeddings(tmp_path / "text.h5")
    with h5py.File(tmp_path / "half.h5", "w") as file:
        file["features"] = FEATURES
    with pytest.raises(ValueError, match=r"'coords' is missing.* has features"):
        read_embeddings(tmp_path / "half.h5")


def test_a_subset_keeps_every_field_of_the_same_tiles() -> None:
    tiles = _set(label=["a", "", "b", ""], slide=["S1", "S1", "S2", "S2"])
    labelled = tiles.labelled()
    assert len(labelled) == 2
    assert labelled.slide.tolist() == ["S1", "S2"]
    np.testing.assert_array_equal(labelled.features, FEATURES[[0, 2]])
    np.testing.assert_array_equal(labelled.coords, COORDS[[0, 2]])


def test_fields_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="4 features, 4 coords, 4 row, 3 slide"):
        _set(slide=["S1", "S1", "S1"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "S1.h5"
    write_embeddings(path, features=FEATURES, coords=COORDS, attributes=ATTRIBUTES)
    return path


def test_a_file_with_other_bytes_gives_the_same_numbers_or_a_sentence(whole: Path, tmp_path: Path) -> None:
    refusals: list[str] = []

    @settings(max_examples=1000)
    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        _read_mutant(tmp_path / "mutant.h5", whole=whole.read_bytes(), data=data, refusals=refusals)

    read()
    assert [text for text in refusals if not text.startswith(str(tmp_path / "mutant.h5"))] == []
    assert len(refusals) > 100


def _read_mutant(path: Path, *, whole: bytes, data: st.DataObject, refusals: list[str]) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        stored = read_embeddings(path)
    except ValueError as error:
        refusals.append(str(error))
        return
    np.testing.assert_array_equal(stored.features, FEATURES)
    np.testing.assert_array_equal(stored.coords, COORDS)
    assert stored.attributes == ATTRIBUTES


def test_a_foreign_file_that_claims_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file.create_dataset("features", shape=(10**7, 1000), dtype=np.float32)  # 40 GB of nothing
        file.create_dataset("coords", shape=(10**7, 2), dtype=np.int64)
    with pytest.raises(
        ValueError, match=r"S1\.h5: not an HDF5 file.*it says that it holds 40,160,000,000 bytes"
    ):
        read_embeddings(tmp_path / "S1.h5")


def test_a_file_with_text_in_the_place_of_numbers_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"] = np.array([[b"a"], [b"b"]])
        file["coords"] = COORDS[:2]
    with pytest.raises(ValueError, match=r"S1\.h5: features of type .* expected numbers"):
        read_embeddings(tmp_path / "S1.h5")


def test_the_same_embeddings_are_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "S2.h5", features=FEATURES, coords=COORDS, attributes=ATTRIBUTES)
    assert (tmp_path / "S2.h5").read_bytes() == whole.read_bytes()
