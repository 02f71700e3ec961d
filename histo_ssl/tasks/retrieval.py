"""The protocol of retrieval: each test tile asks for the training tiles that are most like it.

Right is what has the test tile's class. Per test tile, of the first k that are found (as in UNI,
arXiv:2308.15474, methods):

- `acc_at_k`: 1 if any is right, else 0;
- `map_at_k`, the average precision of the list: the sum over its right places i of P_i, the share of right
  ones among the first i, over min(k, R), the number that could be right; R is how many there are in train.

Letters: N training tiles, M test tiles, K neighbours, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from histo_ssl.tasks.neighbors import Metric, nearest_tiles
from histo_ssl.tasks.tiles import Exam, Lesson, Retrieved

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NearestTiles:
    """Training tiles in the order of their distance.

    Args:
        ks: how many of the first are looked at; several give several scores.
        metric: "cosine" or "euclidean".
        chunk_rows: test tiles compared at a time; changes memory, not the result.
    """

    ks: Sequence[int]
    metric: Metric
    chunk_rows: int

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(
                f"retrieval: ks={list(self.ks)}: one or more whole numbers from 1 on are expected"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """`acc_at_1`, `map_at_1` and so on."""
        return tuple(f"{name}_at_{k}" for k in self.ks for name in ("acc", "map"))

    def retrieve(self, lesson: Lesson, exam: Exam) -> Retrieved:
        """The scores of each test tile, and what a random order reaches.

        Raises:
            ValueError: k is larger than the number of training tiles.
        """
        n_train, most = len(lesson.class_N), max(self.ks)
        if most > n_train:
            raise ValueError(
                f"retrieval: k={most}, but train has {n_train} tiles; take k of at most {n_train}"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        index_MK = nearest_tiles(
            torch.from_numpy(lesson.features_ND).to(device),
            torch.from_numpy(exam.features_MD).to(device),
            k=most,
            metric=self.metric,
            chunk_rows=self.chunk_rows,
        )
        found_MK = lesson.class_N[index_MK.cpu().numpy()]
        n_right_M = np.bincount(lesson.class_N, minlength=lesson.n_classes)[exam.class_M]
        return Retrieved(
            values=self._values(found_MK == exam.class_M[:, None], n_right_M),
            chances=self._chances(n_right_M, n_train),
            nearest_M=found_MK[:, 0],
        )

    def _values(self, is_right_MK: NDArray[np.bool_], n_right_M: Ints) -> dict[str, Floats]:
        values: dict[str, Floats] = {}
        share_MK = is_right_MK.cumsum(axis=1) / np.arange(1, is_right_MK.shape[1] + 1)
        for k in self.ks:
            values[f"acc_at_{k}"] = np.asarray(is_right_MK[:, :k].any(axis=1), dtype=np.float64)
            summed_M = (is_right_MK * share_MK)[:, :k].sum(axis=1)
            values[f"map_at_{k}"] = np.asarray(summed_M / np.minimum(k, n_right_M))
        return values

    def _chances(self, n_right_M: Ints, n_train: int) -> dict[str, float]:
        chances = {}
        for k in self.ks:
            chances[f"acc_at_{k}"] = float(np.mean([1 - _none_of(k, n, n_train) for n in n_right_M]))
            chances[f"map_at_{k}"] = float(np.mean(_map_by_chance(k, n_right_M, n_train)))
        return chances


def _none_of(k: int, n_right: int, n: int) -> float:
    """Probability that none of k tiles, drawn from n of which `n_right` are right, is right.

    >>> round(_none_of(2, 2, 4), 6)
    0.166667
    """
    if n - n_right < k:
        return 0.0
    return float(np.exp(_log_choose(n - n_right, k) - _log_choose(n, k)))


def _log_choose(n: int, k: int) -> float:
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def _map_by_chance(k: int, n_right_M: Ints, n: int) -> Floats:
    """Expected `map_at_k` (M,) of a random order of n training tiles.

    Place i is right with probability R / n, and then each place before it with (R - 1) / (n - 1).
    """
    share_M = n_right_M / n
    before_M = (n_right_M - 1) / max(1, n - 1)
    i_K = np.arange(1, k + 1)
    expected_MK = share_M[:, None] * (1 + (i_K - 1) * before_M[:, None]) / i_K
    expected_M: Floats = expected_MK.sum(axis=1) / np.minimum(k, n_right_M)
    return expected_M
