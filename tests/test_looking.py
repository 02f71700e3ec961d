"""Where a model looked: files of each slide, and attention that was planted on a tissue found there."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate
from PIL import Image

from histo_ssl.config.plan import Plan
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.looking import write_looks
from histo_ssl.tasks.base import Look


@pytest.fixture(scope="module")
def source(compose: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> SlideTiles:
    """The tiles of two generated slides of known tissue."""
    home = tmp_path_factory.mktemp("looking")
    plan = compose("data.n_slides=2", "data.n_patients=2", "data.size_px=1200", "data.pen_share=0")
    folder = home / "tiles"
    folder.mkdir()
    tiling: Any = instantiate(plan.group("tiling"))
    instantiate(plan.group("data")).tile(tiling, folder=folder, home=home, n_processes=0, slide_timeout_s=60)
    found = open_source(folder)
    assert isinstance(found, SlideTiles)
    return found


def _look(source: SlideTiles, attention: Callable[[pd.DataFrame], Any], *, part: int = 0) -> Look:
    of = source.parts()[part]
    table = source.table().iloc[of.start : of.stop]
    return Look(
        slide=of.name,
        model="clam_sb",
        fold="k0",
        title="clam_sb: IDC 0.90 (right)",
        coords=source.coords()[of.start : of.stop],
        attention=np.asarray(attention(table), dtype=np.float64),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_attention_that_was_planted_on_a_tissue_is_found_there(source: SlideTiles, tmp_path: Path) -> None:
    looks = [_look(source, lambda table: table["label"] == "stroma", part=part) for part in (0, 1)]
    write_looks(looks, source, tmp_path)
    found = {row["label"]: row for row in _rows(tmp_path / "attention" / "by_label.csv")}
    assert float(found["stroma"]["attention_auc"]) == 1.0
    assert found["stroma"]["n_slides"] == "2"
    assert all(float(row["attention_auc"]) < 0.5 for label, row in found.items() if label != "stroma")


def test_attention_at_random_tells_no_tissue(source: SlideTiles, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    looks = [_look(source, lambda table: rng.random(len(table)), part=part) for part in (0, 1)]
    write_looks(looks, source, tmp_path)
    rows = _rows(tmp_path / "attention" / "by_label.csv")
    # 200 tiles in all, labels of 20 and more: an SE of up to .07
    n = pd.Series(source.table()["label"]).value_counts()
    common = [float(row["attention_auc"]) for row in rows if n[row["label"]] >= 20]
    assert common
    assert all(abs(value - 0.5) < 0.21 for value in common)


def test_each_slide_has_a_table_a_file_for_qupath_a_map_and_its_extreme_tiles(
    source: SlideTiles, tmp_path: Path
) -> None:
    look = _look(source, lambda table: np.arange(len(table)))
    write_looks([look], source, tmp_path)
    folder = tmp_path / "attention"
    rows = _rows(folder / f"{look.slide}.csv")
    assert [(int(row["x"]), int(row["y"])) for row in rows] == [tuple(xy) for xy in look.coords.tolist()]
    assert [float(row["attention"]) for row in rows] == look.attention.tolist()
    n = len(look.attention)
    assert float(rows[-1]["percentile"]) == pytest.approx(100 * (n - 0.5) / n)
    features = json.loads((folder / f"{look.slide}.geojson").read_text())["features"]
    x, y = look.coords[3].tolist()
    side = source.scan(look.slide).side_level0
    assert features[3]["geometry"]["coordinates"][0][2] == [x + side, y + side]
    assert features[3]["properties"]["measurements"]["attention"] == 3
    for name in (f"{look.slide}.png", f"{look.slide}_tiles.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100


def test_a_slide_without_some_tiles_embeddings_is_drawn_from_those_that_it_has(
    source: SlideTiles, tmp_path: Path
) -> None:
    whole = _look(source, lambda table: np.arange(len(table)))
    some = Look(**{**vars(whole), "coords": whole.coords[::3], "attention": whole.attention[::3]})
    write_looks([some], source, tmp_path)
    of = source.parts()[0]
    labels = source.table()["label"].iloc[of.start : of.stop].tolist()[::3]
    assert [row["label"] for row in _rows(tmp_path / "attention" / f"{some.slide}.csv")] == labels


def test_nothing_is_written_where_there_is_nothing_to_see(source: SlideTiles, tmp_path: Path) -> None:
    write_looks([], source, tmp_path)
    assert list(tmp_path.iterdir()) == []
