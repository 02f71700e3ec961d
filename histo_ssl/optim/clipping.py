"""Gradient clipping tensor by tensor."""

from collections.abc import Iterable

import torch
from torch import Tensor

EPSILON = 1e-6  # against a division by 0, as in torch's own clipping


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], *, max_norm: float) -> None:
    """Scale every parameter's gradient, each by itself, to an L2 norm of max_norm at most.

    torch and Lightning clip the norm of all gradients together; DINO clips one tensor at a time.

    Args:
        parameters: those without a gradient are left out.
        max_norm: > 0. With 1, gradients [3, 4] and [0.5] become [0.6, 0.8] and [0.5].
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    norms = torch.stack(torch._foreach_norm(grads))
    torch._foreach_mul_(grads, (max_norm / (norms + EPSILON)).clamp(max=1.0).unbind())
