"""A map of embeddings: tiles that the encoder finds alike lie near each other (UMAP, arXiv:1802.03426).

A map is to be looked at, not scored: it needs no labels, and distances between far tiles mean nothing on it.
How far its neighbours are the embeddings' own is said in a note.

Letters: N tiles, D width of an embedding.
"""

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.base import TaskResult, check_finite, table_of
from histo_ssl.tasks.splits import Split

UMAP = "umap"  # protocol in the table of predictions, which here are places
FEWEST = 4  # tiles of which a map can be made: its axes are eigenvectors of a graph of them


@dataclass(frozen=True, kw_only=True)
class UmapTask:
    """Maps tiles (see `conf/task/umap.yaml` for what each value means)."""

    n_neighbors: int
    min_dist: float
    metric: str
    max_tiles: int
    thumbnail_px: int
    seed: int
    labels_are_classes: ClassVar[bool] = True

    def split(self, labelled: EmbeddingSet) -> Split:  # noqa: ARG002 (of the seam)
        """There is none.

        Raises:
            ValueError: always; who asks which tiles are not of the test is told that there is no test.
        """
        raise ValueError("a map has no test")

    def check(self, tiles: EmbeddingSet) -> None:
        """Nothing to stop at: a map can be made of any tiles."""

    def evaluate(
        self,
        embeddings: EmbeddingSet,
        *,
        subject: str,
        accelerator: str = "auto",  # noqa: ARG002 (UMAP computes on the CPU)
    ) -> TaskResult:
        """Places of the tiles (or of `max_tiles` of them, the same for all), and how far to trust them.

        `predictions` has the columns `map_x` and `map_y`, no unit. Tiles without a label are on the map, too.
        """
        check_finite(embeddings.features)
        tiles = self._drawn(embeddings)
        if len(tiles) < FEWEST:
            return self._result(notes=[f"{len(tiles)} tiles: a map needs {FEWEST} or more"])
        n_neighbors = min(self.n_neighbors, len(tiles) - 1)
        place_N2 = self._places(tiles.features, n_neighbors=n_neighbors)
        places = table_of(tiles).assign(
            subject=subject, protocol=UMAP, map_x=place_N2[:, 0], map_y=place_N2[:, 1]
        )
        return self._result(places=places, notes=self._notes(tiles, place_N2, n_all=len(embeddings)))

    def _drawn(self, embeddings: EmbeddingSet) -> EmbeddingSet:
        is_drawn = np.ones(len(embeddings), dtype=bool)
        if len(embeddings) > self.max_tiles:
            drawn = np.random.default_rng(self.seed).permutation(len(embeddings))[: self.max_tiles]
            is_drawn = np.isin(np.arange(len(embeddings)), drawn)
        return embeddings.subset(is_drawn)

    def _places(self, features_ND: NDArray[np.float32], *, n_neighbors: int) -> NDArray[np.float32]:
        # numba's other layer raises the number of torch's threads: a fork would wait for their pool
        os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
        from umap import UMAP as Umap  # noqa: PLC0415 (compiles for seconds, which other tasks need not wait for)

        umap = Umap(
            n_neighbors=n_neighbors,
            min_dist=self.min_dist,
            metric=self.metric,
            random_state=self.seed,
            n_jobs=1,  # with more, a seed is none
        )
        places: NDArray[np.float32] = umap.fit_transform(features_ND)
        return places

    def _notes(self, tiles: EmbeddingSet, place_N2: NDArray[np.float32], *, n_all: int) -> list[str]:
        notes = [f"{len(tiles)} of {n_all} tiles are on the map"] if len(tiles) < n_all else []
        k = min(self.n_neighbors, (len(tiles) - 1) // 2)  # the measure is defined below half of the tiles
        trust = trustworthiness(tiles.features, place_N2, n_neighbors=k, metric=self.metric)
        return [
            *notes,
            f"trustworthiness of the map {trust:.2f}: 1 where each tile's {k} neighbours on it are its "
            "neighbours in the embedding, too; distances between groups mean nothing",
        ]

    def _result(self, *, notes: list[str], places: pd.DataFrame | None = None) -> TaskResult:
        found = pd.DataFrame() if places is None else places
        return TaskResult(
            scores=[],
            predictions=found,
            confusion={},
            classes=sorted(set(found["label"]) - {""}) if len(found) else [],
            notes=notes,
            counts={"n_tiles": len(found)},
            primary=(UMAP, ""),
            thumbnail_px=self.thumbnail_px if len(found) else 0,
        )
