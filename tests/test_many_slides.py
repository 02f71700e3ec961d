"""Many slides: workers of a cluster write what one process writes, each slide once, whoever is lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from distributed import Client, LocalCluster

from histo_ssl import stages
from histo_ssl.config.plan import Plan
from histo_ssl.config.preflight import prepared
from histo_ssl.folders.artifacts import TEMPORARY, counts
from histo_ssl.slides.index import INDEX, STATUS, read_status

N_SLIDES = 8
OF_THE_RUN = {"config.json", "provenance.json", "done.json"}  # hold the folder's place, times and sizes
Run = Callable[..., Plan]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCluster]:
    """A scheduler and two workers of one thread each, started again when they end."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slides of 1024 px at 0.5 um/px, a block of tissue on each, and one file that is none."""
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
    return folder


@pytest.fixture(scope="module")
def planned(compose: Callable[..., Plan], slides: Path) -> Run:
    """A function that plans some stages of a run on these slides, with an encoder that is not trained."""

    def plan(runs: Path, *overrides: str) -> Plan:
        chosen = ["method=random", "backbone=timm", "backbone.name=test_vit", "data=slides", "tiling=small"]
        small = ["trainer=cpu", "logger=none", "loader.n_workers=1", "n_processes=0", "data.max_failed=0.2"]
        composed = compose(*chosen, *small, f"data.root={slides}", f"runs_dir={runs}", *overrides)
        return prepared(composed, known=stages.STAGES)

    return plan


@pytest.fixture(scope="module")
def alone(planned: Run, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The run by one process."""
    plan = planned(tmp_path_factory.mktemp("alone"), "stages=[tile,pretrain,embed]")
    stages.run(plan)
    return plan


@pytest.fixture(scope="module")
def shared(planned: Run, local: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that plans the same by the workers of the cluster."""
    runs = tmp_path_factory.mktemp("shared")
    where = ["executor=dask", f"executor.address={local.scheduler_address}"]
    return lambda names: planned(runs, *where, f"stages=[{names}]")


class Writes(threading.Thread):
    """Notes all files of a kind, as often as they are written; kills a worker once there are some."""

    def __init__(self, folder: Path, pattern: str, victim: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.pattern, self.victim = folder, pattern, victim
        self.seen: set[tuple[str, int, int]] = set()
        self.n_when_killed = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.001):
            for path in self.folder.glob(self.pattern):
                if path.name.startswith(TEMPORARY) or not path.exists():
                    continue
                facts = path.stat()
                self.seen.add((f"{path.parent.name}/{path.name}", facts.st_ino, facts.st_mtime_ns))
            if not self.n_when_killed and len(self.seen) >= 2:
                os.kill(self.victim, signal.SIGKILL)
                self.n_when_killed = len(self.seen)


def _written(plan: Plan, local: LocalCluster, pattern: str) -> list[str]:
    """Files that a run wrote, as often as it did, while a worker was killed in the middle."""
    with Client(local.scheduler_address, set_as_default=False) as client:
        client.wait_for_workers(2)
        victim = min(client.run(os.getpid).values())
    watch = Writes(plan.runs_dir, pattern, victim)
    watch.start()
    try:
        stages.run(plan)
    finally:
        watch.is_over.set()
        watch.join()
    assert 2 <= watch.n_when_killed < N_SLIDES
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)
    return sorted(name for name, _, _ in watch.seen)


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in OF_THE_RUN]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_tiles_are_those_of_one_process_and_no_slide_is_done_twice_when_a_worker_is_killed(
    local: LocalCluster, alone: Plan, shared: Run
) -> None:
    plan = shared("tile")
    written = _written(plan, local, "tiles/*/surveys/*.npz")
    assert written == [f"surveys/{i:02}.npz" for i in range(N_SLIDES)]
    assert plan.tile_folder.name == alone.tile_folder.name  # who tiles is in no fingerprint
    here, there = _files(alone.tile_folder), _files(plan.tile_folder)
    seconds = [read_status(place).drop(columns="seconds") for place in (alone.tile_folder, plan.tile_folder)]
    assert seconds[0].to_csv() == seconds[1].to_csv()
    assert here.pop(STATUS) != b""
    assert there.pop(STATUS) != b""
    assert here == there
    assert set(here) == {INDEX, "source.json", *(f"overlays/{i:02}.png" for i in range(N_SLIDES))}
    assert counts(plan.tile_folder) == {"slides": N_SLIDES + 1, "failed": 1, "tiles": N_SLIDES * 36}


@pytest.mark.slow
def test_embeddings_are_those_of_one_process_and_no_slide_is_done_twice_when_a_worker_is_killed(
    local: LocalCluster, alone: Plan, shared: Run
) -> None:
    plan = shared("tile,pretrain,embed")
    written = _written(plan, local, "embeddings/*/*.h5")
    here, there = (_files(one.runs_dir / "embeddings") for one in (alone, plan))
    folders = {name.split("/")[0] for name in here if name.endswith(".h5")}
    assert len(folders) == 3  # of the encoder and its two floors
    assert written == sorted(f"{folder}/{i:02}.h5" for folder in folders for i in range(N_SLIDES))
    assert here == there
