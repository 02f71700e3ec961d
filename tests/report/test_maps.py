"""A map's page is given each tile at its place, with its class, its slide and its picture."""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_ssl.report.html import build_report
from histo_ssl.report.maps import COLOURS, MARKS, for_page, look, read_map, sheet
from histo_ssl.report.runs import read_results

SCRIPT = "</script><script>alert(1)</script>"
SIDE = 8
LABELS = ["fat", SCRIPT, "", "fat", "fat"]


@pytest.fixture
def mapped(fake_runs: Any) -> Any:
    """A run with a map of five tiles by two subjects; tile i has colour 40 * i."""
    encoder, tiles = fake_runs.pretraining(), fake_runs.tile_set()
    fake_runs.tile_map(encoder, tiles, labels=LABELS, slide=f"{SCRIPT}s")
    return fake_runs


def test_point_i_of_every_subject_is_picture_i_of_the_sheet(mapped: Any) -> None:
    (result,) = read_results(mapped.path)
    tile_map = read_map(result)
    assert tile_map is not None
    page: dict[str, Any] = for_page(tile_map)
    assert [one["name"] for one in page["subjects"]] == ["encoder", "colour floor"]
    assert page["subjects"][1]["places"] == [[i + 1, -i] for i in range(5)]
    assert [page["classes"][i] for i in page["labels"]] == ["fat", SCRIPT, "no label", "fat", "fat"]
    assert [page["slides"][slide] for slide, *_ in page["tiles"]] == [f"{SCRIPT}s{i}" for i in range(5)]
    assert [at for _, *at in page["tiles"]] == [[], [1, 0], [2, 0], [3, 0], [4, 0]]  # 0, 0 is an image's
    assert page["columns"] == 3
    drawn = sheet(result.folder / "thumbnails.png", n_bytes=100_000)
    pixels = np.asarray(Image.open(io.BytesIO(drawn.content)).convert("L")).astype(int)
    centres = [pixels[SIDE * (i // 3) + 4, SIDE * (i % 3) + 4] for i in range(5)]
    np.testing.assert_allclose(centres, [0, 40, 80, 120, 160], atol=6)  # a JPEG


def test_the_run_s_page_holds_the_map_and_names_stay_text(mapped: Any, read_pages: Any) -> None:
    pages = read_pages(build_report(mapped.path))
    (page,) = [page for name, page in pages.items() if name.startswith("runs/")]
    (box,) = [a for a in page.all("div") if a.get("class") == "map"]
    assert (page.path.parent / box["data-sheet"]).is_file()
    data, _ = page.scripts
    assert "<" not in data
    assert SCRIPT in json.loads(data)["classes"]


def test_maps_of_the_same_tiles_share_one_sheet(mapped: Any) -> None:
    other = mapped.pretraining("moco-vit_t-synthetic-1")
    mapped.tile_map(other, "tiles/t", labels=LABELS)
    build_report(mapped.path)
    assert len(list((mapped.path / "report" / "sheets").iterdir())) == 1


def test_48_classes_look_different() -> None:
    assert len({look(place) for place in range(48)}) == len(COLOURS) * len(MARKS) == 48


def test_a_result_without_pictures_has_no_map(shared_runs: Any) -> None:
    assert [read_map(result) for result in read_results(shared_runs.path)] == [None]
