"""Numbers that tell a healthy training from one that fails, and the failure's name.

N: rows, one per view of a tile; K: outputs of the head; D: width of the embedding.
"""

import logging
from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from histo_ssl.parallel.distributed import gather, rank, world_size

logger = logging.getLogger(__name__)

# the smallest share of a singular value, in RankMe's eq. 2
RANKME_EPSILON = 1e-7

ADVICE = {
    "uniform collapse": "the teacher says nothing of any tile; sharpen it by a lower method.teacher.temp, or "
    "lower method.optim.lr_per_256",
    "one-hot collapse": "the teacher says the same of every tile; soften it by a higher method.teacher.temp, "
    "or let its centre follow faster by a lower method.teacher.centre_momentum",
    "constant collapse": "the teacher says the same of every tile, now this and now that; slow it down by a "
    "higher method.teacher.momentum, lower method.optim.lr_per_256, or set method.teacher.n_sinkhorn=3",
    "loss at chance": "the method tells no tile from another; raise method.optim.lr_per_256 if the loss "
    "never moved, lower it if it came back, or train longer",
    "feature collapse": "all tiles look alike to it; lower method.optim.lr_per_256, or take a larger batch "
    "or weaker views",
    "stale queue": "the oldest keys lie elsewhere than the newest; shorten it by a lower "
    "method.queue.n_keys, or slow their encoder down by a method.momentum nearer to 1",
}


@dataclass(frozen=True, kw_only=True)
class MonitorSpec:
    """When a collapse is named, and what RankMe looks at.

    Args:
        margin: a teacher within this share of ln K of an entropy of ln K or 0 is suspicious, 0-1.
        patience: share of training for which it must stay so without a break, 0-1.
        rankme_rows: newest embeddings that RankMe is taken over; the rank found is never higher.
    """

    margin: float
    patience: float
    rankme_rows: int


@dataclass(frozen=True, kw_only=True)
class WatchSpec:
    """When a failure of a method that has no teacher's distributions is named, and what RankMe looks at.

    Args:
        margin: a loss within this share of its value at chance is suspicious, 0-1.
        min_spread: so are features or projections whose spread is below this, 0-1.
        patience: share of training for which it must stay so without a break, 0-1.
        rankme_rows: newest embeddings that RankMe is taken over; the rank found is never higher.
    """

    margin: float
    min_spread: float
    patience: float
    rankme_rows: int


def entropy(p_NK: Tensor) -> Tensor:
    """Mean entropy of N distributions, in nats.

    Args:
        p_NK: probabilities, each row sums to 1.

    Returns:
        Scalar from 0, when every row is one-hot, to ln K, when every row is uniform.
    """
    nats: Tensor = torch.special.entr(p_NK).sum(-1).mean()
    return nats


def rankme(z_ND: Tensor) -> Tensor:
    """Effective rank of embeddings, exp of their singular values' entropy (arXiv:2210.02885, eq. 1-2).

    Args:
        z_ND: embeddings; any float dtype.

    Returns:
        Scalar from 1, when all rows are multiples of one, to min(N, D), when all
        directions are equally strong; NaN where an embedding is not finite.
    """
    # singular values from the smaller of the two Gram matrices: cheaper than a decomposition of the rows
    z = z_ND.detach().double()
    gram = z.T @ z if len(z) > z.shape[1] else z @ z.T
    if not gram.isfinite().all():
        return torch.full((), torch.nan)
    sigma = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    p = sigma / sigma.sum().clamp(min=RANKME_EPSILON) + RANKME_EPSILON
    rank: Tensor = torch.special.entr(p).sum().exp().float()
    return rank


def spread(z_ND: Tensor) -> Tensor:
    """Standard deviation of the rows' directions, over that of directions spread evenly, 1 / sqrt(D).

    Args:
        z_ND: embeddings or projections; any scale, any float dtype.

    Returns:
        Scalar from 0, when all rows point the same way, to 1, when their directions' mean is zero.
    """
    unit_ND = F.normalize(z_ND.detach().float(), dim=1)
    # the variances of a direction's coordinates add up to 1 - |mean|^2
    return unit_ND.var(0, correction=0).sum().sqrt()


