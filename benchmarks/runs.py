"""What runs of neighbours (`training.run_length`) save of reading, and what they take from the shuffle.

    python benchmarks/runs.py [--tiles FOLDER]

Saved: processor time of one process per tile, in the order of a training, of slides as in `loader.py`; "off
the grid" are tiles of a 20x scan that begin 100 px beside the stored ones.

Taken: a batch's mean of a tile's value varies 1 + (L - 1) r times as much as that of tiles that are drawn one
by one, r being how far tiles of a run resemble each other: the design effect of cluster sampling. It is
measured as the variance of batch means in runs over that of the plain shuffle, averaged over six values of a
tile, means and standard deviations of red, green and blue, in batches of 64; beside it stands the number of
different slides in a batch. By default on 24 generated slides of two sites, or on a given tile folder.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from embedding import composed
from hydra.utils import instantiate
from loader import MANY, _listed, _surveyed
from numpy.typing import NDArray
from reading import MPP

from histo_ssl.data.datamodule import StepSampler
from histo_ssl.data.rows import InRuns, RowList
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.parallel.memory import keep_freed_memory

LENGTHS = (1, 2, 4, 8)
N_READ, N_ROUNDS = 192, 3
BATCH, N_BATCHES = 64, 1000
FEW = 8
BESIDE_PX = 100
DRAWN = {"n_slides": 24, "n_patients": 24, "size_px": 1536}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=Path, help="folder of tiles of slides, such as runs/tiles/...")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        saved = {
            "40x read as 20x, 8 slides": _ms(_slides(home / "a", MPP, FEW), beside_px=0),
            f"40x read as 20x, {MANY} slides": _ms(_slides(home / "b", MPP, MANY), beside_px=0),
            f"20x off the grid, {MANY} slides": _ms(_slides(home / "c", 2 * MPP, MANY), beside_px=BESIDE_PX),
        }
        print(
            "processor time per tile, ms, by run length\n",
            pd.DataFrame(saved).T.round(2).to_string(),
            flush=True,
        )
        source = open_source(asked.tiles or _generated(home))
        assert isinstance(source, SlideTiles)
        print(_harm(source).round(2).to_string())


def _slides(folder: Path, mpp: float, n_slides: int) -> SlideTiles:
    source = open_source(_listed(_surveyed(folder / "drawn", mpp), folder / "list", n_slides=n_slides))
    assert isinstance(source, SlideTiles)
    return source


def _generated(home: Path) -> Path:
    cfg = composed("tiling=demo", *(f"data.{name}={value}" for name, value in DRAWN.items()))
    instantiate(cfg.data).tile(
        instantiate(cfg.tiling), folder=home / "tiles", home=home, n_processes=2, slide_timeout_s=600
    )
    return home / "tiles"


def batches(rows: RowList, run_length: int, *, n: int, seed: int) -> NDArray[np.int64]:
    """Numbers of the tiles of the first batches of a training, (n, BATCH)."""
    sampler = StepSampler(
        rows=InRuns(rows, run_length) if run_length > 1 else rows,
        batch_size=BATCH,
        steps_per_epoch=len(rows) // BATCH,
        n_steps=n,
        first_step=0,
        rank=0,
        n_ranks=1,
        seed=seed,
    )
    return np.array([[row for row, _ in step] for step in sampler])


def _ms(source: SlideTiles, *, beside_px: int) -> dict[int, float]:
    """Median over rounds, all lengths in turn."""
    taken: dict[int, list[float]] = {length: [] for length in LENGTHS}
    read = _reader(source, beside_px=beside_px)
    for i in range(N_ROUNDS + 1):
        for length, times in taken.items():
            rows = batches(source.training_rows(), length, n=N_READ // BATCH, seed=i).ravel()
            started = time.process_time()
            for row in rows:
                read(int(row))
            times.append(1e3 * (time.process_time() - started) / len(rows))
    return {length: float(np.median(times[1:])) for length, times in taken.items()}


def _reader(source: SlideTiles, *, beside_px: int) -> Callable[[int], object]:
    def read(row: int) -> object:
        number, x, y = source.index.tile(row)
        return source.slide(number).read((x + beside_px, y + beside_px), source.spec)

    return read


def _harm(source: SlideTiles) -> pd.DataFrame:
    rows = source.training_rows()
    tiles = np.stack([source.read(int(row)) for row in rows[np.arange(len(rows))]]).astype(np.float32)
    values = np.concatenate([tiles.mean(axis=(1, 2)), tiles.std(axis=(1, 2))], axis=1)
    of_row = {int(row): i for i, row in enumerate(rows[np.arange(len(rows))])}
    slide = source.index.tiles["slide"][rows[np.arange(len(rows))]]
    found = {}
    for length in LENGTHS:
        places = np.vectorize(of_row.__getitem__)(batches(rows, length, n=N_BATCHES, seed=0))
        n_slides = np.mean([len(np.unique(slide[batch])) for batch in places])
        found[length] = {"variance": values[places].mean(axis=1).var(axis=0), "slides": n_slides}
    print(f"{len(rows)} tiles of {len(np.unique(slide))} slides, batches of {BATCH}")
    return pd.DataFrame(
        {
            length: {
                "design effect": float(np.mean(one["variance"] / found[1]["variance"])),
                "slides in a batch": one["slides"],
            }
            for length, one in found.items()
        }
    )


if __name__ == "__main__":
    main()
