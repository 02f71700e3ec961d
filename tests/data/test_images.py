"""Image files as tiles: where labels and splits come from, and which pixels are read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from histo_ssl.config.choices import conf_dir
from histo_ssl.data.image_list import from_folder
from histo_ssl.data.images import ImageData, ImageTiles
from histo_ssl.data.sources import open_source
from histo_ssl.slides.grid import Tiling


def _tiling(size_px: int | None = None) -> Tiling:
    return Tiling(size_px=size_px, mpp=None, stride_px=None, min_tissue=0.0, tissue=None)


def _data(root: Path | None = None, **changes: Any) -> ImageData:
    values = OmegaConf.load(conf_dir() / "data" / "kind" / "images.yaml")
    data: ImageData = instantiate(values, root=str(root) if root else None, **changes)
    return data


def _paint(path: Path, value: int, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


def _listed(data: ImageData, tiling: Tiling, folder: Path) -> ImageTiles:
    data.tile(tiling, folder=folder, home=folder, n_processes=0, slide_timeout_s=60)
    source = open_source(folder)
    assert isinstance(source, ImageTiles)
    return source


def test_labels_and_splits_are_the_names_of_folders(tmp_path: Path) -> None:
    for i, place in enumerate(
        ["train/tumor/a.png", "train/normal/b.tif", "val/tumor/c.png", "test/normal/d.jpg"]
    ):
        _paint(tmp_path / "images" / place, i)
    source = _listed(_data(tmp_path / "images"), _tiling(), tmp_path / "tiles")
    assert source.table()[["slide", "label", "split"]].to_numpy().tolist() == [
        ["test/normal/d.jpg", "normal", "test"],
        ["train/normal/b.tif", "normal", "train"],
        ["train/tumor/a.png", "tumor", "train"],
        ["val/tumor/c.png", "tumor", "valid"],
    ]
    assert source.training_rows().tolist() == [1, 2]


def test_pixels_of_native_size_are_the_files_own(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (tmp_path / "images" / "A").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "images" / "A" / "x.tif")
    source = _listed(_data(tmp_path / "images"), _tiling(), tmp_path / "tiles")
    assert source.tile_px == 32
    np.testing.assert_array_equal(source.read(0), pixels)


def test_another_size_is_scaled_by_the_shorter_side_and_cropped_in_the_middle(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), (0, 0, 0))
    wide.paste((200, 100, 50), (32, 0, 64, 32))  # only the middle third is coloured
    (tmp_path / "images").mkdir()
    wide.save(tmp_path / "images" / "wide.png")
    source = _listed(_data(tmp_path / "images"), _tiling(size_px=16), tmp_path / "tiles")
    inside = source.read(0)[:, 2:-2]  # at the edges the filter sees the black beside the square
    np.testing.assert_array_equal(inside, np.full((16, 12, 3), (200, 100, 50)))


def test_images_of_several_sizes_need_a_stated_one(tmp_path: Path) -> None:
    _paint(tmp_path / "images" / "a.png", 0)
    _paint(tmp_path / "images" / "b.png", 0, size=(48, 48))
    with pytest.raises(ValueError, match=r"2 sizes: 32 x 32, 48 x 48 px .* tiling.size_px"):
        _listed(_data(tmp_path / "images"), _tiling(), tmp_path / "tiles")


def test_a_csv_lists_images_relative_to_itself(tmp_path: Path) -> None:
    _paint(tmp_path / "deep" / "a.png", 1)
    _paint(tmp_path / "deep" / "b.png", 2)
    csv = tmp_path / "list.csv"
    pd.DataFrame({"path": ["deep/a.png", "deep/b.png"], "label": ["x", "y"], "group": ["p1", "p2"]}).to_csv(
        csv
    )
    source = _listed(_data(csv=str(csv)), _tiling(), tmp_path / "tiles")
    assert source.table()[["label", "patient", "split"]].to_numpy().tolist() == [
        ["x", "p1", ""],
        ["y", "p2", ""],
    ]


def test_a_csv_without_paths_names_the_columns_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,label\na.png,x\n")
    with pytest.raises(ValueError, match=r"column 'path' is missing; the columns are file, label"):
        _listed(_data(csv=str(tmp_path / "list.csv")), _tiling(), tmp_path / "tiles")


def test_groups_are_read_from_file_names(tmp_path: Path) -> None:
    _paint(tmp_path / "images" / "A" / "10A0_CRC-Prim-HE-07_014.tif_Row_1.png", 0)
    data = _data(tmp_path / "images", group_pattern=r"(CRC-Prim-HE-\d+)")
    source = _listed(data, _tiling(), tmp_path / "tiles")
    assert source.table()["patient"].tolist() == ["CRC-Prim-HE-07"]


def test_unreadable_images_are_listed_with_their_reason_up_to_the_limit(tmp_path: Path) -> None:
    for i in range(9):
        _paint(tmp_path / "images" / f"{i}.png", i)
    (tmp_path / "images" / "text.png").write_text("no image")
    source = _listed(_data(tmp_path / "images"), _tiling(), tmp_path / "tiles")
    assert len(source) == 9
    assert pd.read_csv(tmp_path / "tiles" / "status.csv")["reason"].tolist() == [
        "not a readable image (UnidentifiedImageError)"
    ]
    with pytest.raises(ValueError, match=r"1 of 10 images failed, more than data.max_failed=0.05 allows"):
        _listed(_data(tmp_path / "images", max_failed=0.05), _tiling(), tmp_path / "tiles")


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image in it; looked for \.png, \.jpg"):
        _listed(_data(tmp_path), _tiling(), tmp_path / "tiles")


def test_a_draw_of_images_is_seeded_and_keeps_their_order(tmp_path: Path) -> None:
    for i in range(20):
        _paint(tmp_path / "images" / f"{i:02}.png", i)
    draws = [
        _listed(_data(tmp_path / "images", max_tiles=5, seed=seed), _tiling(), tmp_path / f"tiles{i}")
        for i, seed in enumerate([0, 0, 1])
    ]
    names = [draw.table()["slide"].tolist() for draw in draws]
    assert names[0] == names[1] == sorted(names[0])
    assert names[0] != names[2]
    assert len(names[0]) == 5


def test_the_listing_is_the_paths_below_the_root_or_the_rows_of_the_csv(tmp_path: Path) -> None:
    _paint(tmp_path / "images" / "A" / "a.png", 1)
    _paint(tmp_path / "images" / "b.png", 2)
    (tmp_path / "images" / "notes.txt").touch()
    listed = _data(tmp_path / "images").listing()
    assert listed == {"images": {"A/a.png": {}, "b.png": {}}}
    (tmp_path / "list.csv").write_text("path,label\nimages/b.png,x\n")
    listed = _data(csv=str(tmp_path / "list.csv")).listing()
    assert listed == {"images": {"images/b.png": {"label": "x", "split": "", "group": ""}}}


def test_the_real_samples_keep_their_classes(shared_data: Path, tmp_path: Path) -> None:
    source = _listed(_data(shared_data / "nct_crc"), _tiling(), tmp_path / "tiles")
    counts = source.table()["label"].value_counts()
    assert counts.sum() == len(source) == 79
    assert sorted(counts.index) == ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]
    assert source.tile_px == 224


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_values_that_would_be_clipped_to_8_bits_are_refused(tmp_path: Path, mode: str) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    (tmp_path / "images" / "A").mkdir(parents=True)
    Image.fromarray(ramp.astype(kind)).save(tmp_path / "images" / "A" / "x.tif")
    with pytest.raises(ValueError, match=rf"more than 8 bits \(mode {mode}"):
        _listed(_data(tmp_path / "images"), _tiling(), tmp_path / "tiles")


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:16] = [200, 100, 150, 255]
    (tmp_path / "images" / "A").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "images" / "A" / "x.png")
    tile = _listed(_data(tmp_path / "images"), _tiling(), tmp_path / "tiles").read(0)
    assert (tile[:16] == [200, 100, 150]).all()
    assert (tile[16:] == 255).all()


def test_hidden_files_and_folders_named_like_images_are_none(tmp_path: Path) -> None:
    _paint(tmp_path / "images" / "A" / "x.png", 1)
    (tmp_path / "images" / "A" / "._x.png").write_bytes(b"macOS")
    (tmp_path / "images" / "A" / "d.png").mkdir()
    assert len(_listed(_data(tmp_path / "images"), _tiling(), tmp_path / "tiles")) == 1


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("path,label\n", "lists no image"),
        ("path,label\n,A\n", "has rows without a path"),
        ("path,label\nx.png,A\nx.png,B\n", "1 images are listed twice, x.png among them"),
        ("path,Label\nx.png,A\n", "the column 'Label' would not count; did you mean label"),
        ("path,patient_id,split\nx.png,P1,train\ny.png,P1 ,test\n", "found: P1 in test/train"),
        ("", "not a CSV"),
    ],
)
def test_a_faulty_csv_is_refused(tmp_path: Path, rows: str, complaint: str) -> None:
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(ValueError, match=complaint):
        _listed(_data(csv=str(tmp_path / "list.csv")), _tiling(), tmp_path / "tiles")


@pytest.mark.parametrize("pattern", ["(", "x"])
def test_a_pattern_that_names_no_group_is_refused(tmp_path: Path, pattern: str) -> None:
    _paint(tmp_path / "images" / "A" / "x.png", 1)
    with pytest.raises(ValueError, match=r"data\.group_pattern="):
        _listed(_data(tmp_path / "images", group_pattern=pattern), _tiling(), tmp_path / "tiles")


def test_a_split_below_a_class_is_refused(tmp_path: Path) -> None:
    _paint(tmp_path / "images" / "tumor" / "test" / "x.png", 1)
    with pytest.raises(ValueError, match="a folder of a split stands above"):
        _listed(_data(tmp_path / "images"), _tiling(), tmp_path / "tiles")


def test_a_folder_one_level_too_high_is_refused_with_the_folder_to_take(tmp_path: Path) -> None:
    for name in ("A", "B"):
        _paint(tmp_path / "images" / "NCT" / name / "x.png", 1)
    with pytest.raises(
        ValueError, match=r"all images lie in NCT, .* 2 folders; say data\.root=.*images/NCT$"
    ):
        from_folder(tmp_path / "images")
    assert from_folder(tmp_path / "images" / "NCT")["label"].tolist() == ["A", "B"]


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        (["train/A/x.png", "train/B/x.png"], ["A", "B"]),  # a split
        (["A/P1/x.png", "B/P1/x.png"], ["A", "B"]),  # patients below their classes
        (["A/P1/x.png"], ["A"]),
        (["A/P1/x.png", "A/P2/x.png", "A/x.png"], ["A", "A", "A"]),
    ],
)
def test_folders_below_those_of_the_classes_are_no_reason_to_refuse(
    tmp_path: Path, places: list[str], labels: list[str]
) -> None:
    for place in places:
        _paint(tmp_path / place, 1)
    assert from_folder(tmp_path)["label"].tolist() == labels


@pytest.mark.parametrize(
    ("places", "shared"),
    [
        (["A/TUM/x.png", "A/STR/x.png", "B/TUM/x.png", "B/LYM/x.png"], "TUM"),
        (["train/A/TUM/x.png", "train/B/TUM/x.png", "test/B/STR/x.png", "test/A/STR/x.png"], "STR, TUM"),
        (["A/TUM/x.png", "B/TUM/x.png", "B/x.png"], ""),  # B has an image of its own
        (["A/P1/x.png", "A/P2/x.png", "B/P3/x.png"], ""),  # nothing in common
        (["train/A/x.png", "test/A/x.png", "test/B/x.png"], ""),  # splits
        (["train/A/P1/x.png", "test/A/P1/x.png", "test/B/P2/x.png"], ""),
        (["x.png", "y.png"], ""),
    ],
)
def test_data_sets_side_by_side_are_classes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, places: list[str], shared: str
) -> None:
    for place in places:
        _paint(tmp_path / place, 1)
    from_folder(tmp_path)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        f"data.root={tmp_path}: A, B were taken for classes, but have no image of their own, and folders of "
        f"the same names, {shared}; if those are the classes, say data.root=<one of the sets>, or list the "
        "sets in data.parts"
        for _ in range(bool(shared))
    ]


def test_a_name_that_is_not_utf_8_is_refused_in_a_sentence(tmp_path: Path) -> None:
    _paint(tmp_path / "A" / "x.png", 1)
    (tmp_path / "A" / "x.png").rename(os.fsdecode(os.fsencode(tmp_path / "A") + b"/caf\xe9.png"))
    with pytest.raises(
        ValueError, match=r"1 files have names that are not UTF-8, 'caf\\udce9\.png' among"
    ) as e:
        _data(tmp_path).listing()
    str(e.value).encode()  # it can be printed
