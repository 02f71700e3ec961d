"""Tiles from packs are those of the slides, whatever could not be packed."""

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from histo_ssl.data.packed import PackedTiles, pack_tiles, with_packs
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.executors.base import Ended, Processes
from histo_ssl.executors.processes import Local
from histo_ssl.folders.artifacts import write_json
from histo_ssl.slides.index import write_index
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.survey import UNKNOWN

HERE = Processes(n=0, timeout_s=math.inf, memory_gb=math.inf)
LOCAL = Local(retries=0)
TILE_PX = 64
NAMES = ("a", "b", "held")


@pytest.fixture
def slides(write_slide: Any, tmp_path: Path) -> SlideTiles:
    """Tiles of 64 px at 1 um/px of three slides of 512 px at 0.5, of which one is held out."""
    random = np.random.default_rng(0)
    folder = tmp_path / "tiles"
    folder.mkdir()
    rows, places = [], []
    for name in NAMES:
        coarse = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        path = write_slide([coarse.repeat(16, axis=0).repeat(16, axis=1)], mpp=0.5, name=f"{name}.tif")
        stamp = Slide(path).stamp
        xy = np.array([(x, y) for y in range(0, 512, 128) for x in range(0, 512, 128)], np.int32)
        known = {"slide_id": name, "path": path, "patient_id": name, "site": "", "label": ""}
        split = "test" if name == "held" else "train"
        facts = {
            "n_bytes": stamp.n_bytes,
            "modified_ns": stamp.modified_ns,
            "digest": stamp.digest,
            "mpp": 0.5,
        }
        rows.append(
            {**UNKNOWN, **known, "split": split, **facts, "n_tiles": len(xy), "seconds": 0.0, "reason": ""}
        )
        places.append(xy)
    write_index(folder, status=pd.DataFrame(rows), xy_level0=places)
    facts = {"kind": "slides", "tile_px": TILE_PX, "mpp": 1.0, "stride_px": TILE_PX, "classes": []}
    write_json(folder / "source.json", facts)
    source = open_source(folder)
    assert isinstance(source, SlideTiles)
    return source


def packed(slides: SlideTiles, home: Path) -> PackedTiles:
    """The same tiles from the packs of a folder, which is made."""
    source = with_packs(slides, lambda fingerprint: home / fingerprint)
    source.packs.mkdir(parents=True, exist_ok=True)
    return source


def check_equal(source: PackedTiles, slides: SlideTiles) -> None:
    assert len(source) == len(slides) == 48
    for i in range(len(slides)):
        np.testing.assert_array_equal(source.read(i), slides.read(i))


@pytest.mark.parametrize("n_processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_tiles_from_packs_are_those_of_the_slides(
    slides: SlideTiles, tmp_path: Path, n_processes: int
) -> None:
    source = packed(slides, tmp_path)
    processes = Processes(n=n_processes, timeout_s=60, memory_gb=math.inf)
    counts = pack_tiles(source.packs, source=slides, processes=processes, executor=LOCAL)
    assert (counts["slides"], counts["failed"], counts["tiles"]) == (2, 0, 32)
    assert counts["tiles without a loss"] == 32
    assert {path.name for path in source.packs.iterdir()} == {"a.pack", "b.pack", "status.csv"}
    assert counts["bytes"] == sum(path.stat().st_size for path in source.packs.glob("*.pack"))
    check_equal(source, slides)
    check_equal(pickle.loads(pickle.dumps(source)), slides)
    assert source.faster(slides.training_rows()) == ""


def test_packed_tiles_need_their_slides_no_more(slides: SlideTiles, tmp_path: Path) -> None:
    source = packed(slides, tmp_path)
    pack_tiles(source.packs, source=slides, processes=HERE, executor=LOCAL)
    expected = [slides.read(i) for i in range(32)]
    for name in NAMES:
        (tmp_path / f"{name}.tif").unlink()
    again = open_source(slides.index.folder)
    fresh = with_packs(again, lambda fingerprint: tmp_path / fingerprint)
    for i, tile in enumerate(expected):
        np.testing.assert_array_equal(fresh.read(i), tile)
    with pytest.raises(FileNotFoundError, match=r"held.tif: there is no such file"):
        fresh.read(40)


def test_a_killed_packing_goes_on_where_it_was(slides: SlideTiles, tmp_path: Path) -> None:
    source = packed(slides, tmp_path)
    pack_tiles(source.packs, source=slides, processes=HERE, executor=LOCAL)
    first, second = source.packs / "a.pack", source.packs / "b.pack"
    content, before = second.read_bytes(), first.stat().st_mtime_ns
    second.write_bytes(content[: len(content) // 2])
    (source.packs / "status.csv").unlink()
    pack_tiles(source.packs, source=slides, processes=HERE, executor=LOCAL)
    assert first.stat().st_mtime_ns == before  # not written again
    assert second.read_bytes() == content


class Crashing:
    """An executor whose processes die of the second slide."""

    is_here = True
    embed_timeout_s = math.inf

    def each(
        self, work: Callable[[Any], Any], items: Sequence[Any], processes: Processes, *, folder: Path
    ) -> Iterator[tuple[int, Any]]:
        yield 0, work(items[0])
        yield 1, Ended(items[1], "the reader crashed (exit status 1)")


def test_a_slide_that_cannot_be_packed_has_its_reason_and_is_read_itself(
    slides: SlideTiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = packed(slides, tmp_path)
    counts = pack_tiles(source.packs, source=slides, processes=HERE, executor=Crashing())
    assert (counts["slides"], counts["failed"], counts["tiles without a loss"]) == (2, 1, 16)
    status = pd.read_csv(source.packs / "status.csv", keep_default_na=False)
    assert status["reason"].tolist() == ["", "the reader crashed (exit status 1)"]
    assert "1 of 2 slides could not be packed" in caplog.text
    check_equal(source, slides)


def test_a_damaged_pack_is_an_unreadable_tile_with_a_sentence(slides: SlideTiles, tmp_path: Path) -> None:
    source = packed(slides, tmp_path)
    pack_tiles(source.packs, source=slides, processes=HERE, executor=LOCAL)
    path = source.packs / "a.pack"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(
        ValueError, match=r"a.pack: tile 0 is damaged .* delete it, and the same command packs"
    ):
        source.read(0)
    np.testing.assert_array_equal(source.read(1), slides.read(1))


def test_a_slide_that_was_replaced_has_packs_in_another_folder(slides: SlideTiles, tmp_path: Path) -> None:
    before = packed(slides, tmp_path).packs
    slides.index.slides.loc[0, "digest"] = "another"
    assert packed(slides, tmp_path).packs != before


def test_the_size_of_all_packs_is_told_beforehand(slides: SlideTiles, tmp_path: Path) -> None:
    source = packed(slides, tmp_path)
    counts = pack_tiles(source.packs, source=slides, processes=HERE, executor=LOCAL)
    assert slides.packed_bytes(slides.training_rows()) == pytest.approx(counts["bytes"], rel=0.05)
    told = slides.faster(slides.training_rows())
    assert told.startswith("data.pack=true would store 32 tiles once, about 7.")
    assert told.endswith("e-05 GB")


def test_images_have_no_packs(image_source: Callable[[int], Any]) -> None:
    with pytest.raises(ValueError, match=r"data.pack=true is for tiles that are cut from slides"):
        with_packs(image_source(2), Path)
