"""Clusters of the tiles of all slides of a folder of embeddings, made when somebody first looks at them.

k-means of embeddings at unit length, so that tiles are near by the angle that nearest neighbours go by, too.
Clusters are numbered by size: 1 has the most tiles.

Letters: N tiles, D width of an embedding, k clusters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histo_ssl.embeddings import Stored, read_embeddings

CHOICES = (4, 6, 8, 10, 12, 16, 20, 24)  # of k; no more than there are colours
FITTED_TILES = (
    100_000  # learned from at most, evenly of all slides; all tiles are told apart by what was learned
)
N_STARTS = 3
BATCH = 4096
SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Where the clusters lie."""

    centres_kD: NDArray[np.float32]  # the largest cluster first

    def of(self, features_ND: NDArray[np.float32]) -> NDArray[np.int64]:
        """(N,) number of the nearest centre, from 0."""
        cosine_Nk = unit_length(features_ND) @ self.centres_kD.T
        distance_Nk = (self.centres_kD**2).sum(axis=1) - 2 * cosine_Nk
        return np.asarray(distance_Nk.argmin(axis=1), dtype=np.int64)


class Embedded:
    """A folder of embeddings whose tiles are to be told apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: Mapping[str, Path] = {path.stem: path for path in sorted(folder.glob("*.h5"))}

    def read(self, slide: str) -> Stored:
        """Embeddings and places of a slide's tiles."""
        return read_embeddings(self.paths[slide])

    def clusters(self, k: int) -> Clusters:
        """So many clusters of all slides' tiles; the same in every run.

        Raises:
            ValueError: there are fewer tiles than clusters.
        """
        if len(self._sample) < k:
            raise ValueError(
                f"{self.folder}: {len(self._sample)} tiles can't make {k} clusters; ask for fewer"
            )
        from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 (takes seconds; not all look at clusters)

        model = MiniBatchKMeans(n_clusters=k, n_init=N_STARTS, batch_size=BATCH, random_state=SEED)
        sizes = np.bincount(model.fit_predict(self._sample), minlength=k)
        return Clusters(centres_kD=model.cluster_centers_[np.argsort(-sizes, kind="stable")])

    @cached_property
    def _sample(self) -> NDArray[np.float32]:
        """(N, D) tiles at even steps of every slide, at unit length."""
        share = max(1, FITTED_TILES // max(1, len(self.paths)))
        found = []
        for slide in self.paths:
            features = self.read(slide).features
            step = max(1, -(-len(features) // share))
            found.append(unit_length(features[::step]))
        return np.concatenate(found)


def unit_length(features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its length; a row of zeros stays."""
    length_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    return np.asarray(features_ND / np.maximum(length_N1, np.finfo(np.float32).tiny), dtype=np.float32)
