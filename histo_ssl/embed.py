"""From tiles to embeddings: files that an encoder fills, slide by slide, and what they hold together.

A tile that can't be read has no embedding: its place is noted, and it is counted.

Letters: N tiles, D width of an embedding.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo_ssl.data.base import Part, TileSource
from histo_ssl.data.loading import GO_ON, Loading, TileLoader
from histo_ssl.data.reading import Batch, Batches, BlankedTiles
from histo_ssl.embeddings import UNREADABLE, EmbeddingSet, narrowed, read_embeddings, write_embeddings
from histo_ssl.encode import Card, Encoder
from histo_ssl.executors.base import Ended
from histo_ssl.folders.artifacts import fingerprint
from histo_ssl.progress import Progress
from histo_ssl.stain.base import NOT_RESTAINED

log = logging.getLogger(__name__)

TILES = "tiles"  # attribute of a file of embeddings: a hash of its tiles' names and places


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """How tiles are embedded; changes no embedding beyond the rounding of `dtype` and `precision`.

    Args:
        batch_size: tiles per forward pass.
        loading: how tiles are read.
        dtype: float32, or float16, which takes half the space.
        precision: of the forward pass: 32-true, or bf16-mixed, which rounds within it to three digits.
        any_mpp: embed tiles of another scale than the encoder's, too.
        max_failed: share of the tiles that may turn out unreadable, 0-1.
    """

    batch_size: int
    loading: Loading
    dtype: str
    precision: str
    any_mpp: bool
    max_failed: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of a run of tiles."""

    features_ND: NDArray[np.float32]  # of those that could be read
    failed: dict[int, str]  # why the others could not, by their place
    n_left: int  # of those that could be read: whose stain was not normalised


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The same of a part, once its embeddings are in their file."""

    n_unreadable: int
    n_left: int
    failed: list[str]  # why; nothing of a part that was embedded before


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How parts are embedded elsewhere."""

    # for a function and parts: its results and their places, as they come
    each: Callable[[Callable[[Part], Counted], Sequence[Part]], Iterator[tuple[int, Counted | Ended[Part]]]]
    device: Callable[[], torch.device]  # of the process that does it


def embed_tiles(
    encoder: Encoder, source: TileSource, *, folder: Path, how: Embedding, spread: Spread | None = None
) -> dict[str, int]:
    """Write one file of embeddings per slide (or stretch of images) into `folder`; those already there stay.

    A tile that can't be read is left out, and its place noted in the file.

    Args:
        encoder: makes them.
        source: all its tiles are embedded, each once.
        folder: receives `<slide>.h5`.
        how: batches, workers, limits.
        spread: to other processes; None: one part after the other in this one, where the encoder is.

    Returns:
        How many tiles and files the folder holds afterwards, and how many tiles could not be read; where the
        encoder wants its tiles' stain normalised also how many were left as they are.

    Raises:
        ValueError: more of them than `max_failed` allows (names the newest), or `dtype` can't hold an
            embedding.
        ChildProcessError: a part was given up elsewhere.
    """
    encoder.check_scale(source.mpp, any_mpp=how.any_mpp)
    device = spread.device if spread else None
    work = PartWork(encoder=encoder, source=source, folder=folder.resolve(), how=how, device=device)
    before = {part: work.counted(part) for part in source.parts()}
    missing = [part for part, counted in before.items() if counted is None]
    n_unreadable = sum(counted.n_unreadable for counted in before.values() if counted)
    n_left = sum(counted.n_left for counted in before.values() if counted)
    with Progress("embed", n_items=sum(map(_n_tiles, missing)), noun="tiles") as progress:
        made = work.here(missing, progress) if spread is None else _elsewhere(spread, work, missing, progress)
        for part, counted in made:
            n_unreadable += counted.n_unreadable
            n_left += counted.n_left
            _check_failed(counted.failed, n_unreadable, len(source), how=how, path=work.path(part))
    counts = {"tiles": len(source), "files": len(before), UNREADABLE: n_unreadable}
    return {**counts, **_left(encoder, n_left)}


def _elsewhere(
    spread: Spread, work: "PartWork", parts: Sequence[Part], progress: Progress
) -> Iterator[tuple[Part, Counted]]:
    for place, counted in spread.each(work, parts):
        if isinstance(counted, Ended):
            raise ChildProcessError(f"{parts[place].name} was not embedded: {counted.reason}; {GO_ON}")
        progress.advance(_n_tiles(parts[place]))
        yield parts[place], counted


