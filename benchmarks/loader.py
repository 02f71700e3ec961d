"""Part `loader`: tiles as a training draws them, from slides on a disk, by the workers of its loader.

    python benchmarks/loader.py [--workers N] [--json FILE]

The project's own data module and loader over a list of JPEG-tiled slides (`reading.py` draws them): 256 px
tiles, shuffled, in batches of 64; views are not made. A list of 8 slides stays open in every worker, of 256
none is open any more when its next tile is drawn, as in any large study (a worker keeps 64 open). Slides of a
list are links to one file, so that all bytes are in the system's cache: the disk is not measured.

The aim is 2,400 tiles/s by 16 workers. If each has a core, a core must serve 150: a tile may cost 6.67 ms of
processor time, that of workers and main process together, the workers' start included. Measured are that
time, and tiles/s of wall time with the workers that there are: 16 where there are as many cores, else one per
core. With fewer the step to 16 is arithmetic, which knows nothing of what 16 lose to each other, and the
wall's time has no target. Each case is read again from packs (`data.pack=true`), in turn with its slides, and
40x slides from their JPEGs at half the size (`tiling.scaled_jpegs=true`).
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from contests import CannotRunError, Contest, Ratio, ratio_of, within
from embedding import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf
from reading import MPP, TILE_PX, drawn, write_scan

from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.data.packed import pack_tiles, with_packs
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.executors.base import Processes
from histo_ssl.executors.processes import Local
from histo_ssl.folders.artifacts import write_json
from histo_ssl.parallel.memory import keep_freed_memory
from histo_ssl.slides.index import write_index

SIDE_PX, N_FILES = 8192, 1
FEW, MANY = 8, 256  # slides of a list
WANTED, N_WORKERS = 2400, 16
A_CORE = WANTED / N_WORKERS  # tiles/s
BATCH, N_BATCHES, N_ROUNDS = 64, 3, 3  # batches per worker and round
SEED = 0
# case -> um/px of the slides, how many there are
CASES = {
    f"20x, {FEW} slides": (2 * MPP, FEW),
    f"40x read as 20x, {FEW} slides": (MPP, FEW),
    f"20x, {MANY} slides": (2 * MPP, MANY),
    f"40x read as 20x, {MANY} slides": (MPP, MANY),
}
# What ends the names of cases that are read from packs, or from stored JPEGs at half their size.
PACKED, SCALED = ", packed", ", scaled JPEGs"
Seconds = tuple[float, float, float]  # processor time of the workers, of this process, and wall time


def measure(device: str) -> list[Ratio]:
    """Ratios of all cases, with the workers that this machine has cores for."""
    if device != "cpu":
        raise CannotRunError("slides are read on the CPU; `make bench` measures that")
    n_workers = default_workers()
    taken = seconds(n_workers)
    rows = [row for case, found in taken.items() for row in _ratios(case, found, n_workers)]
    return [*rows, *(_against_slides(case, taken) for case in taken if case not in CASES)]


def main() -> None:
    """Print what was measured, as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = [_row(case, taken) for case, taken in seconds(asked.workers).items()]
    print(f"{asked.workers} workers, {_n_cores()} cores, {N_ROUNDS} rounds: medians")
    print(pd.DataFrame(rows).to_string(index=False))
    if asked.json:
        asked.json.write_text(json.dumps({"workers": asked.workers, "rows": rows}, indent=1) + "\n")


def default_workers() -> int:
    """16 where there are cores for them, else one per core."""
    return min(N_WORKERS, _n_cores())


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds(n_workers: int) -> dict[str, list[Seconds]]:
    """What a tile took in every round of every case, all in turn; the first, which warms up, is left out."""
    keep_freed_memory()  # as a run does
    taken: dict[str, list[Seconds]] = {
        case + how: []
        for case, (mpp, _) in CASES.items()
        for how in ("", PACKED, *([SCALED] if mpp == MPP else []))
    }
    with lists_of_tiles() as folders:
        for i in range(N_ROUNDS + 1):
            for case, of_case in taken.items():
                found = _round(datamodule(folders[_plain(case)], n_workers, how=case), i)
                if i:
                    of_case.append(found)
    return taken


def _plain(case: str) -> str:
    return case.removesuffix(PACKED).removesuffix(SCALED)


def _round(data: TileDataModule, i: int) -> Seconds:
    """Draw the tiles of a stretch of the training, another in each round."""
    n = N_BATCHES * max(1, data.loading.n_workers)
    whole = data.sampler(first_step=i * n, rank=0, n_ranks=1)
    before = _processor_s()
    started = time.perf_counter()
    n_tiles = sum(len(batch["ids"]) for batch in data.loader(replace(whole, n_steps=(i + 1) * n)))
    wall = time.perf_counter() - started
    assert n_tiles == n * BATCH
    workers, here = (after - b for after, b in zip(_processor_s(), before, strict=True))
    return workers / n_tiles, here / n_tiles, wall / n_tiles


