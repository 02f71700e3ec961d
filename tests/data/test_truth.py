"""What covers the patches of tiles: counted by hand, and on generated slides pixel by pixel."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

from histo_ssl.data.annotations import patch_shares
from histo_ssl.data.base import TileSource
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.data.truth import PixelTruth

SMALL = [
    *("data.n_slides=2", "data.n_patients=2", "data.n_sites=1", "data.size_px=600", "data.region_um=100"),
    *("data.pen_share=0", "data.fold_share=0"),  # which are dark, too
]


@pytest.fixture(scope="module")
def source(compose: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> SlideTiles:
    """Tiles of 64 px at 1 um/px of two generated slides, whose folder lies beside them."""
    home = tmp_path_factory.mktemp("home")
    plan = compose("method=random", "backbone=vit_t", *SMALL)
    folder = home / "tiles"
    folder.mkdir()
    data, tiling = instantiate(plan.group("data")), instantiate(plan.group("tiling"))
    data.tile(tiling, folder=folder, home=home, n_processes=0, slide_timeout_s=60)
    opened: TileSource = open_source(folder)
    assert isinstance(opened, SlideTiles)
    return opened


def test_shares_of_patches_are_counted_by_hand() -> None:
    raster = np.zeros((8, 8), np.uint8)
    raster[:2, :4] = 1  # the upper half of the patch at (0, 0)
    raster[4:, 4:6] = 2  # the left half of the patch at (1, 1)
    raster[4:, 6:] = 1
    found = patch_shares(raster, (0, 0), values=[1, 2], n_patches=2, side_level0=80, size_level0=(80, 80))
    assert found.tolist() == [[[0.5, 0.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.5]]]


def test_a_coarse_raster_gives_each_patch_a_pixel_at_the_least() -> None:
    raster = np.array([[1, 2], [3, 4]], np.uint8)
    found = patch_shares(raster, (50, 0), values=[2, 4], n_patches=4, side_level0=50, size_level0=(100, 100))
    assert found[0].tolist() == [[1.0] * 4] * 4  # the right upper quarter of the slide
    assert found[1].tolist() == [[0.0] * 4] * 4


def test_a_generated_slide_knows_its_nuclei_and_tissues(source: SlideTiles) -> None:
    truth = PixelTruth(source, nuclei=None, tissues=None)
    assert truth.names[0] == "nuclei"
    assert {"stroma", "fat", "lymphocytes"} <= set(truth.names)
    for row in (0, len(source) // 2, len(source) - 1):
        found = truth.shares(row, n_patches=4)
        slide = source.table()["slide"].iloc[row]
        home = Path(source.scan(slide).slide.path).parent.parent
        x, y = source.coords()[row]
        mask = np.asarray(Image.open(home / "nuclei" / f"{slide}.png")) > 0
        expected = mask[y : y + 128, x : x + 128].reshape(4, 32, 4, 32).mean(axis=(1, 3))
        np.testing.assert_allclose(found[0], expected, atol=1e-12)
        assert (found[1:].sum(axis=0) <= 1 + 1e-9).all()  # tissues are apart; glass is none
        label = source.table()["label"].iloc[row]
        if label:
            assert found[truth.names.index(label)].mean() > 0.4  # of which .5 made the label, by other pixels


def test_nuclei_are_dark_where_the_truth_says(source: SlideTiles) -> None:
    truth = PixelTruth(source, nuclei=None, tissues=None)
    shares, levels = [], []
    for row in range(0, len(source), 3):
        shares.append(truth.shares(row, n_patches=4)[0].ravel())
        levels.append(source.read(row)[..., 0].reshape(4, 16, 4, 16).mean(axis=(1, 3)).ravel())
    assert np.corrcoef(np.concatenate(shares), np.concatenate(levels))[0, 1] < -0.8


def test_folders_of_one_s_own_count_and_slides_without_a_raster_are_unknown(
    source: SlideTiles, tmp_path: Path
) -> None:
    first, second = source.slides()["slide"]
    rows = [int(np.flatnonzero(source.table()["slide"] == name)[0]) for name in (first, second)]
    Image.fromarray(np.full((6, 6), 7, np.uint8)).save(tmp_path / f"{first}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"7": "all"}))
    truth = PixelTruth(source, nuclei=str(tmp_path), tissues=str(tmp_path))
    assert truth.names == ["nuclei", "all"]
    assert truth.shares(rows[0], n_patches=2).tolist() == [[[1.0] * 2] * 2] * 2
    assert np.isnan(truth.shares(rows[1], n_patches=2)).all()


def test_of_images_nothing_is_known(image_source: Callable[[int], TileSource]) -> None:
    assert PixelTruth(image_source(4), nuclei=None, tissues=None).names == []


def test_a_folder_that_is_not_there_is_refused(source: SlideTiles) -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere: no such folder"):
        PixelTruth(source, nuclei="/nowhere", tissues=None)


def test_two_phenotypes_of_one_name_are_refused(source: SlideTiles, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"1": "nuclei", "2": "fat"}))
    with pytest.raises(ValueError, match="several phenotypes are called nuclei"):
        PixelTruth(source, nuclei=None, tissues=str(tmp_path))


def test_a_region_has_its_tile_in_the_middle(source: SlideTiles) -> None:
    table = source.table()
    inner = table[(table["x"].between(100, 300)) & (table["y"].between(100, 300))].index[0]
    region = source.around(int(inner), side_px=96)
    np.testing.assert_array_equal(region[16:80, 16:80], source.read(int(inner)))