@dataclass(frozen=True, kw_only=True)
class PartWork:
    """Embeds parts of a source, each into its file; picklable, to be done by other processes."""

    encoder: Encoder
    source: TileSource
    folder: Path
    how: Embedding
    device: Callable[[], torch.device] | None  # None: where the encoder is

    def __call__(self, part: Part) -> Counted:
        """Embed a part, unless a worker that was lost since has done it."""
        counted = self.counted(part)
        if counted is None:
            ((_, counted),) = self.here([part], None)
        return counted

    def here(self, parts: Sequence[Part], progress: Progress | None) -> Iterator[tuple[Part, Counted]]:
        """One part after the other in this process."""
        encoder = self.encoder if self.device is None else self.encoder.on(self.device())
        for part, found in _embedded_parts(encoder, self.source, parts, how=self.how, progress=progress):
            self._write(part, found)
            failed = list(found.failed.values())
            yield part, Counted(n_unreadable=len(failed), n_left=found.n_left, failed=failed)

    def counted(self, part: Part) -> Counted | None:
        """What is in the whole file of this part's tiles that was written before, if any."""
        try:
            stored = read_embeddings(self.path(part))
        except (FileNotFoundError, ValueError):
            return None
        if stored.attributes.get(TILES) != _tile_names(self.source.table(part)):
            return None
        n_left = int(stored.attributes.get(NOT_RESTAINED, 0))
        return Counted(n_unreadable=len(stored.unreadable), n_left=n_left, failed=[])

    def path(self, part: Part) -> Path:
        """Where its embeddings lie."""
        return self.folder / f"{part.name}.h5"

    def _write(self, part: Part, found: Found) -> None:
        table, card = self.source.table(part), self.encoder.card
        stated = {**_attributes(card, self.source), TILES: _tile_names(table)}
        write_embeddings(
            self.path(part),
            features=narrowed(found.features_ND, self.how.dtype, path=self.path(part)),
            coords=np.delete(table[["x", "y"]].to_numpy(dtype=np.int64), list(found.failed), axis=0),
            attributes={**stated, **_left(self.encoder, found.n_left)},
            unreadable=list(found.failed),
        )


def load_embeddings(folder: Path, source: TileSource) -> EmbeddingSet:
    """The embeddings of a source's tiles, in its order, with what is known of each; of those that were read.

    Raises:
        ValueError: a file holds other tiles than the source lists.
    """
    tiles = {part.name: _tile_names(source.table(part)) for part in source.parts()}
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


def _tile_names(table: pd.DataFrame) -> str:
    """A hash of the tiles of a part: of their slides (or images), versions and places, in order."""
    columns = table[["slide", "x", "y", "version"]].itertuples(index=False)
    return fingerprint([f"{slide} {x} {y} {version}" for slide, x, y, version in columns])


def _n_tiles(part: Part) -> int:
    return part.stop - part.start


def _embedded_parts(
    encoder: Encoder, source: TileSource, parts: Sequence[Part], *, how: Embedding, progress: Progress | None
) -> Iterator[tuple[Part, Found]]:
    """One part after the other; workers read ahead across the borders of parts."""
    wanted = Batches(parts, how.batch_size)
    batches = iter(TileLoader(BlankedTiles(source), wanted, how.loading))
    found_of = _found(_begun(encoder, batches, precision=how.precision), progress)
    for part in parts:
        done = [next(found_of) for _ in wanted.starts(part)]
        features = [found.features_ND for found in done] or [np.zeros((0, encoder.card.dim), np.float32)]
        failed = {row - part.start: why for found in done for row, why in found.failed.items()}
        n_left = sum(found.n_left for found in done)
        yield part, Found(features_ND=np.concatenate(features), failed=failed, n_left=n_left)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A batch whose embeddings an accelerator may still be computing."""

    batch: Batch
    features_BD: Tensor
    is_left_B: Tensor
    data_s: float  # spent on waiting for its tiles


def _begun(encoder: Encoder, batches: Iterator[Batch], *, precision: str) -> Iterator[Begun]:
    """Batches in order, each once its computing was asked for."""
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        data_s = time.monotonic() - started
        made = encoder.restained(batch["tiles"].permute(0, 3, 1, 2))
        features_BD = encoder.of_restained(made.tiles, precision=precision)
        yield Begun(batch=batch, features_BD=features_BD, is_left_B=made.is_left_B, data_s=data_s)


def _found(begun: Iterator[Begun], progress: Progress | None) -> Iterator[Found]:
    """What became of each batch, looked at once the next was asked for: so an accelerator never waits.

    Neither for features to be fetched, nor for the files that they are written to.
    """
    for one, _ in itertools.pairwise(itertools.chain(begun, [None])):
        assert one is not None  # only the last is
        features: NDArray[np.float32] = one.features_BD.cpu().numpy()
        if progress is not None:
            progress.advance(len(features), data_s=one.data_s)
        failed = one.batch["failed"]
        is_read = ~np.isin(one.batch["ids"].numpy(), list(failed))
        n_left = int((one.is_left_B.cpu().numpy() & is_read).sum())
        yield Found(features_ND=features[is_read], failed=failed, n_left=n_left)


def _check_failed(failed: list[str], n_failed: int, n_tiles: int, *, how: Embedding, path: Path) -> None:
    """Tell of tiles that could not be read, and stop where there are too many: `path` is then made anew."""
    for reason in failed:
        log.warning("embed: a tile is left out: %s", reason)
    if failed and n_failed > how.max_failed * n_tiles:
        path.unlink(missing_ok=True)
        raise ValueError(
            f"{n_failed} of {n_tiles} tiles can't be read, more than max_failed_tiles={how.max_failed:g} "
            f"allows; the newest: {failed[-1]}"
        )


def _left(encoder: Encoder, n_left: int) -> dict[str, int]:
    """The count of tiles whose stain was not normalised, where it should have been."""
    return {NOT_RESTAINED: n_left} if encoder.stain else {}


def _attributes(card: Card, source: TileSource) -> dict[str, str | int | float]:
    """What travels with embeddings: who made them, of tiles of which size and scale (NaN where unknown)."""
    mpp = float("nan") if source.mpp is None else source.mpp
    return {"encoder": card.fingerprint, "method": card.method, "tile_px": source.tile_px, "mpp": mpp}
