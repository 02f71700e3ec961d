"""What the heads of one subject make of tiles, and what is known of the tiles' patches.

Letters: M tiles; H heads; L patches of a tile; K phenotypes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from histo_ssl.data.base import TileSource
from histo_ssl.data.reading import batches_of
from histo_ssl.data.synthetic import NUCLEI
from histo_ssl.data.truth import PixelTruth
from histo_ssl.folders.cells import exact_table
from histo_ssl.heads.attending import Attends, Attention, patch_haematoxylin
from histo_ssl.tasks.base import Workplace
from histo_ssl.tasks.head_scores import Trait

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HAEMATOXYLIN = "haematoxylin"


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Attention to the patches of tiles, beside what is known of them."""

    row_M: Ints  # numbers of the tiles in their source; those that could be read
    maps_MHL: Floats
    prefix_MH: Floats  # share of attention that tokens before the patches keep
    traits: list[Trait]  # in the order in which they are reported


@dataclass(frozen=True, kw_only=True)
class Least:
    """Share of a patch from which it counts as of a phenotype, 0-1."""

    nuclear: float
    tissue: float


def looked_at(
    attends: Attends, source: TileSource, rows: Ints, *, truth: PixelTruth, least: Least, place: Workplace
) -> Seen:
    """What is attended to in some tiles of a source.

    Raises:
        ValueError: more of them can't be read than `place` allows.
    """
    seen = []
    for ids, tiles, found in maps_of(attends, source, rows, place=place):
        patch_px = tiles.shape[-1] // found.maps_BHhw.shape[-1]
        density = patch_haematoxylin(tiles, patch_px=patch_px)
        seen.append((ids, found.maps_BHhw, found.prefix_BH, density))
    row_M, maps_MHhw, prefix_MH, density_Mhw = (np.concatenate(part) for part in zip(*seen, strict=True))
    known = _known(truth, row_M, n_patches=maps_MHhw.shape[-1], least=least)
    amount = Trait(name=HAEMATOXYLIN, share_ML=density_Mhw.reshape(len(row_M), -1), least=None)
    return Seen(
        row_M=row_M,
        maps_MHL=maps_MHhw.reshape(*maps_MHhw.shape[:2], -1),
        prefix_MH=prefix_MH,
        traits=[*known, amount],
    )


def maps_of(
    attends: Attends, source: TileSource, rows: Ints, *, place: Workplace
) -> Iterator[tuple[Ints, Tensor, Attention]]:
    """Batches of tiles of a source that could be read: their numbers, the tiles (B, 3, S, S), their maps.

    Raises:
        ValueError: more of them can't be read than `place` allows; at the end.
    """
    failed: dict[int, str] = {}
    for batch in batches_of(source, rows, loading=place.loading):
        failed |= batch["failed"]
        is_read = ~np.isin(batch["ids"].numpy(), list(batch["failed"]))
        tiles: Any = batch["tiles"].permute(0, 3, 1, 2)[is_read]
        if len(tiles):
            yield batch["ids"].numpy()[is_read], tiles, attends(tiles)
    if len(failed) > place.max_failed * len(rows):
        raise ValueError(
            f"{len(failed)} of {len(rows)} tiles can't be read, more than "
            f"max_failed_tiles={place.max_failed:g} allows; the newest: {list(failed.values())[-1]}"
        )


def spread(rows: Ints, keys: NDArray[np.str_], *, n: int, seed: int) -> Ints:
    """At most n of some rows, in turn from each key as long as it has any; ascending.

    Args:
        rows: to choose from.
        keys: of each of them, such as its patient.
        n: how many.
        seed: of the draw within a key.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    turn = np.empty(len(rows), dtype=np.int64)
    for key in np.unique(keys):
        of_key = order[keys[order] == key]
        turn[of_key] = np.arange(len(of_key))
    chosen = order[np.argsort(turn[order], kind="stable")][:n]
    return np.sort(rows[chosen])


def extremes_in(path: Path, source: TileSource, *, n: int) -> Ints:
    """The tiles of a slide that a model attended to most, and as many that it attended to least.

    Args:
        path: `attention/<slide>.csv` of a result of task=slides, with x, y and attention of each tile.
        source: of that slide's tiles.
        n: how many of each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, or none of these tiles.
    """
    if not path.is_file():
        raise FileNotFoundError(f"task.protocol.input={path}: there is no such file")
    table, known = exact_table(pd.read_csv(path, dtype=str, keep_default_na=False)), source.table()
    missing = [name for name in ("x", "y", "attention") if name not in table]
    of_slide = known[known["slide"] == path.stem]
    if missing or not len(of_slide):
        why = f"no column {missing[0]}" if missing else f"no tile is of a slide {path.stem}"
        raise ValueError(
            f"task.protocol.input={path}: {why}; attention/<slide>.csv of these tiles is expected"
        )
    ordered = table.iloc[table["attention"].astype(float).argsort(kind="stable")[::-1]]
    ends = pd.concat([ordered.head(n), ordered.tail(n)]).drop_duplicates()
    places = pd.MultiIndex.from_frame(of_slide[["x", "y"]])
    found = places.get_indexer(pd.MultiIndex.from_frame(ends[["x", "y"]].astype(np.int64)))
    if (found < 0).any():
        raise ValueError(
            f"task.protocol.input={path}: {(found < 0).sum()} of its tiles are none of this run's"
        )
    return np.asarray(of_slide.index.to_numpy()[found], dtype=np.int64)


def _known(truth: PixelTruth, row_M: Ints, *, n_patches: int, least: Least) -> list[Trait]:
    if not truth.names:
        return []
    share_MKL = np.stack([truth.shares(int(row), n_patches=n_patches) for row in row_M]).reshape(
        len(row_M), len(truth.names), -1
    )
    return [
        Trait(
            name=name,
            share_ML=share_MKL[:, k],
            least=least.nuclear if name == NUCLEI else least.tissue,
        )
        for k, name in enumerate(truth.names)
    ]
