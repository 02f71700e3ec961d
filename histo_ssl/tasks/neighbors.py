"""The vote of the k nearest neighbours, in chunks, on any device.

All distances are only estimated, in float32; what can't be among the nearest by the bound of the estimates'
error is left out, and the few pairs that are left are compared by distances in float64. So the neighbours are
those of float64, at the cost of float32. Where most pairs are left, as among the embeddings of a collapsed
encoder, all distances of the test tile are computed in float64.

Letters: N training tiles, M test tiles, B test tiles at a time, R crowded ones of them, S training tiles in a
sample, J at a time, D width, K neighbours, P pairs, C classes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Metric = Literal["cosine", "euclidean"]
Weighting = Literal["softmax", "uniform"]

# In float64 a product of rows is off by some 1e-16 of their lengths; less than this share is taken for 0.
ROUNDING = 1e-12
# What products of float32 are rounded to, by what torch may make of them on an accelerator or with bfloat16.
ROUNDED = {"highest": 2.0**-23, "high": 2.0**-10, "medium": 2.0**-7}
CROWDED = 8  # times K: with so many of the sample within its limit, estimates leave out too little
BLOCK_COLUMNS = 2048  # J: 512 x J numbers fit into a processor's cache, 512 x N don't
SAMPLED = 16  # of so many training tiles one is in the sample, whose nearest bound the search among all


@dataclass(frozen=True, kw_only=True)
class KnnProtocol:
    """How neighbours are found and how they vote.

    Raises:
        ValueError: a value has no meaning.
    """

    k: int
    metric: Metric
    weighting: Weighting
    temperature: float | None  # divides similarities under "softmax"; no meaning under "uniform"

    def __post_init__(self) -> None:
        for name, value, valid in (("metric", self.metric, Metric), ("weighting", self.weighting, Weighting)):
            if value not in get_args(valid):
                raise ValueError(f"knn: {name}={value!r} is none of {', '.join(get_args(valid))}")
        if self.k < 1:
            raise ValueError(f"knn: k={self.k} neighbours can't vote; use k >= 1")
        if self.weighting == "softmax" and not (self.temperature and self.temperature > 0):
            raise ValueError(f"knn: weighting=softmax needs a temperature > 0, got {self.temperature}")


@torch.inference_mode()
def knn_scores(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    *,
    n_classes: int,
    protocol: KnnProtocol,
    chunk_rows: int,
) -> Tensor:
    """How much of the neighbours' vote each class gets.

    Of training tiles that are equally far (to float32's precision) the earlier ones are the neighbours: the
    result depends on the order of the tiles, never on `chunk_rows`.

    Args:
        train_ND: embeddings of the training tiles, on any device that has float64.
        train_labels_N: their classes, int64, 0 to n_classes - 1.
        test_MD: embeddings of the test tiles, on the same device.
        n_classes: width of the result.
        protocol: of at least as many neighbours as there are training tiles: all of them vote.
        chunk_rows: test tiles compared at a time; memory grows with it.

    Returns:
        (M, C) float64, rows sum to 1: 5 uniform neighbours of classes 0, 0, 2, 0, 2 give (.6, 0, .4).
    """
    k = min(protocol.k, len(train_ND))
    train = _Train(train_ND, metric=protocol.metric)
    voter_NC = F.one_hot(train_labels_N, n_classes).double()
    votes = [torch.zeros(0, n_classes, dtype=torch.float64, device=train_ND.device)]
    for start in range(0, len(test_MD), chunk_rows):
        far_BK, index_BK = train.nearest(test_MD[start : start + chunk_rows], k)
        weight_BK = _weights(far_BK.double(), protocol)
        votes.append(torch.einsum("bk,bkc->bc", weight_BK, voter_NC[index_BK]))
    votes_MC = torch.cat(votes)
    return votes_MC / votes_MC.sum(dim=1, keepdim=True)


@torch.inference_mode()
def nearest_tiles(train_ND: Tensor, test_MD: Tensor, *, k: int, metric: Metric, chunk_rows: int) -> Tensor:
    """Numbers (M, K) of the k nearest training tiles, near ones first; of equally far ones the earlier.

    Args:
        train_ND: embeddings of the training tiles, k or more.
        test_MD: embeddings of the test tiles, on the same device.
        k: neighbours of each.
        metric: what is near.
        chunk_rows: as of `knn_scores`.
    """
    train = _Train(train_ND, metric=metric)
    parts = [train.nearest(test_BD, k)[1] for test_BD in torch.split(test_MD, chunk_rows)]
    return torch.cat(parts)


class _Train:
    """Training tiles among which neighbours are found."""

    def __init__(self, train_ND: Tensor, *, metric: Metric) -> None:
        self.metric = metric
        self.train_ND = train_ND
        self.origin_D = train_ND[0].double()
        parts = [self._placed(few_JD) for few_JD in torch.split(train_ND, BLOCK_COLUMNS)]
        # the longest gets length 1, so that no square leaves the range of float32
        longest = torch.stack([_square(part_JD).max() for part_JD in parts]).max().sqrt()
        self.scale = 1 / longest.clamp(min=torch.finfo(torch.float32).tiny)
        self.rough_ND = torch.cat([(part_JD * self.scale).float() for part_JD in parts])
        is_cosine = metric == "cosine"  # of rows of length 1 the products rank alone
        self.square_N = self.rough_ND.new_zeros(len(train_ND)) if is_cosine else _square(self.rough_ND)

    def nearest(self, test_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """How far the k nearest are (B, K), float32, as of `_exactly`, and their numbers, near ones first."""
        rough_BD = (self._placed(test_BD) * self.scale).float()
        error_B = self._error(rough_BD)
        stride = max(1, min(SAMPLED, len(self.rough_ND) // k))
        sample_BS = self._estimates(rough_BD, slice(None, None, stride))
        # the k-th of some tiles is no nearer than the k-th of all; both estimates may be off
        limit_B = sample_BS.topk(k, largest=False).values[:, -1] + 2 * error_B
        is_crowded_B = (sample_BS <= limit_B[:, None]).sum(dim=1) > CROWDED * k
        far_BK = sample_BS.new_empty(len(test_BD), k)
        index_BK = torch.empty_like(far_BK, dtype=torch.int64)
        few, crowded = (~is_crowded_B).nonzero()[:, 0], is_crowded_B.nonzero()[:, 0]
        if len(few):
            pairs = self._candidates(rough_BD[few], limit_B[few], error_B[few], k)
            far_BK[few], index_BK[few] = self._among(test_BD[few], *pairs, k=k)
        if len(crowded):
            far_BK[crowded], index_BK[crowded] = self._among_all(test_BD[crowded], k)
        return far_BK, index_BK

    def _error(self, rough_BD: Tensor) -> Tensor:
        """Bound (B,) of the error of any of a row's estimates.

        A sum of D products is off by D times the rounding of the product of the lengths at most (Higham,
        Accuracy and Stability of Numerical Algorithms, 2002, eq. 3.5), doubled here; the rest is for casts.
        """
        rounding = ROUNDED[torch.get_float32_matmul_precision()]
        return (2 * rough_BD.shape[1] + 16) * rounding * (1 + _square(rough_BD).sqrt())

    def _placed(self, x_ND: Tensor) -> Tensor:
        """Embeddings in float64: of length 1 for "cosine" (0 stays 0), seen from the origin for "euclidean".

        The further points lie from the origin, the more digits their distances lose, so that a training tile
        becomes the origin.
        """
        x_ND = x_ND.double()
        return F.normalize(x_ND, dim=1) if self.metric == "cosine" else x_ND - self.origin_D

    def _candidates(
        self, rough_BD: Tensor, limit_B: Tensor, error_B: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """Rows and columns (P,) of all pairs that may be among the k nearest of their row, by columns."""
        found = [self._within(limit_B, rough_BD, i) for i in range(0, len(self.rough_ND), BLOCK_COLUMNS)]
        row_P, column_P, rough_P = (torch.cat(parts) for parts in zip(*found, strict=True))
        first_B, order_P = _by_row(row_P, rough_P, n_rows=len(rough_BD))
        limit_B = rough_P[order_P[first_B + k - 1]] + 2 * error_B
        is_near_P = rough_P <= limit_B[row_P]
        return row_P[is_near_P], column_P[is_near_P]

    def _within(self, limit_B: Tensor, rough_BD: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and estimates of the pairs in a block of columns that lie within the limit."""
        rough_BJ = self._estimates(rough_BD, slice(start, start + BLOCK_COLUMNS))
        place_P = _places(rough_BJ <= limit_B[:, None])
        row_P = place_P.div(rough_BJ.shape[1], rounding_mode="floor")
        column_P = place_P - row_P * rough_BJ.shape[1]
        return row_P, column_P + start, rough_BJ.view(-1)[place_P]

    def _estimates(self, rough_BD: Tensor, columns: slice) -> Tensor:
        """Squared distances of the scaled rows, less the tests' own squares and halved; (B, J) float32."""
        return torch.addmm(self.square_N[columns], rough_BD, self.rough_ND[columns].T, beta=0.5, alpha=-1)

    def _among(self, test_BD: Tensor, row_P: Tensor, column_P: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest of each row among pairs, as `nearest` gives them."""
        far_P = self._exactly(test_BD, row_P, column_P)
        first_B, order_P = _by_row(row_P, far_P, n_rows=len(test_BD))
        chosen_BK = order_P[first_B[:, None] + torch.arange(k, device=row_P.device)]
        return far_P[chosen_BK], column_P[chosen_BK]

    def _among_all(self, test_RD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The same among all training tiles."""
        a_RD = self._placed(test_RD)
        blocks = torch.split(self.train_ND, BLOCK_COLUMNS)
        far_RN = torch.cat([_all_far(a_RD, self._placed(b_JD), self.metric) for b_JD in blocks], dim=1)
        nearest = far_RN.topk(k, largest=False)
        index_RK = nearest.indices
        # topk takes any of several equals: rows where the k-th has an equal outside are sorted in full
        is_open_R = (far_RN <= nearest.values[:, -1:]).sum(dim=1) > k
        index_RK[is_open_R] = far_RN[is_open_R].sort(dim=1, stable=True).indices[:, :k]
        index_RK = index_RK.sort(dim=1).values
        far_RK, order_RK = far_RN.gather(1, index_RK).sort(dim=1, stable=True)
        return far_RK, index_RK.gather(1, order_RK)

    def _exactly(self, test_BD: Tensor, row_P: Tensor, column_P: Tensor) -> Tensor:
        """What ranks pairs, (P,) float32: 1 - cosine similarity, or the squared Euclidean distance."""
        parts = [
            _far(test_BD[rows], self.train_ND[columns], self.metric)
            for rows, columns in zip(
                torch.split(row_P, BLOCK_COLUMNS), torch.split(column_P, BLOCK_COLUMNS), strict=True
            )
        ]
        return torch.cat(parts).float()


def _far(a_PD: Tensor, b_PD: Tensor, metric: Metric) -> Tensor:
    a_PD, b_PD = a_PD.double(), b_PD.double()
    if metric == "euclidean":
        return _square(a_PD - b_PD)
    far_P = 1 - (F.normalize(a_PD, dim=1) * F.normalize(b_PD, dim=1)).sum(dim=1)
    return far_P.masked_fill_(far_P <= ROUNDING, 0)


def _all_far(a_RD: Tensor, b_JD: Tensor, metric: Metric) -> Tensor:
    """What `_far` says of all pairs, (R, J) float32, of placed rows."""
    square_R1 = _square(a_RD)[:, None]
    if metric == "cosine":
        far_RJ = 1 - a_RD @ b_JD.T
        return far_RJ.masked_fill_(far_RJ <= ROUNDING, 0).float()
    far_RJ = torch.addmm(_square(b_JD), a_RD, b_JD.T, alpha=-2).add_(square_R1)
    return far_RJ.masked_fill_(far_RJ <= ROUNDING * square_R1, 0).float()


def _by_row(row_P: Tensor, value_P: Tensor, *, n_rows: int) -> tuple[Tensor, Tensor]:
    """Order (P,) by row, then by value, then as they came; and where each row begins in it, (B,)."""
    by_value_P = value_P.argsort(stable=True)
    order_P = by_value_P[row_P[by_value_P].argsort(stable=True)]
    n_B = torch.bincount(row_P, minlength=n_rows)
    return n_B.cumsum(0) - n_B, order_P


def _places(is_BJ: Tensor) -> Tensor:
    """Where a mask is true, (P,) in the order of its memory.

    On a CPU numpy skips what is false, a tenth of the time that torch takes where little is true.
    """
    if is_BJ.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(is_BJ.numpy()))
    return is_BJ.view(-1).nonzero()[:, 0]


def _square(x_ND: Tensor) -> Tensor:
    """Squared lengths (N,)."""
    return x_ND.square().sum(dim=1)


def _weights(far_BK: Tensor, protocol: KnnProtocol) -> Tensor:
    """Votes (B, K) of the neighbours: 1, or exp(-distance / T) up to a factor per row."""
    if protocol.weighting == "uniform":
        return torch.ones_like(far_BK)
    assert protocol.temperature is not None, "KnnProtocol refuses softmax without a temperature"
    distance_BK = far_BK if protocol.metric == "cosine" else far_BK.sqrt()
    return torch.softmax(-distance_BK / protocol.temperature, dim=1)
