"""Makes image files and a list of them out of tiles that come as HDF5 arrays."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.download.catalogue import Arrays
from histo_ssl.folders.artifacts import write_text
from histo_ssl.folders.cells import csv_text
from histo_ssl.progress import Progress

LABELS = "labels.csv"
BLOCK_TILES = 1024  # read at a time


def write_images(arrays: Arrays, folder: Path) -> int:
    """Number of tiles written as `<split>/<class>/<number>.png` and listed in `labels.csv`.

    The list comes last. What was written before it was broken off is written again.

    Raises:
        ValueError: the arrays are not tiles with a class each.
    """
    rows: list[tuple[str, str, str]] = []
    for split, (x, y) in arrays.splits.items():
        for name in arrays.classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / x, "r") as tiles, h5py.File(folder / y, "r") as classes:
            number = np.asarray(classes["y"]).reshape(-1).astype(np.int64)
            _check(tiles["x"].shape, number, n_classes=len(arrays.classes), source=folder / x)
            with Progress(f"images ({split})", n_items=len(number), noun="tiles") as progress:
                for i, tile in _tiles(tiles["x"]):
                    label = arrays.classes[number[i]]
                    path = f"{split}/{label}/{i:07}.png"
                    Image.fromarray(tile).save(folder / path)
                    rows.append((path, split, label))
                    progress.advance(1)
    write_text(folder / LABELS, csv_text(pd.DataFrame(rows, columns=["path", "split", "label"])))
    return len(rows)


def _tiles(dataset: h5py.Dataset) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for start in range(0, len(dataset), BLOCK_TILES):
        yield from enumerate(dataset[start : start + BLOCK_TILES], start)


def _check(shape: tuple[int, ...], number: NDArray[np.int64], *, n_classes: int, source: Path) -> None:
    is_rgb = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    if not is_rgb or shape[0] != len(number) or not np.isin(number, np.arange(n_classes)).all():
        raise ValueError(
            f"{source}: an array {shape} and {len(number):,} classes up to {number.max(initial=0)}; tiles "
            f"(N, S, S, 3) and N classes below {n_classes} are expected"
        )
