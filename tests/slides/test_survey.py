"""Surveys: which tiles a list of slides has, and what is said of those that fail."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from histo_ssl.executors.base import Processes
from histo_ssl.folders.disk import NotWrittenError
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.opened import MAX_OPEN_SLIDES
from histo_ssl.slides.overlay import OUTLINE, TILE, overlay
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.survey import Recipe, survey, survey_slides
from histo_ssl.units import MicronsPerPx, TilePx

TISSUE = (slice(256, 768), slice(128, 896))  # rows and columns, px: exactly 24 tiles of 128 px


@pytest.fixture
def tissue_slide(write_slide) -> str:
    """1024 x 1024 px at 0.5 um/px: a block of pink texture on glass."""
    random = np.random.default_rng(0)
    pixels = random.normal(242, 0.7, (1024, 1024, 3))
    rows, columns = (edge.stop - edge.start for edge in TISSUE)
    grain = random.random((rows // 16, columns // 16, 1)).repeat(16, axis=0).repeat(16, axis=1)
    pixels[TISSUE] = np.array([225, 170, 205]) - grain * np.array([60, 80, 50])
    return write_slide([pixels.round().astype(np.uint8)], mpp=0.5, name="tissue.tif")


@pytest.fixture
def glass_slide(write_slide) -> str:
    """512 x 512 px at 0.5 um/px of noisy glass."""
    pixels = np.random.default_rng(0).normal(242, 1, (512, 512, 3)).round().astype(np.uint8)
    return write_slide([pixels], mpp=0.5, name="glass.tif")


def listed(*paths: str) -> pd.DataFrame:
    ids = [Path(path).stem for path in paths]
    known = {"patient_id": ids, "site": "", "label": "", "split": "", "batch": "7"}
    return pd.DataFrame({"slide_id": ids, "path": paths, **known})


def row(path: str) -> dict[str, str]:
    return {str(name): str(value) for name, value in listed(path).iloc[0].items()}


def test_a_survey_finds_exactly_the_tiles_that_hold_the_tissue(
    tissue_slide: str, recipe: Recipe, here: Processes, tmp_path: Path
) -> None:
    found = survey(row(tissue_slide), None, recipe=recipe, overlays=tmp_path / "overlays")
    expected = [[x, y] for y in range(256, 768, 128) for x in range(128, 896, 128)]
    assert found.xy_level0.tolist() == expected
    status = found.status
    assert (status["width_px"], status["height_px"], status["mpp"], status["n_levels"]) == (
        1024,
        1024,
        0.5,
        1,
    )
    assert (status["n_tiles"], status["reason"], status["batch"]) == (24, "", "7")
    area_mm2 = 512 * 768 * 0.25 / 1e6
    # The mask has pixels of 8 um: rounded corners cost a few, blur may add one along each side.
    with_rim_mm2 = (512 * 0.5 + 16) * (768 * 0.5 + 16) / 1e6
    assert 0.99 * area_mm2 < status["tissue_mm2"] < with_rim_mm2
    assert 0 < float(status["seconds"]) < 60


def test_the_overlay_frames_each_tile_and_outlines_the_tissue() -> None:
    thumbnail = np.full((100, 200, 3), 240, np.uint8)
    mask = np.zeros((10, 20), bool)
    mask[2:8, 4:16] = True
    xy = np.array([[800, 400], [1200, 400]], np.int32)
    drawn = np.asarray(overlay(thumbnail, mask, xy, side_level0=400, size_level0=(2000, 1000)))
    assert drawn.shape == (100, 200, 3)
    # 10 level-0 px to the px: tiles at x 80-119 and 120-159 (which the outline covers on the right), y 40-79.
    np.testing.assert_array_equal(drawn[60, [80, 119, 120]], [TILE] * 3)
    np.testing.assert_array_equal(drawn[40, 90:110], [TILE] * 20)
    np.testing.assert_array_equal(drawn[[50, 50, 20, 79], [40, 39, 100, 50]], [OUTLINE] * 4)
    assert (drawn[60, 100] == 240).all()
    assert (drawn[10, 10] == 240).all()


def test_a_slide_of_glass_has_a_picture_no_tile_and_a_reason(
    glass_slide: str, recipe: Recipe, here: Processes, tmp_path: Path
) -> None:
    found = survey(row(glass_slide), None, recipe=recipe, overlays=tmp_path)
    assert found.status["n_tiles"] == 0
    assert str(found.status["reason"]).startswith("no tissue found")
    with Image.open(tmp_path / "glass.png") as picture:
        assert picture.size == (512, 512)


def test_tissue_too_little_for_a_tile_says_what_to_lower(
    tissue_slide: str, recipe: Recipe, here: Processes, tmp_path: Path
) -> None:
    large = replace(recipe.tiling, size_px=2000, stride_px=2000)
    too_large = replace(recipe, tiling=large)
    reason = survey(row(tissue_slide), None, recipe=too_large, overlays=tmp_path).status["reason"]
    assert str(reason).startswith("no tile of 2000 px at 0.5 um/px fits in the scan with 50% tissue; lower")


def test_one_bad_slide_of_a_list_costs_a_row_and_no_more(
    tissue_slide: str, glass_slide: str, write_slide, recipe: Recipe, here: Processes, tmp_path: Path
) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    unknown = write_slide([np.zeros((64, 64, 3), np.uint8)], mpp=None, name="unknown.tif")
    coarse = write_slide([np.zeros((64, 64, 3), np.uint8)], mpp=0.69, name="coarse.tif")
    paths = [
        str(tmp_path / "text.svs"),
        tissue_slide,
        unknown,
        str(tmp_path / "gone.tif"),
        glass_slide,
        coarse,
    ]
    mpps = [None] * len(paths)
    index = survey_slides(
        listed(*paths),
        mpps=mpps,
        recipe=recipe,
        folder=tmp_path / "tiles",
        processes=here,
    )
    assert index.slides["n_tiles"].tolist() == [0, 24, 0, 0, 0, 0]
    expected = [
        "not a TIFF file",
        "",
        "data.mpp_override",
        "no such file",
        "no tissue found",
        "tiling.mpp >= 0.690",
    ]
    for said, wanted in zip(index.slides["reason"], expected, strict=True):
        assert wanted in said
        assert bool(said) == bool(wanted)
    manifest = ["slide_id", "path", "patient_id", "site", "label", "split"]
    found = ["width_px", "height_px", "mpp", "n_levels", "n_unwritten", "tissue_mm2"]
    found += ["n_bytes", "modified_ns", "digest", "n_tiles", "seconds", "reason"]
    assert index.slides.columns.tolist() == [*manifest, *found, "batch"]
    assert set(index.tiles["slide"]) == {1}
    assert sorted(path.name for path in (tmp_path / "tiles" / "overlays").iterdir()) == [
        "glass.png",
        "tissue.png",
    ]


def test_stated_um_per_px_overrules_the_file(
    tissue_slide: str, recipe: Recipe, here: Processes, tmp_path: Path
) -> None:
    full = replace(
        recipe.tiling, min_tissue=0.9
    )  # the block's left and right edges halve tiles of 256 level-0 px
    index = survey_slides(
        listed(tissue_slide),
        mpps=[0.25],
        recipe=replace(recipe, tiling=full),
        folder=tmp_path / "tiles",
        processes=here,
    )
    assert index.slides["mpp"].tolist() == [0.25]
    assert index.of_slide(0).tolist() == [[256, 256], [512, 256], [256, 512], [512, 512]]


class LastFirst:
    """An executor whose results come in another order than was asked for."""

    is_here, embed_timeout_s = True, math.inf

    def each(self, work, items, processes: Processes, *, folder: Path):
        for place in reversed(range(len(items))):
            yield place, work(items[place])


@pytest.mark.slow
def test_the_index_is_the_same_from_one_process_two_or_an_executor(
    tissue_slide: str, glass_slide: str, recipe: Recipe, here: Processes, tmp_path: Path
) -> None:
    slides = listed(tissue_slide, glass_slide)
    one = survey_slides(slides, mpps=[None, None], recipe=recipe, folder=tmp_path / "1", processes=here)
    two = survey_slides(
        slides,
        mpps=[None, None],
        recipe=recipe,
        folder=tmp_path / "2",
        processes=Processes(n=2, timeout_s=60, memory_gb=4),
    )
    last_first = survey_slides(
        slides,
        mpps=[None, None],
        recipe=recipe,
        folder=tmp_path / "3",
        processes=here,
        executor=LastFirst(),
    )
    for other in (two, last_first):
        np.testing.assert_array_equal(one.tiles, other.tiles)
        pd.testing.assert_frame_equal(
            one.slides.drop(columns="seconds"), other.slides.drop(columns="seconds")
        )


def test_a_tiling_for_images_is_refused_before_any_slide_is_opened(
    recipe: Recipe, here: Processes, tmp_path: Path
) -> None:
    native = replace(recipe.tiling, size_px=None)
    with pytest.raises(ValueError, match=r"tiling\.size_px=None"):
        survey_slides(
            listed("absent.tif"),
            mpps=[None],
            recipe=replace(recipe, tiling=native),
            folder=tmp_path,
            processes=here,
        )


@pytest.mark.slow
def test_a_slide_that_hangs_its_reader_costs_a_row_and_no_more(
    tissue_slide: str, recipe: Recipe, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "hangs.tif")  # opening it waits for a writer, forever
    paths = [str(tmp_path / "hangs.tif"), tissue_slide]
    index = survey_slides(
        listed(*paths),
        mpps=[None, None],
        recipe=recipe,
        folder=tmp_path / "tiles",
        processes=Processes(n=1, timeout_s=3, memory_gb=4),
    )
    assert index.slides["n_tiles"].tolist() == [0, 24]
    expected = f"{paths[0]}: the reader did not finish within slide_timeout_s=3"
    assert index.slides["reason"].tolist() == [expected, ""]


@pytest.mark.slow
def test_a_slide_that_takes_too_much_memory_costs_a_row_and_no_more(
    tissue_slide: str, recipe: Recipe, tmp_path: Path
) -> None:
    sparse = str(tmp_path / "sparse.tif")  # a gigapixel in a few bytes: all of it white, none of it stored
    with tifffile.TiffWriter(sparse) as tiff:
        tiles = (b"" for _ in range(32 * 32))
        options = {"photometric": "rgb", "compression": "deflate", "metadata": None}
        options |= {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
        shape = (32 * 1024, 32 * 1024, 3)
        tiff.write(tiles, shape=shape, dtype=np.uint8, tile=(1024, 1024), **options)
    index = survey_slides(
        listed(sparse, tissue_slide),
        mpps=[None, None],
        recipe=replace(recipe, tiling=replace(recipe.tiling, tissue=replace(recipe.tiling.tissue, mpp=1.0))),
        folder=tmp_path / "tiles",
        processes=Processes(n=1, timeout_s=60, memory_gb=0.3),
    )
    assert index.slides["reason"][0].endswith("more memory than there is, or data.max_memory_gb allows")
    assert index.slides["reason"][1] == ""


def test_a_full_disk_is_not_the_slides_fault(tissue_slide: str, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "overlays").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="overlays"):
        survey(row(tissue_slide), None, recipe=recipe, overlays=tmp_path / "overlays")


def test_tiles_that_were_never_written_are_counted_in_the_status(
    tissue_slide: str, recipe: Recipe, tmp_path: Path
) -> None:
    with tifffile.TiffFile(tissue_slide, mode="r+") as tiff:
        tag = tiff.pages.first.tags["TileByteCounts"]
        tag.overwrite([0, 0, 0, *tag.value[3:]])
    found = survey(row(tissue_slide), None, recipe=recipe, overlays=tmp_path)
    assert (found.status["n_unwritten"], found.status["n_tiles"], found.status["reason"]) == (3, 24, "")
    assert found.status["n_bytes"] == Path(tissue_slide).stat().st_size


@pytest.mark.slow
def test_two_thousand_slides_leave_no_more_files_open_than_the_reader_keeps(
    write_slide, tmp_path: Path
) -> None:
    path = write_slide([np.full((64, 64, 3), 7, np.uint8)], mpp=0.5)
    for i in range(2000):
        os.link(path, tmp_path / f"{i}.tif")
    spec = TileSpec(size_px=TilePx(64), mpp=MicronsPerPx(0.5), stride_px=TilePx(64), min_tissue=0)

    def n_open() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    n_before, n_most = n_open(), 0
    for i in range(2000):
        assert Slide(str(tmp_path / f"{i}.tif")).read((0, 0), spec)[0, 0, 0] == 7
        n_most = max(n_most, n_open())
    assert n_most - n_before <= MAX_OPEN_SLIDES


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_full_disk_is_no_fault_of_the_slide(
    tissue_slide: str, recipe: Recipe, tmp_path: Path, n_processes: int
) -> None:
    """Two slides whose overlays' names are taken by folders: a failing rename, in workers, too."""
    copy = tmp_path / "copy.tif"
    shutil.copy(tissue_slide, copy)
    for name in ("tissue", "copy"):
        (tmp_path / "tiles" / "overlays" / f"{name}.png").mkdir(parents=True)
    with pytest.raises(NotWrittenError, match=r"overlays/tissue\.png: not written, Is a directory"):
        survey_slides(
            listed(tissue_slide, str(copy)),
            mpps=[None, None],
            recipe=recipe,
            folder=tmp_path / "tiles",
            processes=Processes(n=n_processes, timeout_s=60, memory_gb=4),
        )
    assert not (tmp_path / "tiles" / "status.csv").exists()
