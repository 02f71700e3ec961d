"""A file of features is whole, finite and what it was when it was opened, or a sentence says why not."""

import io
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histo_ssl.embeddings import write_embeddings
from histo_ssl.mil.features import FeatureFile, open_features

N, D = 20_000, 384
FEATURES = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
COORDS = np.arange(80).reshape(40, 2)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> FeatureFile:
    """31 MB of features; number d of row n is n + d / 1000."""
    path = tmp_path_factory.mktemp("large") / "S1.h5"
    features = (np.arange(N)[:, None] + np.arange(D) / 1000).astype(np.float32)
    write_embeddings(path, features=features, coords=np.zeros((N, 2), np.int64), attributes={})
    return open_features(path)


class CountedReads(io.FileIO):
    """A file that counts the bytes that were read from it."""

    n_bytes = 0

    def readinto(self, buffer: memoryview) -> int:
        n_bytes = super().readinto(buffer)
        CountedReads.n_bytes += n_bytes
        return n_bytes


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    CountedReads.n_bytes = 0
    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: CountedReads(path, mode.replace("b", "")))


def test_sampling_a_hundred_rows_reads_a_hundred_rows(
    large: FeatureFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.sort(np.random.default_rng(1).choice(N, 100, replace=False))
    _count_reads(monkeypatch)
    tracemalloc.start()
    features = large.read(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(features, (rows[:, None] + np.arange(D) / 1000).astype(np.float32))
    assert CountedReads.n_bytes == 100 * D * 4
    assert peak < 1e6  # of 31 MB


def test_sampling_does_not_go_round_the_counted_reads(large: FeatureFile) -> None:
    io_of_process = Path("/proc/self/io")
    if not io_of_process.exists():
        pytest.skip("this system does not count what a process reads")

    def n_bytes() -> int:
        return int(io_of_process.read_text().split()[1])

    before = n_bytes()
    large.read(np.arange(0, N, 200))
    sampled = n_bytes() - before
    large.read()
    assert sampled < 1e6 < N * D * 4 <= n_bytes() - before - sampled


@pytest.mark.parametrize("n_rows", [1, 100, 1249, 1250, 1251, 7000, N])
def test_rows_are_the_same_whether_few_or_many_are_read(large: FeatureFile, n_rows: int) -> None:
    rows = np.sort(np.random.default_rng(n_rows).choice(N, n_rows, replace=False))
    np.testing.assert_array_equal(large.read(rows)[:, 0], rows.astype(np.float32))


def test_rows_lie_where_hdf5_says_that_they_lie(large: FeatureFile) -> None:
    with h5py.File(large.path) as file:
        np.testing.assert_array_equal(large.read(np.array([0, 17, N - 1])), file["features"][[0, 17, N - 1]])
    assert large.offset is not None


def test_of_a_chunked_file_only_chunks_that_hold_a_wanted_row_are_read(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.clams_file(
        tmp_path / "S1.h5", np.arange(300, dtype=np.float32).reshape(100, 3), COORDS[[0] * 100]
    )
    found = open_features(tmp_path / "S1.h5")
    read: list[tuple[int, int]] = []
    gathered = FeatureFile._gathered

    def noted(self: FeatureFile, rows: np.ndarray, block: object) -> np.ndarray:
        return gathered(self, rows, lambda start, stop: read.append((start, stop)) or block(start, stop))  # type: ignore[operator]

    monkeypatch.setattr(FeatureFile, "_gathered", noted)
    np.testing.assert_array_equal(found.read(np.array([1, 31, 99]))[:, 0], [3, 93, 297])
    assert read == [(0, 32), (96, 100)]


def test_our_own_broken_file_is_refused_before_hdf5_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5"
    write_embeddings(path, features=FEATURES, coords=COORDS, attributes={})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"S1\.h5: not an HDF5 file of embeddings"):
        open_features(path)


def test_the_checksum_of_a_file_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_embeddings(tmp_path / "S1.h5", features=FEATURES, coords=COORDS, attributes={})
    open_features(tmp_path / "S1.h5")
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("taken again"))
    open_features(tmp_path / "S1.h5")


def test_a_file_that_changes_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5"
    write_embeddings(path, features=FEATURES, coords=COORDS, attributes={})
    found = open_features(path)
    write_embeddings(path, features=FEATURES[:9], coords=COORDS[:9], attributes={})
    with pytest.raises(ValueError, match=r"S1\.h5: it has changed while it was in use; start again"):
        found.read()
    with pytest.raises(ValueError, match=r"S1\.h5: it has changed while it was in use; start again"):
        found.coords(slide_mpp=0.5)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        found.read()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_of_other_programs_that_are_not_finite_are_refused_when_they_are_read(
    programs: Any, tmp_path: Path, bad: float
) -> None:
    broken = FEATURES.copy()
    broken[[4, 9], 1] = bad
    programs.clams_file(tmp_path / "S1.h5", broken, COORDS)
    programs.stamps_file(tmp_path / "S2.h5", broken, COORDS)
    torch.save(torch.from_numpy(broken), tmp_path / "S3.pt")
    for name in ("S1.h5", "S2.h5", "S3.pt"):
        found = open_features(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: 2 of 40 feature vectors are not finite"):
            found.read()
        with pytest.raises(ValueError, match=rf"{name}: 1 of 2 feature vectors are not finite"):
            found.read(np.array([3, 4]))
        np.testing.assert_array_equal(found.read(np.array([3, 5])).shape, (2, 3))


def test_numbers_beyond_float32_are_not_finite(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"], file["coords"] = np.full((40, 3), 1e300), COORDS
    with pytest.raises(ValueError, match="40 of 40 feature vectors are not finite"):
        open_features(tmp_path / "S1.h5").read()


def test_files_that_hold_no_features_of_tiles_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5"
    with pytest.raises(FileNotFoundError, match=r"S1\.h5: no such file of features"):
        open_features(path)
    path.write_text("not HDF5")
    with pytest.raises(ValueError, match=r"S1\.h5: not an HDF5 file"):
        open_features(path)

    def refused(match: str, **data: np.ndarray) -> None:
        with h5py.File(path, "w") as file:
            for name, array in data.items():
                file[name] = array
        with pytest.raises(ValueError, match=rf"S1\.h5: {match}"):
            open_features(path)

    refused("'features' is missing.*this one has coords, imgs", imgs=FEATURES, coords=COORDS)
    refused("'coords' is missing.*this one has features", features=FEATURES)
    refused(r"features \(40, 3\) and coords \(39, 2\) don't belong", features=FEATURES, coords=COORDS[:39])
    refused(r"features \(40,\); \(N, D\) is expected", features=FEATURES[:, 0], coords=COORDS)
    refused(r"features \(4, 10, 3\); \(N, D\) is", features=FEATURES.reshape(4, 10, 3), coords=COORDS)
    refused(r"features of type \|S1; numbers are expected", features=np.full((40, 3), b"a"), coords=COORDS)
    with h5py.File(path, "w") as file:
        file.create_group("features"), file.create_dataset("coords", data=COORDS)
    with pytest.raises(ValueError, match=r"S1\.h5: it can't be read as a file of features"):
        open_features(path)


def test_features_of_a_slide_as_a_whole_are_no_bag(programs: Any, tmp_path: Path) -> None:
    programs.stamps_file(tmp_path / "S1.h5", FEATURES, COORDS)
    with h5py.File(tmp_path / "S1.h5", "a") as file:
        file.attrs["feat_type"] = "slide"
    with pytest.raises(ValueError, match=r"S1\.h5: it holds features of a slide, and bags are made of"):
        open_features(tmp_path / "S1.h5")


def test_features_that_were_never_written_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5"
    for shape, chunks, why in [
        ((40, 3), None, "of 480 bytes of features only 0 were written"),
        ((40, 3), (32, 3), "of 480 bytes of features only 0 were written"),
        ((10**7, 1000), None, "it says that it holds 40,000,000,640 bytes"),
    ]:
        with h5py.File(path, "w") as file:
            file.create_dataset("features", shape=shape, chunks=chunks, dtype=np.float32)
            file["coords"] = COORDS
        with pytest.raises(ValueError, match=rf"S1\.h5: it can't be read as a file of features \({why}"):
            open_features(path)


def test_what_is_no_tensor_in_a_file_of_torchs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "S1.pt"
    torch.save({"features": torch.from_numpy(FEATURES)}, path)
    with pytest.raises(ValueError, match=r"S1\.pt: it holds a dict; one tensor \(N, D\) of features"):
        open_features(path)
    torch.save(torch.zeros(1).expand(10**9, 10), path)
    with pytest.raises(ValueError, match=r"S1\.pt: it says that it holds 10,000,000,000 numbers"):
        open_features(path)
    torch.save(FEATURES, path)  # a pickled array of numpy's, as TRIDENT makes on request
    with pytest.raises(
        ValueError, match=r"S1\.pt: it can't be read as a file of features \(Weights only load"
    ):
        open_features(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"S1\.pt: it can't be read as a file of features"):
        open_features(path)


@pytest.fixture(scope="module")
def torchs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("torchs") / "S1.pt"
    torch.save(torch.from_numpy(FEATURES), path)
    return path.read_bytes()


def test_a_tensor_with_other_bytes_is_a_tensor_or_a_sentence(torchs: bytes, tmp_path: Path) -> None:
    path = tmp_path / "S1.pt"
    refusals: list[str] = []

    @settings(max_examples=300)
    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        content = bytearray(torchs)
        for _ in range(data.draw(st.integers(0, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
        try:
            assert open_features(path).read().ndim == 2
        except ValueError as error:
            refusals.append(str(error))

    read()
    assert [text for text in refusals if not text.startswith(str(path))] == []
    assert len(refusals) > 30
