"""Shares rows out over prototypes so that each prototype gets its part (Sinkhorn and Knopp's iteration).

N: rows of this rank; K: prototypes.
"""

import torch
from torch import Tensor

from histo_ssl.parallel.distributed import gather, rank


@torch.no_grad()
def sinkhorn(logits_NK: Tensor, *, n_iterations: int) -> Tensor:
    """Distributions of N rows over K prototypes under which all prototypes are used alike.

    SwAV's (arXiv:2006.09882, eq. 3, whose eps divides our logits before they come here). As in its appendix A
    and in DINOv2 (arXiv:2304.07193, section 4) a few iterations do; the last one makes rows sum to 1. Rows of
    all ranks are shared out together, so W ranks of N rows get what one rank of W * N rows gets.

    Args:
        logits_NK: float32, already divided by the temperature.
        n_iterations: how often columns and rows are normalised in turn, 1 or more.

    Returns:
        (N, K) without gradient. Rows sum to 1; columns tend to (all ranks' rows) / K. 1 / K everywhere when
        all rows are the same: a constant network learns nothing from its own targets.
    """
    log_q = gather(logits_NK)
    for _ in range(n_iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp().narrow(0, rank() * len(logits_NK), len(logits_NK))
