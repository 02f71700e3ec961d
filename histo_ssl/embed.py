"""From tiles to embeddings: files that an encoder fills, slide by slide, and what they hold together.

A tile that can't be read has no embedding: its place is noted, and it is counted.

Letters: N tiles, D width of an embedding.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.data.base import Part, TileSource
from histo_ssl.data.loading import Loading, TileLoader
from histo_ssl.data.reading import Batch, BlankedTiles
from histo_ssl.embeddings import UNREADABLE, EmbeddingSet, Stored, narrowed, read_embeddings, write_embeddings
from histo_ssl.encode import Card, Encoder
from histo_ssl.folders.artifacts import fingerprint
from histo_ssl.progress import Progress
from histo_ssl.stain.base import NOT_RESTAINED

log = logging.getLogger(__name__)

TILES = "tiles"  # attribute of a file of embeddings: a hash of its tiles' names and places


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """How tiles are embedded; changes no embedding beyond the rounding of `dtype`.

    Args:
        batch_size: tiles per forward pass.
        loading: how tiles are read.
        dtype: float32, or float16, which takes half the space.
        any_mpp: embed tiles of another scale than the encoder's, too.
        max_failed: share of the tiles that may turn out unreadable, 0-1.
    """

    batch_size: int
    loading: Loading
    dtype: str
    any_mpp: bool
    max_failed: float


def embed_tiles(encoder: Encoder, source: TileSource, *, folder: Path, how: Embedding) -> dict[str, int]:
    """Write one file of embeddings per slide (or stretch of images) into `folder`; those already there stay.

    A tile that can't be read is left out, and its place noted in the file.

    Args:
        encoder: makes them.
        source: all its tiles are embedded, each once.
        folder: receives `<slide>.h5`.
        how: batches, workers, limits.

    Returns:
        How many tiles and files the folder holds afterwards, and how many tiles could not be read; where the
        encoder wants its tiles' stain normalised also how many were left as they are.

    Raises:
        ValueError: more of them than `max_failed` allows (names the newest), or `dtype` can't hold an
            embedding.
    """
    encoder.check_scale(source.mpp, any_mpp=how.any_mpp)
    tiles = _tile_names(source)
    before = {part: _embedded(part, folder, tiles) for part in source.parts()}
    missing = [part for part, stored in before.items() if stored is None]
    n_unreadable = sum(len(stored.unreadable) for stored in before.values() if stored)
    n_left = sum(int(stored.attributes.get(NOT_RESTAINED, 0)) for stored in before.values() if stored)
    coords, attributes = source.coords(), _attributes(encoder.card, source)
    for part, found in _embedded_parts(encoder, source, missing, how=how):
        n_unreadable += len(found.failed)
        n_left += found.n_left
        _check_failed(found.failed, n_unreadable, len(source), how=how)
        of_part = coords[part.start : part.stop]
        path = folder / f"{part.name}.h5"
        write_embeddings(
            path,
            features=narrowed(found.features_ND, how.dtype, path=path),
            coords=np.delete(of_part, list(found.failed), axis=0),
            attributes={**attributes, TILES: tiles[part.name], **_left(encoder, found.n_left)},
            unreadable=list(found.failed),
        )
    counts = {"tiles": len(source), "files": len(before), UNREADABLE: n_unreadable}
    return {**counts, **_left(encoder, n_left)}


def load_embeddings(folder: Path, source: TileSource) -> EmbeddingSet:
    """The embeddings of a source's tiles, in its order, with what is known of each; of those that were read.

    Raises:
        ValueError: a file holds other tiles than the source lists.
    """
    tiles = _tile_names(source)
    stored = {part.name: read_embeddings(folder / f"{part.name}.h5") for part in source.parts()}
    is_row = np.concatenate([found.is_row() for found in stored.values()])
    stated = {name: found.attributes.get(TILES) for name, found in stored.items()}
    features = np.concatenate([found.features for found in stored.values()])
    coords = np.concatenate([found.coords for found in stored.values()])
    if stated != tiles or not np.array_equal(coords, source.coords()[is_row]):
        raise ValueError(
            f"{folder}: the embeddings are of other tiles than the index lists; delete the folder"
        )
    return known_of(source.table()[is_row], features=features)


def known_of(table: pd.DataFrame, *, features: NDArray[np.float32]) -> EmbeddingSet:
    """Features of tiles with what a source's table, or some of its rows, knows of them."""
    texts = {name: table[name].to_numpy(dtype=str) for name in ("slide", "patient", "site", "split", "label")}
    coords = table[["x", "y"]].to_numpy(dtype=np.int64)
    return EmbeddingSet(features=features, coords=coords, row=table.index.to_numpy(dtype=np.int64), **texts)


