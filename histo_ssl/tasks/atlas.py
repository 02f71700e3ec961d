"""An atlas of phenotypes: clusters of all tiles of all slides, with their most typical tiles.

Clusters are k-means of the embeddings as they are. Where tiles have labels, how far clusters are the classes
is a score beside its floors: the mutual information, adjusted for chance (Vinh et al. 2010, eq. 5, by the
arithmetic mean of the entropies).

Letters: N tiles, K clusters, D width of an embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.heads.chart import SEQUENTIAL, Chart, draw
from histo_ssl.tasks.base import ENCODER, Figure, Score, Sheet, TaskResult, check_finite, table_of
from histo_ssl.tasks.bootstrap import Asked, Estimated, group_weights, with_interval
from histo_ssl.tasks.splits import Split, group_keys

Ints = NDArray[np.int64]
CLUSTERS, AMI = "clusters", "adjusted_mutual_information"
SLIDES, CLASSES = "cluster_slides", "cluster_classes"  # tables of shares
N_STARTS = 4  # of k-means; the best is taken


@dataclass(frozen=True, kw_only=True)
class AtlasTask:
    """Clusters tiles (see `conf/task/atlas.yaml` for what each value means)."""

    n_clusters: int
    n_typical: int
    n_of_slide: int
    max_tiles: int
    n_bootstrap: int
    seed: int
    labels_are_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n_clusters < 2 or min(self.n_typical, self.n_of_slide) < 1:
            raise ValueError(
                f"atlas: n_clusters={self.n_clusters}, n_typical={self.n_typical}, n_of_slide="
                f"{self.n_of_slide}: 2 clusters, and 1 tile, or more are expected"
            )

    def split(self, labelled: EmbeddingSet) -> Split:  # noqa: ARG002 (of the seam)
        """There is none.

        Raises:
            ValueError: always; who asks which tiles are not of the test is told that there is no test.
        """
        raise ValueError("an atlas has no test")

    def check(self, tiles: EmbeddingSet) -> None:
        """Stop at fewer tiles than clusters.

        Raises:
            ValueError: says how many there are.
        """
        if len(tiles) < self.n_clusters:
            raise ValueError(
                f"{len(tiles)} tiles can't be {self.n_clusters} clusters: take fewer "
                "(task.protocol.n_clusters)"
            )

    def evaluate(
        self,
        embeddings: EmbeddingSet,
        *,
        subject: str,
        accelerator: str = "auto",  # noqa: ARG002 (k-means computes on the CPU)
    ) -> TaskResult:
        """Clusters of the tiles (largest first), tables of their shares; of the encoder their typical tiles.

        `predictions` has a row per tile: `cluster`, and `distance` to its centre.
        """
        self.check(embeddings)
        check_finite(embeddings.features)
        cluster_N, distance_N = self._clusters(embeddings.features)
        found = table_of(embeddings).assign(
            subject=subject, protocol=CLUSTERS, cluster=cluster_N, distance=distance_N
        )
        return TaskResult(
            scores=[self._score(found, group_keys(embeddings)[0], subject=subject)]
            if _is_labelled(found)
            else [],
            predictions=found,
            confusion={},
            classes=sorted(set(found["label"]) - {""}),
            notes=[],
            counts={"n_tiles": len(found), "n_clusters": self.n_clusters},
            primary=(CLUSTERS, AMI),
            tables={
                CLUSTERS: _summary(found),
                SLIDES: _shares(found, "slide"),
                CLASSES: _shares(found, "label"),
            },
            sheets=[self._sheet(found)] if subject == ENCODER else [],
            figures=_charts(found) if subject == ENCODER else [],
        )

    def _clusters(self, features_ND: NDArray[np.float32]) -> tuple[Ints, NDArray[np.float64]]:
        """Cluster of each tile, 0 the largest, and its distance to the centre."""
        drawn = np.random.default_rng(self.seed).permutation(len(features_ND))[: self.max_tiles]
        means = KMeans(self.n_clusters, random_state=self.seed, n_init=N_STARTS)
        means.fit(features_ND[np.sort(drawn)])
        distance_NK = means.transform(features_ND)
        nearest_N = distance_NK.argmin(axis=1)
        order_K = np.argsort(-np.bincount(nearest_N, minlength=self.n_clusters), kind="stable")
        place_K = np.empty_like(order_K)
        place_K[order_K] = np.arange(self.n_clusters)
        return place_K[nearest_N], distance_NK.min(axis=1)

    def _score(self, found: pd.DataFrame, group_N: NDArray[np.str_], *, subject: str) -> Score:
        """How far clusters are classes, of the labelled tiles; 1: one tells the other, 0: chance."""
        is_known = (found["label"] != "").to_numpy()
        cluster, label = found["cluster"].to_numpy()[is_known], found["label"].to_numpy()[is_known]
        names, group = np.unique(group_N[is_known], return_inverse=True)
        of_group = [np.flatnonzero(group == g) for g in range(len(names))]
        drawn = [
            adjusted_mutual_info_score(label[rows], cluster[rows])
            for weights_RG in group_weights(
                len(names), n=self.n_bootstrap, seed=self.seed, n_tiles=int(is_known.sum())
            )
            for weight_G in weights_RG
            for rows in [_repeated(of_group, weight_G)]
        ]
        estimated = Estimated(
            metric=AMI,
            label="",
            value=float(adjusted_mutual_info_score(label, cluster)),
            drawn_R=np.array(drawn),
            varies=len(names) > 1,
            chance=0.0,
        )
        return with_interval(
            estimated, Asked(subject=subject, protocol=CLUSTERS, n_bootstrap=self.n_bootstrap, seed=self.seed)
        )

    def _sheet(self, found: pd.DataFrame) -> Sheet:
        """The most typical tiles of each cluster, not too many of one slide."""
        rows = list(self._rows(found))
        said = "; ".join(title for title, _, _ in rows)
        return Sheet(
            name="atlas",
            title=f"{self.n_clusters} clusters of tiles, the largest first, and their most typical tiles",
            alt=f"Rows of tiles, a row for each of {self.n_clusters} clusters: {said}.",
            group="Atlas of phenotypes",
            rows=rows,
        )

    def _rows(self, found: pd.DataFrame) -> Iterator[tuple[str, Ints, list[tuple[str, str]]]]:
        for cluster, tiles in found.sort_values("distance", kind="stable").groupby("cluster"):
            shown = tiles.groupby("slide", sort=False).head(self.n_of_slide).head(self.n_typical)
            slides = f"{tiles['slide'].nunique()} of {found['slide'].nunique()} slides"
            title = f"cluster {cluster}: {len(tiles) / len(found):.1%} of the tiles, {slides}"
            captions = list(zip(shown["slide"].astype(str), shown["label"].astype(str), strict=True))
            yield title + _mostly(tiles), shown["tile"].to_numpy(dtype=np.int64), captions


def _charts(found: pd.DataFrame) -> list[Figure]:
    """Class by cluster, where tiles have classes."""
    if not _is_labelled(found):
        return []
    shares = _shares(found, "label").pivot(index="label", columns="cluster", values="share").fillna(0.0)
    chart = Chart(
        title="What each class consists of",
        rows=[str(label) for label in shares.index],
        columns=[str(cluster) for cluster in shares.columns],
        values=shares.to_numpy(dtype=np.float64),
        is_framed=np.zeros(shares.shape, dtype=bool),
        low=0.0,
        high=1.0,
        label="share of the class's tiles",
        colormap=SEQUENTIAL,
    )
    n_classes, n_clusters = shares.shape
    words = f"Shares of {n_clusters} clusters in {n_classes} classes; {CLASSES}.csv has them as a table."
    return [
        Figure(
            name="atlas-classes", title=chart.title, alt=words, group="Atlas of phenotypes", image=draw(chart)
        )
    ]


def _repeated(of_group: list[Ints], weight_G: NDArray[np.float64]) -> Ints:
    """Tiles of groups, each as often as its weight says."""
    return np.concatenate([np.repeat(r, int(w)) for r, w in zip(of_group, weight_G, strict=True)])


def _is_labelled(found: pd.DataFrame) -> bool:
    return len(set(found["label"]) - {""}) > 1


def _mostly(tiles: pd.DataFrame) -> str:
    """Of which class most of a cluster's labelled tiles are, if there are any."""
    shares = tiles.loc[tiles["label"] != "", "label"].value_counts(normalize=True)
    return f"; {shares.index[0]} {shares.iloc[0]:.0%}" if len(shares) else ""


def _summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row per cluster: its tiles, slides and spread."""
    grouped = found.groupby("cluster")
    return pd.DataFrame(
        {
            "n_tiles": grouped.size(),
            "share": grouped.size() / len(found),
            "n_slides": grouped["slide"].nunique(),
            "mean_distance": grouped["distance"].mean(),
        }
    ).reset_index()


def _shares(found: pd.DataFrame, column: str) -> pd.DataFrame:
    """Share of each cluster in the tiles of each slide, or class: they sum to 1 in each."""
    known = found[found[column] != ""]
    counts = known.groupby([column, "cluster"]).size().rename("n_tiles").reset_index()
    total = counts.groupby(column)["n_tiles"].transform("sum")
    return counts.assign(share=counts["n_tiles"] / total)
