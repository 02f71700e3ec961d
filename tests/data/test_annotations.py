"""Labels of tiles from rasters, on rasters small enough to count by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_ssl.data.annotations import raster_sizes, read_classes, read_raster, tile_classes


def _classes(raster: list[list[int]], xy: list[tuple[int, int]], *, side: int, min_share: float) -> list[int]:
    array = np.array(raster, dtype=np.uint8)
    size = (array.shape[1] * 10, array.shape[0] * 10)  # a raster pixel covers 10 level-0 pixels
    found = tile_classes(
        array, np.array(xy), values=[1, 2], side_level0=side, size_level0=size, min_share=min_share
    )
    return found.tolist()


def test_a_tile_takes_the_class_that_covers_most_of_it_if_that_is_enough() -> None:
    raster = [
        [1, 1, 2, 2],
        [1, 2, 2, 2],
        [0, 0, 0, 1],
        [0, 0, 1, 1],
    ]
    corners = [(0, 0), (20, 0), (0, 20), (20, 20)]
    assert _classes(raster, corners, side=20, min_share=0.5) == [0, 1, -1, 0]  # 3/4, 4/4, none, 3/4
    assert _classes(raster, corners, side=20, min_share=0.8) == [-1, 1, -1, -1]


def test_footprints_round_to_the_raster_and_keep_at_least_one_pixel() -> None:
    raster = [[1, 2], [2, 1]]
    assert _classes(raster, [(0, 0), (11, 0), (9, 9), (19, 19)], side=1, min_share=1.0) == [0, 1, 0, 0]


def test_shares_agree_with_counting_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    raster = rng.integers(0, 3, (40, 50), dtype=np.uint8)
    xy = np.stack([rng.integers(0, 40, 100) * 10, rng.integers(0, 30, 100) * 10], axis=1)
    found = tile_classes(raster, xy, values=[1, 2], side_level0=100, size_level0=(500, 400), min_share=0.35)
    for (x, y), label in zip(xy // 10, found, strict=True):
        window = raster[y : y + 10, x : x + 10]
        shares = [(window == 1).mean(), (window == 2).mean()]
        assert label == (int(np.argmax(shares)) if max(shares) >= 0.35 else -1)


def test_classes_are_named_by_a_file_that_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing"):
        read_classes(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"10": "fat", "2": "stroma"}))
    assert read_classes(tmp_path) == {2: "stroma", 10: "fat"}


@pytest.mark.parametrize("text", ['["a"]', '{"stroma": 1}', '{"1": ["a"]}', '{"0": "a"}', "{}", "nope"])
def test_classes_that_name_no_values_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json: expected values"):
        read_classes(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_a_raster_of_colours_or_of_16_bits_is_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"one 8-bit index per pixel, this has mode {mode}"):
        read_raster(tmp_path / "a.png")


def test_rasters_of_which_none_belongs_to_a_slide_are_refused_with_both_names(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "slide_1_labels.png")
    with pytest.raises(
        ValueError, match=r"none is named after a slide; expected s1\.png .* slide_1_labels\.png"
    ):
        raster_sizes(tmp_path, ["s1", "s2"])


def test_how_many_slides_have_a_raster_is_said_and_who_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("s1", "s3"):
        Image.new("L", (2, 2)).save(tmp_path / f"{name}.png")
    sizes = raster_sizes(tmp_path, ["s1", "s2", "s3", "s4", "s5", "s6"])
    assert list(sizes) == ["s1", "s3"]
    assert "2 of 6 slides have one, none have s2, s4, s5, ..." in caplog.text
    caplog.clear()
    raster_sizes(tmp_path, ["s1", "s3"])
    assert caplog.text == ""


def test_rasters_of_no_slide_are_named_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("s1", "s2.0", "x4", "x3", "x2", "x1", ".hidden"):
        Image.new("L", (2, 2)).save(tmp_path / f"{name}.png")
    (tmp_path / "classes.json").write_text("{}")
    assert list(raster_sizes(tmp_path, ["s1", "s2.0"])) == ["s1", "s2.0"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"data.annotations={tmp_path}: 4 of 6 rasters belong to no slide of the list and are not read: "
        "x1.png, x2.png, x3.png, ..."
    )
