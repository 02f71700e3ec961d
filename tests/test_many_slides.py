"""Many slides: workers of a cluster write what one process writes, each slide once, whoever is lost."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from distributed import Client, LocalCluster
from hydra.utils import instantiate

from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.config.plan import Plan
from histo_ssl.data.loading import Loading
from histo_ssl.data.slides import SlideData
from histo_ssl.data.sources import open_source
from histo_ssl.embed import Embedding, Spread, embed_tiles
from histo_ssl.encode import Card, Encoder
from histo_ssl.executors.base import Executor, Processes
from histo_ssl.executors.cluster import Cluster
from histo_ssl.folders.artifacts import TEMPORARY
from histo_ssl.slides.grid import Tiling
from histo_ssl.slides.index import INDEX, read_status
from histo_ssl.slides.ledger import SURVEYS

N_SLIDES = 12
CPU = partial(torch.device, "cpu")
LIMITS = Processes(n=0, timeout_s=120, memory_gb=math.inf)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCluster]:
    """A scheduler and two workers of one thread each, started again when they end."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def workers(local: LocalCluster) -> Cluster:
    return Cluster(address=local.scheduler_address, retries=0, wait_s=60, embed_timeout_s=120)


@pytest.fixture(scope="module")
def tiling(compose: Callable[..., Plan]) -> Tiling:
    made: Tiling = instantiate(compose("tiling=small").group("tiling"))
    return made


@pytest.fixture(scope="module")
def data(compose: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> SlideData:
    """Twelve slides of 1024 px at 0.5 um/px, a block of tissue on each, and one file that is none."""
    folder = tmp_path_factory.mktemp("slides")
    for i in range(N_SLIDES):
        random = np.random.default_rng(i)
        pixels = random.normal(242, 0.7, (1024, 1024, 3)).round().astype(np.uint8)
        grain = random.random((48, 48, 1)).repeat(16, axis=0).repeat(16, axis=1)
        pixels[128:896, 128:896] = np.array([225, 170, 205]) - grain * np.array([60, 80, 50])
        options = {"tile": (256, 256), "compression": "deflate", "metadata": None, "photometric": "rgb"}
        options |= {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / f"{i:02}.tif", pixels, **options)
    (folder / "text.svs").write_text("no slide")
    made: SlideData = instantiate(compose("data=slides", f"data.root={folder}").group("data"))
    return made


def _tile(data: SlideData, tiling: Tiling, folder: Path, executor: Executor | None = None) -> Path:
    folder.mkdir()
    counts = data.tile(
        tiling, folder=folder, home=folder, n_processes=0, slide_timeout_s=60, executor=executor
    )
    assert counts == {"slides": N_SLIDES + 1, "failed": 1, "tiles": N_SLIDES * 36}
    return folder


@pytest.fixture(scope="module")
def alone(data: SlideData, tiling: Tiling, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles by one process."""
    return _tile(data, tiling, tmp_path_factory.mktemp("alone") / "tiles")


class Writes(threading.Thread):
    """Notes every file of a kind that appears in a folder; kills a worker once there are some."""

    def __init__(self, folder: Path, pattern: str, victim: int, *, after: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.pattern, self.victim, self.after = folder, pattern, victim, after
        self.seen: set[tuple[str, int, int]] = set()
        self.n_when_killed = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.001):
            for entry in self.folder.glob(self.pattern):
                if entry.name.startswith(TEMPORARY):
                    continue
                try:
                    facts = entry.stat()
                except FileNotFoundError:
                    continue
                self.seen.add((entry.name, facts.st_ino, facts.st_mtime_ns))
            if not self.n_when_killed and len(self.seen) >= self.after:
                self.n_when_killed = len(self.seen)
                os.kill(self.victim, signal.SIGKILL)


def _watched(work: Callable[[], Any], local: LocalCluster, folder: Path, pattern: str) -> list[str]:
    """Names of the files that some work wrote, as often as it did; a worker is killed in the middle."""
    with Client(local.scheduler_address, set_as_default=False) as client:
        client.wait_for_workers(2)
        victim = min(client.run(os.getpid).values())
    watch = Writes(folder, pattern, victim, after=3)
    watch.start()
    try:
        work()
    finally:
        watch.is_over.set()
        watch.join()
    assert 3 <= watch.n_when_killed < N_SLIDES
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)
    return sorted(name for name, _, _ in watch.seen)


@pytest.mark.slow
def test_tiles_are_those_of_one_process_and_no_slide_is_done_twice_when_a_worker_is_killed(
    local: LocalCluster, workers: Cluster, data: SlideData, tiling: Tiling, alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tiles"
    names = _watched(lambda: _tile(data, tiling, folder, workers), local, folder, f"{SURVEYS}/*.npz")
    assert names == [f"{i:02}.npz" for i in range(N_SLIDES)]
    files = sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) == files
    assert Path(INDEX) in files
    assert len([path for path in files if path.suffix == ".png"]) == N_SLIDES
    for path in files:
        if path.name != "status.csv":
            assert (folder / path).read_bytes() == (alone / path).read_bytes(), path
    here, there = (read_status(place).drop(columns="seconds") for place in (alone, folder))
    assert here.to_csv() == there.to_csv()


@pytest.mark.slow
def test_embeddings_are_those_of_one_process_and_no_slide_is_done_twice_when_a_worker_is_killed(
    local: LocalCluster, workers: Cluster, alone: Path, tmp_path: Path
) -> None:
    source, encoder = open_source(alone), _encoder()
    how = Embedding(
        batch_size=5,
        loading=Loading(n_workers=1, start_method="fork", timeout_s=60),
        dtype="float32",
        any_mpp=False,
        max_failed=0.0,
    )
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    counts = embed_tiles(encoder, source, folder=tmp_path / "here", how=how)
    there = tmp_path / "there"
    spread = Spread(each=partial(workers.each, processes=LIMITS, folder=there), device=CPU)
    found = []
    names = _watched(
        lambda: found.append(embed_tiles(encoder, source, folder=there, how=how, spread=spread)),
        local,
        there,
        "*.h5",
    )
    assert found == [counts] == [{"tiles": N_SLIDES * 36, "files": N_SLIDES, "unreadable": 0}]
    assert names == [f"{i:02}.h5" for i in range(N_SLIDES)]
    assert sorted(path.name for path in there.iterdir()) == names
    for name in names:
        assert (there / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def _encoder() -> Encoder:
    torch.manual_seed(0)
    backbone = timm_backbone(name="test_vit", drop_path=0.0).eval()
    card = Card(
        architecture={},
        dim=backbone.num_features,
        mean=(0.7, 0.5, 0.7),
        std=(0.2, 0.3, 0.2),
        tile_px=128,
        mpp=0.5,
        method="random",
        fingerprint="0123456789",
    )
    return Encoder(backbone, card)
