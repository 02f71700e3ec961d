"""Bags of slides and of patients hold what their files hold, whoever reads them."""

import math
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from histo_ssl.embeddings import write_embeddings
from histo_ssl.mil.bags import Bags, PatientBags, SlideBags

SIZES = {"S1": 5, "S2": 3, "S3": 40, "S4": 1}
PATIENTS = ["P2", "P1", "P2", "P1"]


def _features(slide: str) -> NDArray[np.float32]:
    return np.random.default_rng(int(slide[1:])).standard_normal((SIZES[slide], 4)).astype(np.float32)


def _coords(slide: str) -> NDArray[np.int64]:
    return 10 * int(slide[1:]) + np.arange(2 * SIZES[slide]).reshape(-1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of ours for each slide."""
    for slide in SIZES:
        features, coords = _features(slide), _coords(slide)
        write_embeddings(tmp_path / f"{slide}.h5", features=features, coords=coords, attributes={})
    return tmp_path


def test_a_bag_of_a_slide_is_what_its_file_holds(folder: Path) -> None:
    bags: Bags = SlideBags(folder, ["S3", "S1"])
    assert (bags.ids.tolist(), bags.n_tiles.tolist(), bags.dim) == (["S3", "S1"], [40, 5], 4)
    np.testing.assert_array_equal(bags.read(0), _features("S3"))
    np.testing.assert_array_equal(bags.sample(0, np.array([0, 7, 39])), _features("S3")[[0, 7, 39]])
    np.testing.assert_array_equal(bags.coords(1), _coords("S1"))
    assert bags.slides(1).tolist() == ["S1"] * 5


def test_a_bag_of_a_patient_joins_its_slides(folder: Path) -> None:
    bags: Bags = PatientBags(SlideBags(folder, list(SIZES)), PATIENTS)
    assert (bags.ids.tolist(), bags.n_tiles.tolist(), bags.dim) == (["P1", "P2"], [4, 45], 4)
    whole = np.concatenate([_features("S1"), _features("S3")])
    np.testing.assert_array_equal(bags.read(1), whole)
    np.testing.assert_array_equal(bags.coords(1), np.concatenate([_coords("S1"), _coords("S3")]))
    assert bags.slides(1).tolist() == ["S1"] * 5 + ["S3"] * 40
    for rows in ([0, 4, 5, 44], [5], [4], [], list(range(45))):
        np.testing.assert_array_equal(bags.sample(1, np.array(rows, dtype=np.int64)), whole[rows])


def test_bags_are_read_in_another_process_and_travel_without_their_features(folder: Path) -> None:
    bags = PatientBags(SlideBags(folder, list(SIZES)), PATIENTS)
    assert len(pickle.dumps(bags)) < 1000 * len(SIZES)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(bags.read, (0,)), bags.read(0))


def test_bags_of_programs_are_found_where_these_put_them(programs: Any, tmp_path: Path) -> None:
    programs.clams_file(tmp_path / "clam" / "h5_files" / "S1.h5", _features("S1"), _coords("S1"))
    for slide in ("S1", "S2"):
        programs.clams_tensor(tmp_path / "clam" / "pt_files" / f"{slide}.pt", _features(slide))
    clams = SlideBags(tmp_path / "clam", ["S1", "S2"])
    assert [file.layout.name for file in clams.files] == ["clam", "tensor"]
    np.testing.assert_array_equal(clams.read(1), _features("S2"))
    programs.tridents_file(tmp_path / "trident" / "features_uni_v1" / "S1.h5", _features("S1"), _coords("S1"))
    np.testing.assert_array_equal(SlideBags(tmp_path / "trident", ["S1"]).coords(0), _coords("S1"))
    programs.stamps_file(tmp_path / "stamp" / "uni2" / "case" / "S1.h5", _features("S1"), 0.5 * _coords("S1"))
    stamps = SlideBags(tmp_path / "stamp", ["S1"], slide_mpp=[0.5])
    np.testing.assert_array_equal(stamps.coords(0), _coords("S1"))
    with pytest.raises(ValueError, match=r"S1\.h5: its positions are in um"):
        SlideBags(tmp_path / "stamp", ["S1"], slide_mpp=[math.nan]).coords(0)


def test_two_files_of_one_slide_are_not_chosen_from(programs: Any, tmp_path: Path) -> None:
    for encoder in ("uni_v1", "conch_v15"):
        programs.tridents_file(tmp_path / f"features_{encoder}" / "S1.h5", _features("S1"), _coords("S1"))
    with pytest.raises(ValueError, match=r"two files of one slide; name the folder of one encoder's files"):
        SlideBags(tmp_path, ["S1"])
    programs.clams_file(tmp_path / "S1.h5", _features("S1"), _coords("S1"))
    assert SlideBags(tmp_path, ["S1"]).files[0].path == tmp_path / "S1.h5"
    programs.clams_file(tmp_path / "h5_files" / "S2.h5", _features("S2"), _coords("S2"))
    programs.clams_tensor(tmp_path / "S2.pt", _features("S2"))  # nearer, but without positions
    assert SlideBags(tmp_path, ["S2"]).files[0].path == tmp_path / "h5_files" / "S2.h5"


def test_slides_without_a_file_are_counted_and_the_first_five_named(folder: Path) -> None:
    wanted = [f"S{i}" for i in range(1, 11)]
    with pytest.raises(
        FileNotFoundError, match=r"6 of 10 slides have no file of embeddings: S5, S6, S7, S8, S9, \.\.\.;"
    ):
        SlideBags(folder, wanted)
    with pytest.raises(FileNotFoundError, match=r"1 of 2 slides have no file of embeddings: S5; make them"):
        SlideBags(folder, ["S1", "S5"])


def test_a_file_of_another_width_or_encoder_is_refused(programs: Any, folder: Path) -> None:
    write_embeddings(folder / "S2.h5", features=np.ones((3, 7)), coords=_coords("S2"), attributes={})
    with pytest.raises(ValueError, match=r"S2\.h5: features 7 wide, those of S1\.h5 are 4; bags of one"):
        SlideBags(folder, list(SIZES))
    for slide, encoder in (("S1", "a"), ("S2", "b")):
        programs.tridents_file(folder / f"{slide}.h5", _features(slide), _coords(slide), encoder=encoder)
    with pytest.raises(
        ValueError, match=r"S2\.h5: features of the encoder b, those of S1\.h5 are of a: bags"
    ):
        SlideBags(folder, ["S1", "S2"])


def test_slides_without_a_tile_are_named(folder: Path) -> None:
    for slide in ("S2", "S4"):
        nothing = np.zeros((0, 4), np.float32), np.zeros((0, 2), np.int64)
        write_embeddings(folder / f"{slide}.h5", features=nothing[0], coords=nothing[1], attributes={})
    with pytest.raises(ValueError, match=r"2 of 4 slides have no tile: S2, S4; leave them out of the labels"):
        SlideBags(folder, list(SIZES))


def test_slides_of_nobody_are_no_patient(folder: Path) -> None:
    bags = SlideBags(folder, list(SIZES))
    with pytest.raises(ValueError, match=r"2 of 4 slides have no patient: S2, S4; fill the column"):
        PatientBags(bags, ["P1", "", "P1", ""])
    with pytest.raises(ValueError, match=r"3 patients for 4 slides"):
        PatientBags(bags, ["P1", "P1", "P1"])
    with pytest.raises(ValueError, match=r"bags of no slide are asked for"):
        SlideBags(folder, [])
