"""Layouts of image sets, by configuration alone: parts, columns, splits, classes, readers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from histo_ssl.data.images import ImageData
from histo_ssl.data.sources import open_source
from histo_ssl.slides.grid import Tiling

MakeData = Callable[..., ImageData]
NATIVE = Tiling(size_px=None, mpp=None, stride_px=None, min_tissue=0.0, tissue=None)


def _paint(root: Path, *places: str) -> None:
    for i, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / place)


def _rows(data: ImageData, folder: Path, *names: str) -> list[list[str]]:
    """What is listed of each tile: its path, then the columns that are named."""
    data.tile(NATIVE, folder=folder, home=folder, n_processes=0, slide_timeout_s=60)
    rows: list[list[str]] = open_source(folder).table()[["slide", *names]].to_numpy().tolist()
    return rows


def _write(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")


def test_parts_have_the_split_that_is_stated_for_each(image_data: MakeData, tmp_path: Path) -> None:
    _paint(tmp_path / "set", "big/A/1.png", "big/B/2.png", "small/A/3.png", "other/A/4.png")
    parts = [{"folder": "big", "split": "train"}, {"folder": "small", "split": "test"}]
    data = image_data(root=str(tmp_path / "set"), parts=parts)
    assert _rows(data, tmp_path / "tiles", "label", "split") == [
        ["big/A/1.png", "A", "train"],
        ["big/B/2.png", "B", "train"],
        ["small/A/3.png", "A", "test"],
    ]
    assert data.listing() == {"images": {"big/A/1.png": {}, "big/B/2.png": {}, "small/A/3.png": {}}}


def test_a_csv_may_use_its_own_words_for_columns_and_splits(image_data: MakeData, tmp_path: Path) -> None:
    _paint(tmp_path, "a.png", "b.png", "c.png")
    _write(tmp_path / "list.csv", "file,class,use,who", "a.png,0,1,P1", "b.png,3,True,P1", "c.png,0,0,P2")
    data = image_data(
        csv=str(tmp_path / "list.csv"),
        columns={"path": "file", "label": "class", "split": "use", "group": "who"},
        splits={"1": "train", "true": "train", "0": "test"},
    )
    assert _rows(data, tmp_path / "tiles", "label", "split", "patient") == [
        ["a.png", "0", "train", "P1"],
        ["b.png", "3", "train", "P1"],
        ["c.png", "0", "test", "P2"],
    ]


@pytest.mark.parametrize(
    ("repeats", "first", "last"), [("mean", "0.15", "0.5"), ("readers", "0.1;0.2", "1;0")]
)
def test_a_path_is_made_of_several_columns_and_readers_are_averaged_or_kept(
    image_data: MakeData, tmp_path: Path, repeats: str, first: str, last: str
) -> None:
    _paint(tmp_path / "set", "v/7_1.tif", "v/7_2.tif", "v/8_1.tif")
    _write(tmp_path / "set" / "y.csv", "slide,rid,y", "7,1,0.1", "7,1,0.2", "7,2,0.30", "8,1,1", "8,1,0")
    data = image_data(
        root=str(tmp_path / "set"),
        parts=[{"csv": "y.csv", "images": "v", "split": "test"}],
        columns={"path": "{slide}_{rid}.tif", "label": "y", "group": "slide"},
        repeats=repeats,
    )
    assert _rows(data, tmp_path / "tiles", "label", "split", "patient") == [
        ["7_1.tif", first, "test", "7"],
        ["7_2.tif", "0.30", "test", "7"],  # one reader: the text as it stands
        ["8_1.tif", last, "test", "8"],
    ]
    assert data.listing()["images"]["v/7_1.tif"] == {"label": first, "split": "", "group": "7"}


def test_classes_are_chosen_by_their_own_names_and_merged_afterwards(
    image_data: MakeData, tmp_path: Path
) -> None:
    _paint(tmp_path / "set", "MUS/1.png", "STR/2.png", "TUM/3.png", "ADI/4.png", "loose.png")
    data = image_data(root=str(tmp_path / "set"), classes=["MUS", "STR", "TUM"], merge={"MUS": "STR"})
    assert _rows(data, tmp_path / "tiles", "label") == [
        ["MUS/1.png", "STR"],
        ["STR/2.png", "STR"],
        ["TUM/3.png", "TUM"],
    ]


def test_classes_may_swap_their_names(image_data: MakeData, tmp_path: Path) -> None:
    _paint(tmp_path / "set", "A/1.png", "B/2.png")
    data = image_data(root=str(tmp_path / "set"), merge={"A": "B", "B": "A"})
    assert _rows(data, tmp_path / "tiles", "label") == [["A/1.png", "B"], ["B/2.png", "A"]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": ["A", "C", "D"]}, r"data.classes names C, D: no image is of this class; found: A, B; "),
        ({"merge": {"MUS": "A"}}, r"data.merge names MUS: .* found: A, B; expected: data.root=<folder>"),
        ({"parts": [{"folder": "none"}]}, r"data.root=.*none: no such folder; expected: data.root=<folder>"),
        ({"parts": [{"folder": "A", "csv": "a.csv"}]}, r"\{csv: b.csv, images: B\} is expected"),
        ({"parts": [{"folder": "A", "images": "B"}]}, r"\{csv: b.csv, images: B\} is expected"),
        ({"parts": [{"folder": "A", "spilt": "test"}]}, r"'spilt': 'test'\}: \{folder: A\} or"),
        ({"parts": ["A"]}, r"data.parts has A: \{folder: A\} or"),
        ({"parts": [{"folder": "A", "split": "tets"}]}, r"data.parts: split tets: train, valid, test or"),
        ({"parts": [{"folder": "A"}, {"folder": "A"}]}, r"1 images are in two parts, .*1.png among them"),
        ({"parts": [{"csv": "none.csv"}]}, r"data.csv=.*none.csv: no such file; expected: "),
        ({"root": None}, r"neither a folder nor a list of images; expected: data.root=<folder>, or"),
        ({"group_pattern": "(P[0-9]+)"}, r"matches no image's name, 1.png for one"),
    ],
)
def test_what_is_not_there_is_said_with_what_was_expected(
    image_data: MakeData, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    _paint(tmp_path / "set", "A/1.png", "B/2.png")
    data = image_data(**{"root": str(tmp_path / "set"), **changes})
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        _rows(data, tmp_path / "tiles")


@pytest.mark.parametrize(
    ("changes", "rows", "sentence"),
    [
        ({}, ["file,label", "a.png,0"], "column 'path' is missing; the columns are file, label; expected: "),
        ({"columns": {"label": "y"}}, ["path,label", "a.png,0"], "column 'y' is missing"),
        ({"columns": {"path": "{slide}.png"}}, ["path", "a.png"], "column 'slide' is missing"),
        ({"columns": {"path": "{}.png"}}, ["path", "a.png"], "names in braces"),
        ({"columns": {"path": "{a"}}, ["path", "a.png"], "names in braces"),
        ({"columns": {"pth": "x"}}, ["path", "a.png"], "a name for each of path, label, split, group"),
        ({"columns": {"path": "{a}_{b}.png"}}, ["a,b", "a,"], "has rows without a path"),
        ({"splits": {"1": "train"}}, ["path,split", "a.png,2"], "split 2: train, valid, test or nothing"),
        ({"repeats": "max"}, ["path", "a.png"], "data.repeats=max: null, mean or readers is expected"),
        ({"repeats": "mean"}, ["path,label", "a.png,x", "a.png,1"], "a.png can't be averaged"),
        ({"repeats": "mean"}, ["path,label", "a.png,", "a.png,1"], "a.png can't be averaged"),
        ({"repeats": "mean"}, ["path,group", "a.png,P", "a.png,Q"], "a.png differ in split or group"),
        ({"repeats": "readers"}, ["path,label", "a.png,x", "a.png,1"], "they are not all numbers"),
    ],
)
def test_a_csv_that_does_not_say_what_it_should_is_refused(
    image_data: MakeData, tmp_path: Path, changes: dict[str, Any], rows: list[str], sentence: str
) -> None:
    _paint(tmp_path, "a.png")
    _write(tmp_path / "list.csv", *rows)
    with pytest.raises(ValueError, match=sentence):
        _rows(image_data(csv=str(tmp_path / "list.csv"), **changes), tmp_path / "tiles")


def test_a_patient_in_two_parts_of_which_one_is_held_out_is_refused(
    image_data: MakeData, tmp_path: Path
) -> None:
    _paint(tmp_path / "set", "big/A/P1_1.png", "big/B/P2_1.png", "small/A/P1_2.png")
    parts = [{"folder": "big", "split": "train"}, {"folder": "small", "split": "test"}]
    data = image_data(root=str(tmp_path / "set"), parts=parts, group_pattern="^(P[0-9]+)_")
    with pytest.raises(ValueError, match="all of a patient belongs to one split; found: P1 in test/train"):
        _rows(data, tmp_path / "tiles")


def test_other_values_in_a_list_are_other_data(image_data: MakeData, tmp_path: Path) -> None:
    listings = []
    for label in ("0", "1"):
        pd.DataFrame({"path": ["a.png"], "label": [label]}).to_csv(tmp_path / "list.csv", index=False)
        listings.append(image_data(root=str(tmp_path), parts=[{"csv": "list.csv"}]).listing())
    assert listings[0] != listings[1]
