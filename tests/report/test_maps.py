"""A map is drawn by class, and its page shows each tile at its place and lets nothing escape."""

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_ssl.folders.artifacts import complete
from histo_ssl.report.html import build_report
from histo_ssl.report.maps import COLOURS, MARKS, figures, for_page, look, read_map
from histo_ssl.report.runs import read_results

SCRIPT = "</script><script>alert(1)</script>"
SIDE = 8


@pytest.fixture
def mapped(fake_runs: Any) -> Any:
    """A run with a map of five tiles by two subjects; tile i has colour 40 * i."""
    encoder, tiles = fake_runs.pretraining(), fake_runs.tile_set()
    content = {
        **{"method": "dino", "backbone": "vit_t", "data": "synthetic", "task": "umap"},
        **{
            "encoder_folder": encoder,
            "tile_folder": tiles,
            "primary": ["umap", ""],
            "classes": ["fat", SCRIPT],
        },
        **{
            "counts": {"n_tiles": 5},
            "notes": ["trustworthiness of the map 0.93"],
            "scores": [],
            "confusion": {},
        },
        "thumbnail_px": SIDE,
    }
    labels = ["fat", SCRIPT, "", "fat", "fat"]
    lines = ["slide,x,y,label,map_x,map_y,subject"]
    for s, subject in enumerate(("encoder", "colour")):
        lines += [f"s{i}{SCRIPT},{i},0,{label},{i + s},{-i},{subject}" for i, label in enumerate(labels)]
    sheet = np.full((2 * SIDE, 3 * SIDE, 3), 255, np.uint8)
    for i in range(5):
        top, left = SIDE * (i // 3), SIDE * (i % 3)
        sheet[top : top + SIDE, left : left + SIDE] = 40 * i

    def build(folder: Any) -> dict[str, int]:
        (folder / "results.json").write_text(json.dumps(content))
        (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
        Image.fromarray(sheet).save(folder / "thumbnails.png")
        return {"scores": 0}

    complete(fake_runs.path / "results" / "dino-umap", build=build, label="fake", config={})
    return fake_runs


def test_point_i_of_every_subject_is_picture_i_of_the_sheet(mapped: Any) -> None:
    (result,) = read_results(mapped.path)
    tile_map = read_map(result)
    assert tile_map is not None
    page = for_page(tile_map)
    assert [one["name"] for one in page["subjects"]] == ["encoder", "colour floor"]  # type: ignore[attr-defined]
    assert page["subjects"][1]["places"] == [[i + 1, -i] for i in range(5)]  # type: ignore[index]
    assert [page["classes"][i] for i in page["labels"]] == ["fat", SCRIPT, "no label", "fat", "fat"]  # type: ignore[index,attr-defined]
    assert page["names"][2] == f"s2{SCRIPT} at 2, 0"  # type: ignore[index]
    assert (page["columns"], page["side_px"]) == (3, SIDE)
    pixels = np.asarray(Image.open(io.BytesIO(tile_map.sheet.content)).convert("L")).astype(int)
    centres = [pixels[SIDE * (i // 3) + 4, SIDE * (i % 3) + 4] for i in range(5)]
    np.testing.assert_allclose(centres, [0, 40, 80, 120, 160], atol=6)  # a JPEG


def test_the_page_lies_beside_the_report_which_links_to_it_and_names_stay_text(mapped: Any) -> None:
    index = build_report(mapped.path)
    assert 'href="dino-umap.html"' in index.read_text()
    page = (index.parent / "dino-umap.html").read_text()
    assert page.count("<script>") == page.count("</script>") == 1
    values = json.loads(re.search(r"const map = (\{.*\}), sheet", page).group(1))  # type: ignore[union-attr]
    assert SCRIPT in values["classes"]
    assert "http:" not in page.replace("http-equiv", "")
    assert "https:" not in page


def test_the_figure_shows_every_class_in_its_own_colour(mapped: Any) -> None:
    (result,) = read_results(mapped.path)
    tile_map = read_map(result)
    assert tile_map is not None
    drawn = figures(tile_map)
    assert [picture.title for picture in drawn] == ["Map by encoder", "Map by colour floor"]
    pixels = np.asarray(Image.open(io.BytesIO(drawn[0].content)).convert("RGB")).reshape(-1, 3).astype(int)
    for place in range(3):
        wanted = [int(COLOURS[place][i : i + 2], 16) for i in (1, 3, 5)]
        blended = 0.7 * np.array(wanted) + 0.3 * 255  # points let others shine through
        assert np.abs(pixels - blended).max(axis=1).min() <= 3, COLOURS[place]


def test_48_classes_look_different() -> None:
    assert len({look(place) for place in range(48)}) == len(COLOURS) * len(MARKS) == 48


def test_a_result_without_pictures_has_no_map(shared_runs: Any) -> None:
    assert [read_map(result) for result in read_results(shared_runs.path)] == [None]
