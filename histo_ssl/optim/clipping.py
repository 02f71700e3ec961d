"""Gradient clipping tensor by tensor."""

from collections.abc import Iterable

import torch
from torch import Tensor

from histo_ssl.parallel.sharding import locals_of, norms

EPSILON = 1e-6  # against a division by 0, as in torch's own clipping


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], *, max_norm: float | None) -> Tensor:
    """Scale every parameter's gradient, each by itself, to an L2 norm of max_norm at most.

    torch and Lightning clip the norm of all gradients together; DINO clips one tensor at a time.

    Args:
        parameters: those without a gradient are left out.
        max_norm: > 0. With 1, gradients [3, 4] and [0.5] become [0.6, 0.8] and [0.5]. None: no clipping.

    Returns:
        Scalar, the largest norm before clipping: 5 for the gradients above, 0 where there is none, and not
        finite as soon as one gradient is not.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    sizes = norms(grads)
    if max_norm is not None:
        torch._foreach_mul_(locals_of(grads), (max_norm / (sizes + EPSILON)).clamp(max=1.0).unbind())
    return sizes.max()