class EmbeddingWindow:
    """The newest embeddings of this process, batch by batch."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self._batches: deque[Tensor] = deque()

    def push(self, z_ND: Tensor) -> None:
        """Add a batch and drop what is older than the newest `n_rows` rows."""
        self._batches.append(z_ND.detach())
        while sum(map(len, self._batches)) - len(self._batches[0]) >= self.n_rows:
            self._batches.popleft()

    def __copy__(self) -> "EmbeddingWindow":
        """A window on the same batches that moves on by itself."""
        copied = EmbeddingWindow(self.n_rows)
        copied._batches = self._batches.copy()
        return copied

    def rows(self) -> Tensor:
        """The newest `n_rows` embeddings, oldest first, or fewer at the start."""
        device = self._batches[-1].device  # rows from a checkpoint may still be elsewhere
        return torch.cat([batch.to(device) for batch in self._batches])[-self.n_rows :]

    def state(self) -> Tensor:
        """The rows of all ranks, for a checkpoint, which rank 0 writes for all."""
        return gather(self.rows())

    def restore(self, state: Tensor) -> None:
        """Take up this rank's part of what `state` gave."""
        self.push(state.chunk(world_size())[rank()])


class FailureWatch:
    """Warns, once per kind and by name, of a failure whose sign has stayed for a while."""

    def __init__(self, *, patience: float) -> None:
        """Wait for `patience`, a share of training, before a failure is named."""
        self.patience = patience
        self._since: dict[str, float] = {}
        self._named: set[str] = set()

    def look(self, name: str, *, is_there: bool, evidence: str, progress: float) -> None:
        """Take note of whether a failure's sign is there at one moment of training.

        Args:
            name: of the failure, one of `ADVICE`.
            is_there: whether the sign shows; one look at which it does not starts the count again.
            evidence: what was measured, for the log.
            progress: share of training done, 0-1.
        """
        if not is_there:
            self._since.pop(name, None)
            return
        has_lasted = progress - self._since.setdefault(name, progress) >= self.patience
        if has_lasted and name not in self._named:
            self._named.add(name)
            share = 100 * self.patience
            logger.warning("%s: %s for %.0f %% of training: %s", name, evidence, share, ADVICE[name])


class CollapseWatch:
    """Tells by its entropies whether a teacher has collapsed."""

    def __init__(self, spec: MonitorSpec, *, max_entropy: float) -> None:
        """Watch a teacher whose entropy cannot exceed `max_entropy`, ln K in nats."""
        self.spec = spec
        self.max_entropy = max_entropy
        self._failures = FailureWatch(patience=spec.patience)

    def look(self, *, row_entropy: float, mean_entropy: float, progress: float) -> None:
        """Take note of the teacher at one moment of training.

        Args:
            row_entropy: mean entropy of its distributions; near ln K: uniform collapse.
            mean_entropy: entropy of its mean distribution over tiles; near 0, and with it the entropy of
                every row: one-hot collapse. A teacher that is sure of different things is not collapsed.
                Near the entropy of every row, whatever that is: constant collapse, since the difference of
                the two is what the teacher's word says of which tile it was.
            progress: share of training done, 0-1.
        """
        slack = self.spec.margin * self.max_entropy
        evidence = f"teacher entropy {row_entropy:.3f} nats of at most {self.max_entropy:.3f}"
        signs = {
            "uniform collapse": row_entropy > self.max_entropy - slack,
            "one-hot collapse": mean_entropy < slack,
        }
        signs["constant collapse"] = mean_entropy - row_entropy < slack and not any(signs.values())
        for name, is_there in signs.items():
            self._failures.look(name, is_there=is_there, evidence=evidence, progress=progress)
