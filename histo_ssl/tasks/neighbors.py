"""The vote of the k nearest neighbours, in chunks, on any device.

Letters: N training tiles, M test tiles, B test tiles at a time, D width, K neighbours, C classes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Metric = Literal["cosine", "euclidean"]
Weighting = Literal["softmax", "uniform"]

# In float64 a squared distance is off by some 1e-16 of the squared length of its row; less than this share of
# it is taken for 0.
ROUNDING = 1e-12


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
        chunk_rows: test tiles compared at a time; memory grows with chunk_rows x N.

    Returns:
        (M, C) float64, rows sum to 1: 5 uniform neighbours of classes 0, 0, 2, 0, 2 give (.6, 0, .4).
    """
    origin_D = train_ND[0]
    train_placed_ND = _placed(train_ND, origin_D, protocol.metric)
    train_square_N = _square(train_placed_ND)
    voter_NC = F.one_hot(train_labels_N, n_classes).double()
    k = min(protocol.k, len(train_ND))
    votes = [torch.zeros(0, n_classes, dtype=torch.float64, device=train_ND.device)]
    for start in range(0, len(test_MD), chunk_rows):
        test_BD = _placed(test_MD[start : start + chunk_rows], origin_D, protocol.metric)
        far_BN = _remoteness(test_BD, train_placed_ND, train_square_N, metric=protocol.metric)
        index_BK = _nearest(far_BN, k)
        weight_BK = _weights(far_BN.gather(1, index_BK).double(), protocol)
        votes.append(torch.einsum("bk,bkc->bc", weight_BK, voter_NC[index_BK]))
    votes_MC = torch.cat(votes)
    return votes_MC / votes_MC.sum(dim=1, keepdim=True)


def _placed(x_ND: Tensor, origin_D: Tensor, metric: Metric) -> Tensor:
    """Embeddings in float64: of length 1 for "cosine" (0 stays 0), seen from `origin_D` for "euclidean".

    The further points lie from the origin, the more digits their distances lose, so a training tile becomes
    the origin. A mean would serve as well, but its rounding would part distances that are equal.
    """
    return F.normalize(x_ND.double(), dim=1) if metric == "cosine" else x_ND.double() - origin_D.double()


def _remoteness(a_BD: Tensor, b_ND: Tensor, square_N: Tensor, *, metric: Metric) -> Tensor:
    """What ranks neighbours, (B, N) float32: 1 - cosine similarity, or the squared Euclidean distance."""
    square_B1 = _square(a_BD)[:, None]
    # In place: fresh buffers of this size cost more time than the arithmetic.
    if metric == "cosine":
        far_BN = (a_BD @ b_ND.T).neg_().add_(1)
    else:
        far_BN = torch.addmm(square_N, a_BD, b_ND.T, alpha=-2).add_(square_B1)
    return far_BN.masked_fill_(far_BN <= ROUNDING * square_B1, 0).float()


def _square(x_ND: Tensor) -> Tensor:
    """Squared lengths (N,)."""
    return x_ND.square().sum(dim=1)


def _nearest(far_BN: Tensor, k: int) -> Tensor:
    """Columns (B, K) of the k smallest numbers; of equals at the border the lower columns."""
    nearest = far_BN.topk(k, largest=False)
    index_BK = nearest.indices
    # topk takes any of several equals: rows where the k-th has an equal outside are sorted in full.
    is_open_B = (far_BN <= nearest.values[:, -1:]).sum(dim=1) > k
    index_BK[is_open_B] = far_BN[is_open_B].sort(dim=1, stable=True).indices[:, :k]
    return index_BK


def _weights(far_BK: Tensor, protocol: KnnProtocol) -> Tensor:
    """Votes (B, K) of the neighbours: 1, or exp(-distance / T) up to a factor per row."""
    if protocol.weighting == "uniform":
        return torch.ones_like(far_BK)
    assert protocol.temperature is not None, "KnnProtocol refuses softmax without a temperature"
    distance_BK = far_BK if protocol.metric == "cosine" else far_BK.sqrt()
    return torch.softmax(-distance_BK / protocol.temperature, dim=1)
