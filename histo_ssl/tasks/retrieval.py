"""The protocol of retrieval: each test tile asks for the training tiles that are most like it.

Right is what has the test tile's class. Per test tile, of the first k that are found:

- `acc_at_k` (UNI's Acc@K: Chen et al., Nature Medicine 30:850, 2024, methods): 1 if any is right, else 0;
- `mvacc_at_k` (UNI's MVAcc@5): 1 if the class that most of them have is right, else 0. Where classes have
  equally many, the one counts that was found first: a rule of ours;
- `map_at_k`, the average precision of the list: the sum over its right places i of P_i, the share of right
  ones among the first i, over min(k, R), the number that could be right; R is how many there are in train.
  With k = N it is that of Manning, Raghavan and Schuetze, Introduction to Information Retrieval, section 8.4,
  which divides by R; over min(k, R), a list that is cut can reach 1, too.

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
        vote_ks: how many of the first vote; likewise.
        metric: "cosine" or "euclidean".
        chunk_rows: test tiles compared at a time; changes memory, not the result.
    """

    ks: Sequence[int]
    vote_ks: Sequence[int]
    metric: Metric
    chunk_rows: int

    def __post_init__(self) -> None:
        if not self.ks or min(*self.ks, *self.vote_ks, self.ks[0]) < 1:
            raise ValueError(
                f"retrieval: ks={list(self.ks)}, vote_ks={list(self.vote_ks)}: whole numbers from 1 on are "
                "expected, one or more for ks"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """`acc_at_1`, `map_at_1` and so on, then `mvacc_at_5`."""
        looked_at = [f"{name}_at_{k}" for k in self.ks for name in ("acc", "map")]
        return (*looked_at, *(f"mvacc_at_{k}" for k in self.vote_ks))

    def retrieve(self, lesson: Lesson, exam: Exam) -> Retrieved:
        """The scores of each test tile, and what a random order reaches.

        Raises:
            ValueError: k is larger than the number of training tiles.
        """
        n_train, most = len(lesson.class_N), max(*self.ks, *self.vote_ks, self.ks[0])
        if most > n_train:
            raise ValueError(
                f"retrieval: k={most}, but train has {n_train} tiles; take k of at most {n_train}"
            )
        index_MK = nearest_tiles(
            torch.from_numpy(lesson.features_ND).to(lesson.device),
            torch.from_numpy(exam.features_MD).to(lesson.device),
            k=most,
            metric=self.metric,
            chunk_rows=self.chunk_rows,
        )
        found_MK = lesson.class_N[index_MK.cpu().numpy()]
        n_C = np.bincount(lesson.class_N, minlength=lesson.n_classes)
        n_right_M = n_C[exam.class_M]
        voted = {f"mvacc_at_{k}": voted_class(found_MK[:, :k]) == exam.class_M for k in self.vote_ks}
        by_vote = {f"mvacc_at_{k}": float(votes_by_chance(k, n_C)[exam.class_M].mean()) for k in self.vote_ks}
        return Retrieved(
            values=self._values(found_MK == exam.class_M[:, None], n_right_M)
            | {name: is_right_M.astype(np.float64) for name, is_right_M in voted.items()},
            chances=self._chances(n_right_M, n_train) | by_vote,
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


def voted_class(found_MK: Ints) -> Ints:
    """The commonest class (M,) of each row; of several, the one that comes first in it.

    >>> voted_class(np.array([[2, 0, 1, 0, 1], [2, 0, 1, 1, 2]]))
    array([0, 2])
    """
    n_alike_MK = (found_MK[:, :, None] == found_MK[:, None, :]).sum(axis=2)
    first_M = n_alike_MK.argmax(axis=1)
    return np.take_along_axis(found_MK, first_M[:, None], axis=1)[:, 0]


def votes_by_chance(k: int, n_C: Ints) -> Floats:
    """Probability (C,) that each class wins the vote of k tiles, drawn from all in a random order.

    It wins with m votes where no class has more; of t others with as many, each was as likely found first.
    Numbers of ways to draw j of n are divided by N^j, lest they overflow.

    Args:
        k: tiles that vote, at most as many as there are.
        n_C: tiles of each class.

    Returns:
        They sum to 1: [0.5, 0.5] of two classes that are as common.
    """
    n = int(n_C.sum())
    ways_CK = np.array([[_ways(j, int(n_c), n) for j in range(k + 1)] for n_c in n_C])
    won_C = [_ways_to_win(c, ways_CK) for c in range(len(n_C))]
    return np.array(won_C) / _ways(k, n, n)


def _ways(j: int, n_c: int, n: int) -> float:
    """Ways to draw j of `n_c` tiles, over n^j: 0 where there are fewer."""
    return float(np.exp(_log_choose(n_c, j) - j * np.log(n))) if j <= n_c else 0.0


def _ways_to_win(c: int, ways_CK: Floats) -> float:
    """Ways in which class c wins, those in which others have as many votes by its share of them."""
    k = ways_CK.shape[1] - 1
    won = 0.0
    for m in range(1, k + 1):
        others_KT = np.zeros((k + 1, k + 1))  # by votes of the others, and how many of them have m
        others_KT[0, 0] = 1.0
        for ways_K in np.delete(ways_CK, c, axis=0):
            added_KT = np.zeros_like(others_KT)
            for j in range(m):
                added_KT[j:] += ways_K[j] * others_KT[: k + 1 - j]
            added_KT[m:, 1:] += ways_K[m] * others_KT[: k + 1 - m, :-1]
            others_KT = added_KT
        won += float(ways_CK[c, m] * (others_KT[k - m] / np.arange(1, k + 2)).sum())
    return won


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