def _tile_names(source: TileSource) -> dict[str, str]:
    """A hash of the tiles of each part: of their slides (or images), versions and places, in order."""
    columns = source.table()[["slide", "x", "y", "version"]].itertuples(index=False)
    names = [f"{slide} {x} {y} {version}" for slide, x, y, version in columns]
    return {part.name: fingerprint(names[part.start : part.stop]) for part in source.parts()}


def _embedded(part: Part, folder: Path, tiles: Mapping[str, str]) -> Stored | None:
    """The whole file of this part's tiles that an earlier start has left, if any."""
    try:
        stored = read_embeddings(folder / f"{part.name}.h5")
    except (FileNotFoundError, ValueError):
        return None
    return stored if stored.attributes.get(TILES) == tiles[part.name] else None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of a run of tiles."""

    features_ND: NDArray[np.float32]  # of those that could be read
    failed: dict[int, str]  # why the others could not, by their place
    n_left: int  # of those that could be read: whose stain was not normalised


def _embedded_parts(
    encoder: Encoder, source: TileSource, parts: list[Part], *, how: Embedding
) -> Iterator[tuple[Part, Found]]:
    """One part after the other; workers read ahead across the borders of parts."""
    cuts = [_cuts(part, how.batch_size) for part in parts]
    wanted = [[(row, 0) for row in cut] for part_cuts in cuts for cut in part_cuts]
    batches = iter(TileLoader(BlankedTiles(source), wanted, how.loading))
    with Progress("embed", n_items=sum(map(len, wanted)), noun="tiles") as progress:
        for part, part_cuts in zip(parts, cuts, strict=True):
            done = [_next_features(encoder, batches, progress) for _ in part_cuts]
            features = [found.features_ND for found in done] or [np.zeros((0, encoder.card.dim), np.float32)]
            failed = {row - part.start: why for found in done for row, why in found.failed.items()}
            n_left = sum(found.n_left for found in done)
            yield part, Found(features_ND=np.concatenate(features), failed=failed, n_left=n_left)


def _cuts(part: Part, batch_size: int) -> list[range]:
    """The rows of a part in batches; the last may be smaller."""
    return [range(i, min(i + batch_size, part.stop)) for i in range(part.start, part.stop, batch_size)]


def _next_features(encoder: Encoder, batches: Iterator[Batch], progress: Progress) -> Found:
    started = time.monotonic()
    batch = next(batches)
    data_s = time.monotonic() - started
    made = encoder.restained(batch["tiles"].permute(0, 3, 1, 2))
    features: NDArray[np.float32] = encoder.of_restained(made.tiles).cpu().numpy()
    progress.advance(len(features), data_s=data_s)
    is_read = ~np.isin(batch["ids"].numpy(), list(batch["failed"]))
    n_left = int((made.is_left_B.cpu().numpy() & is_read).sum())
    return Found(features_ND=features[is_read], failed=batch["failed"], n_left=n_left)


def _check_failed(failed: Mapping[int, str], n_failed: int, n_tiles: int, *, how: Embedding) -> None:
    """Tell of tiles that could not be read, and stop where there are too many."""
    for reason in failed.values():
        log.warning("embed: a tile is left out: %s", reason)
    if n_failed > how.max_failed * n_tiles:
        raise ValueError(
            f"{n_failed} of {n_tiles} tiles can't be read, more than max_failed_tiles={how.max_failed:g} "
            f"allows; the newest: {list(failed.values())[-1]}"
        )


def _left(encoder: Encoder, n_left: int) -> dict[str, int]:
    """The count of tiles whose stain was not normalised, where it should have been."""
    return {NOT_RESTAINED: n_left} if encoder.stain else {}


def _attributes(card: Card, source: TileSource) -> dict[str, str | int | float]:
    """What travels with embeddings: who made them, of tiles of which size and scale (NaN where unknown)."""
    mpp = float("nan") if source.mpp is None else source.mpp
    return {"encoder": card.fingerprint, "method": card.method, "tile_px": source.tile_px, "mpp": mpp}
