"""Slides behind a server through the stages: the same tiles and embeddings, few bytes beside those needed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from histo_ssl.data.loading import Loading
from histo_ssl.data.slides import SlideData, SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.embed import Embedding, embed_tiles
from histo_ssl.embeddings import read_embeddings
from histo_ssl.slides import segments, stores
from histo_ssl.slides.grid import Tiling
from histo_ssl.slides.kept import Kept
from histo_ssl.tasks.floors import colour_floor
from histo_ssl.units import TilePx

from .store_server import Served, serve

NAMES = ("a", "b")
SIDE = 3072
MOST = 1.5  # bytes sent per byte that the tiles are stored in


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of 3,072 px at 0.5 um/px with four levels, in JPEG: pink texture on half of the glass."""
    made = tmp_path_factory.mktemp("store")
    for name in NAMES:
        random = np.random.default_rng(ord(name))
        pixels = random.normal(242, 0.7, (SIDE, SIDE, 3))
        rows, columns = slice(300, 2800), slice(600, 2400)
        grain = random.random((250, 180, 1)).repeat(10, axis=0).repeat(10, axis=1)
        pixels[rows, columns] = np.array([225, 170, 205]) - grain * np.array([60, 80, 50])
        level = pixels.round().clip(0, 255).astype(np.uint8)
        with tifffile.TiffWriter(made / f"{name}.tif") as tiff:
            for i in range(4):
                tiff.write(
                    level[:: 2**i, :: 2**i],
                    **{"tile": (256, 256), "compression": "jpeg", "photometric": "rgb", "metadata": None},
                    **{"resolution": (2e4 / 2**i, 2e4 / 2**i), "resolutionunit": "CENTIMETER"},
                    **({"subfiletype": 1} if i else {"subifds": 3}),
                )
    return made


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The scans behind a server; this process begins with no block."""
    monkeypatch.setattr(stores._InUse, "made", None)
    with serve(folder) as server:
        yield server


def data(manifest: Path, slides: dict[str, str]) -> SlideData:
    rows = [f"{name},{path}" for name, path in slides.items()]
    manifest.write_text("\n".join(["slide_id,path", *rows]) + "\n")
    limits: dict[str, Any] = {"max_gigapixels": 100, "max_segment_megapixels": 200, "max_memory_gb": 8}
    nothing: dict[str, Any] = {
        "root": None,
        "mpp_override": None,
        "annotations": None,
        "min_label_share": 0.5,
    }
    return SlideData(manifest=str(manifest), max_failed=0.0, **limits, **nothing)


def stages(slides: dict[str, str], folder: Path, *, tiling: Tiling, loading: Loading) -> SlideTiles:
    """Tile and embed as the program does: in child processes."""
    folder.mkdir()
    known = data(folder / "slides.csv", slides)
    known.tile(tiling, folder=folder, home=folder, n_processes=loading.n_workers, slide_timeout_s=60)
    source = open_source(folder)
    rounding = {"dtype": "float32", "precision": "32-true"}
    how = Embedding(batch_size=32, loading=loading, **rounding, any_mpp=False, max_failed=0.0)
    embed_tiles(colour_floor(source), source, folder=folder / "embeddings", how=how)
    assert isinstance(source, SlideTiles)
    return source


@pytest.fixture(scope="module")
def local(folder: Path, tiling: Tiling, tmp_path_factory: pytest.TempPathFactory) -> SlideTiles:
    """What comes of the scans as files, tiled and embedded in this process: tiles across the stored ones."""
    across = replace(tiling, size_px=TilePx(224), stride_px=TilePx(224))
    place = tmp_path_factory.mktemp("local") / "tiles"
    here = Loading(n_workers=0, start_method="fork", timeout_s=0)
    return stages({name: f"{folder}/{name}.tif" for name in NAMES}, place, tiling=across, loading=here)


def needed(source: SlideTiles, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of the segments that the tiles lie on, each counted once."""
    found: dict[tuple[str, int], int] = {}
    read = segments._segment

    def noted(page: Any, *, row: int, column: int, reduction: int) -> Any:
        i = row * segments._grid(page.keyframe).n_columns + column
        found[page.parent.filename, page.dataoffsets[i]] = page.databytecounts[i]
        return read(page, row=row, column=column, reduction=reduction)

    monkeypatch.setattr(segments, "_segment", noted)
    monkeypatch.setattr(segments, "kept", Kept())  # nothing that was decoded before
    for i in range(len(source)):
        source.read(i)
    return sum(found.values())


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_slides_behind_a_server_tile_and_embed_as_local_ones_by_few_bytes_beside_their_tiles(
    served: Served,
    local: SlideTiles,
    tmp_path: Path,
    tiling: Tiling,
    monkeypatch: pytest.MonkeyPatch,
    start_method: str,
) -> None:
    across = replace(tiling, size_px=TilePx(224), stride_px=TilePx(224))
    loading = Loading(n_workers=2, start_method=start_method, timeout_s=60)
    slides = {name: f"{served.address}/{name}.tif" for name in NAMES}
    remote = stages(slides, tmp_path / "remote", tiling=across, loading=loading)
    assert len(remote) > 150
    np.testing.assert_array_equal(remote.index.tiles, local.index.tiles)
    for name in NAMES:
        ours, theirs = (
            read_embeddings(source.index.folder / "embeddings" / f"{name}.h5") for source in (remote, local)
        )
        np.testing.assert_array_equal(ours.features, theirs.features)
        assert ours.attributes == theirs.attributes  # the hash of the tiles' versions among them
    n_needed = needed(local, monkeypatch)
    assert n_needed < served.n_sent < MOST * n_needed
    assert stores.traffic().n_sent == served.n_sent
    assert len(served.ranges) < len(remote) / 2


@pytest.mark.slow
def test_a_slow_store_shows_as_data_time_and_in_the_log(served: Served, tmp_path: Path, warm: Any) -> None:
    small = ["method=simclr", "backbone=timm", "backbone.name=test_vit", "method.projector.n_hidden=16"]
    small += ["method.projector.n_outputs=8", "online=none", "trainer=cpu", "logger=none", "log_every=1"]
    small += [
        "training.epochs=1",
        "training.batch_size=40",
        "tiling=small",
        "tiling.size_px=224",
        "loader.n_workers=0",
    ]
    slides = ["data=slides", f"data.root={served.address}/", "task=umap", "n_processes=1"]
    tiled = warm.run("-m", "histo_ssl", *slides, *small, "stages=[tile]", cwd=tmp_path)
    assert "tile: stores sent 0." in tiled.stdout, tiled.stdout + tiled.stderr
    served.forget()
    served.delay_s = 0.7
    trained = warm.run(
        "-m", "histo_ssl", *slides, *small, "stages=[pretrain]", "store.block_kb=64", cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (metrics,) = tmp_path.glob("runs/pretrain/*/metrics.jsonl")
    first, *_ = map(json.loads, metrics.read_text().splitlines())
    assert first["data_s"] > 2 * served.delay_s  # one slide after the other; 0.6 s without delay
    assert first["step_s"] > first["data_s"]
    (said,) = [line for line in trained.stdout.splitlines() if "pretrain: stores sent" in line]
    n_requests = len(served.asked) - served.asked.count("all")  # without those of the list
    assert f"stores sent {served.n_sent / 1e6:.1f} MB in {n_requests} requests" in said