def _processor_s() -> tuple[float, float]:
    """Of the children that have ended, as workers have when their loader has, and of this process."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))
    workers, here = (usage.ru_utime + usage.ru_stime for usage in spent)
    return workers, here


def datamodule(folder: Path, n_workers: int, *, how: str) -> TileDataModule:
    """The data of a training on the tiles of a folder, read as the name of a case ends."""
    source: Any = open_source(folder)
    if how.endswith(SCALED):
        source = SlideTiles(folder, **{**source.facts(), "scaled_jpegs": True})
    source = with_packs(source, lambda _: folder / "packs") if how.endswith(PACKED) else source
    loading = {**OmegaConf.to_container(composed().loader), "n_workers": n_workers}
    return TileDataModule(
        source=source,
        rows=source.training_rows(),
        views=None,  # type: ignore[arg-type]  # made after loading
        batch_size=BATCH,
        epochs=100,
        accumulate=1,
        seed=SEED,
        loading=Loading(**loading),
    )


@contextmanager
def lists_of_tiles() -> Iterator[dict[str, Path]]:
    """Tile folders by case, for as long as they are needed."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        scans = {mpp: _surveyed(home / f"{mpp}", mpp) for mpp in {mpp for mpp, _ in CASES.values()}}
        yield {
            case: _listed(scans[mpp], home / f"list-{i}", n_slides=n_slides)
            for i, (case, (mpp, n_slides)) in enumerate(CASES.items())
        }


def _surveyed(folder: Path, mpp: float) -> Path:
    """Draw a few slides and cut them at 0.5 um/px as by `tiling=study`; the folder of their tiles."""
    scan = drawn()
    slides = folder / "slides"
    slides.mkdir(parents=True)
    for i in range(N_FILES):
        repeats = SIDE_PX // len(scan)
        rgb = np.tile(np.roll(scan, 100 * i, axis=0), (repeats, repeats, 1))
        write_scan(slides / f"s{i}.tif", rgb, finest_mpp=mpp)
    cfg = composed("data=slides", "tiling=study", f"data.root={slides}")
    tiling = instantiate(cfg.tiling, size_px=TILE_PX, stride_px=TILE_PX, mpp=2 * MPP)
    data = instantiate(OmegaConf.to_container(cfg.data, resolve=True))
    tiles = folder / "tiles"
    data.tile(tiling, folder=tiles, home=folder, n_processes=0, slide_timeout_s=600)
    here = Processes(n=0, timeout_s=600, memory_gb=8)
    (tiles / "packs").mkdir()
    pack_tiles(tiles / "packs", source=open_source(tiles), processes=here, executor=Local(retries=0))  # type: ignore[arg-type]
    return tiles


def _listed(surveyed: Path, folder: Path, *, n_slides: int) -> Path:
    """A tile folder of many slides that are links to a few."""
    index = open_source(surveyed).index  # type: ignore[attr-defined]
    rows: list[dict[str, Any]] = index.slides.to_dict("records")
    (folder / "packs").mkdir(parents=True)
    for i in range(n_slides):
        row = rows[i % len(rows)]
        os.link(row["path"], folder / f"S{i:05}.tif")
        os.link(surveyed / "packs" / f"{row['slide_id']}.pack", folder / "packs" / f"S{i:05}.pack")
    status = [
        {**rows[i % len(rows)], "slide_id": f"S{i:05}", "path": str(folder / f"S{i:05}.tif")}
        for i in range(n_slides)
    ]
    places = [index.of_slide(i % len(rows)) for i in range(n_slides)]
    write_index(folder, status=pd.DataFrame(status), xy_level0=places)
    write_json(folder / "source.json", json.loads((surveyed / "source.json").read_text()))
    return folder


def _ratios(case: str, taken: list[Seconds], n_workers: int) -> list[Ratio]:
    cost = within(
        [(workers + here, wall) for workers, here, wall in taken],
        part="loader",
        case=case,
        limit_ms=1e3 / A_CORE,
        limit=f"{A_CORE:.0f} tiles/s a core",
        item="tile",
        clock="processor",
    )
    speed = within(
        [(workers + here, wall) for workers, here, wall in taken],
        part="loader",
        case=case,
        limit_ms=1e3 / (A_CORE * n_workers),
        limit=f"{A_CORE:.0f} tiles/s a worker",
        item="tile",
        clock="wall",
    )
    return [cost, speed if n_workers == N_WORKERS else replace(speed, target=None)]


def _against_slides(case: str, taken: dict[str, list[Seconds]]) -> Ratio:
    """Packs or scaled JPEGs against the slides themselves, by processor time."""
    contest = Contest(
        part="loader",
        case=case,
        n_items=1,
        item="tile",
        ours=lambda i: None,  # noqa: ARG005
        peers={},
        targets={"its slides": None},
        n_rounds=N_ROUNDS,
    )
    ours, slides = (
        [(workers + here, wall) for workers, here, wall in taken[name]] for name in (case, _plain(case))
    )
    return ratio_of(contest, "its slides", ours=ours, theirs=slides)


def _row(case: str, taken: list[Seconds]) -> dict[str, Any]:
    workers, here, wall = (float(np.median(column)) for column in zip(*taken, strict=True))
    return {
        "case": case,
        "tiles/s": round(1 / wall),
        "workers, ms/tile": round(1e3 * workers, 2),
        "main, ms/tile": round(1e3 * here, 2),
        "tiles/s a core": round(1 / (workers + here)),
        f"cores for {WANTED}/s": round(WANTED * (workers + here), 1),
    }


if __name__ == "__main__":
    main()
