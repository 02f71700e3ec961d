"""The table of all tiles: what is written is what is read, at once and in any process."""

import csv
import pickle
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histo_ssl.slides.index import INDEX, STATUS, TILE, TileIndex, write_index

XY = [
    np.array([[0, 0], [128, 0], [0, 128]], np.int32),
    np.zeros((0, 2), np.int32),
    np.array([[7, 9]], np.int32),
]


def status(n_tiles: list[int]) -> pd.DataFrame:
    n = len(n_tiles)
    numbers = {
        "width_px": 500,
        "height_px": 400,
        "mpp": 0.5,
        "n_levels": 1,
        "tissue_mm2": 0.1,
        "seconds": 0.2,
    }
    ids = [f"00{i}" for i in range(n)]  # a number at first sight, and text all the same
    return pd.DataFrame(
        {"slide_id": ids, "label": ["NA", "", "x"][:n], **numbers, "n_tiles": n_tiles, "reason": ""}
    )


def test_tiles_come_back_slide_by_slide(tmp_path: Path) -> None:
    write_index(tmp_path, status=status([3, 0, 1]), xy_level0=XY)
    index = TileIndex(tmp_path)
    assert len(index) == 4
    assert index.tiles["slide"].tolist() == [0, 0, 0, 2]
    assert index.offsets.tolist() == [0, 3, 3, 4]
    for i, xy in enumerate(XY):
        np.testing.assert_array_equal(index.of_slide(i), xy)


def test_text_of_the_status_stays_text_and_numbers_are_numbers(tmp_path: Path) -> None:
    slides = write_index(tmp_path, status=status([3, 0, 1]), xy_level0=XY).slides
    assert slides["slide_id"].tolist() == ["000", "001", "002"]
    assert slides["label"].tolist() == ["NA", "", "x"]
    assert slides["n_tiles"].sum() == 4
    assert slides["mpp"].mean() == 0.5


def test_no_text_of_the_status_is_a_formula_and_every_text_comes_back(tmp_path: Path) -> None:
    rows = status([3, 0, 1]).assign(
        **{"label": ["=1+1", "-", "'x"], "@extra": "+", "reason": "=cmd|' /C calc'!A0"}
    )
    read = write_index(tmp_path, status=rows, xy_level0=XY).slides
    assert read["label"].tolist() == ["=1+1", "-", "'x"]
    assert read["@extra"].tolist() == ["+"] * 3
    with (tmp_path / STATUS).open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))] == []


def test_a_list_without_any_tile_has_an_index_of_length_zero(tmp_path: Path) -> None:
    index = write_index(tmp_path, status=status([0]), xy_level0=[XY[1]])
    assert len(index) == 0
    assert index.of_slide(0).shape == (0, 2)


def test_an_index_is_pickled_by_its_folder_and_read_there(tmp_path: Path) -> None:
    index = write_index(tmp_path, status=status([3, 0, 1]), xy_level0=XY)
    content = pickle.dumps(index)
    assert len(content) < 500
    np.testing.assert_array_equal(pickle.loads(content).tiles, index.tiles)


def test_a_hundred_million_tiles_open_at_once(tmp_path: Path) -> None:
    n_tiles = 100_000_000
    # A sparse file: 1.2 GB in name, a page on the disk.
    np.lib.format.open_memmap(tmp_path / INDEX, mode="w+", dtype=TILE, shape=(n_tiles,)).flush()
    status([n_tiles]).to_csv(tmp_path / STATUS, index=False)
    started = time.process_time()
    index = TileIndex(tmp_path)
    assert len(index) == n_tiles
    assert index.tiles[n_tiles - 1].tolist() == (0, 0, 0)
    assert time.process_time() - started < 0.5  # milliseconds; reading it would take seconds


def test_an_index_that_does_not_fit_its_status_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, status=status([3, 0, 1]), xy_level0=XY)
    status([3, 0, 2]).to_csv(tmp_path / STATUS, index=False)
    with pytest.raises(ValueError, match=r"index\.npy lists 4 tiles and status\.csv 5; delete the folder"):
        TileIndex(tmp_path)
