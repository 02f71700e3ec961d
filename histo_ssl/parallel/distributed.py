"""Sums and gathers over the ranks of a run; on one process they hand back what they were given.

A rank is known once the process group stands, that is inside `trainer.fit`; before that every process
answers as rank 0 of 1.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Number of this process, 0 on a single one."""
    return dist.get_rank() if _is_on() else 0


def world_size() -> int:
    """Number of processes that train together, 1 on a single one."""
    return dist.get_world_size() if _is_on() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of every rank's tensor, the same on all ranks; no gradient flows.

    Args:
        x: any shape, the same on every rank; it is left as it is.

    Returns:
        The shape of x. Two ranks that hold 1 and 2 both receive 3.
    """
    total = x.detach()
    if world_size() > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean of every rank's tensor, the same on all ranks; no gradient flows.

    Args:
        x: any shape, floating point, the same shape on every rank.

    Returns:
        The shape of x. Two ranks that hold 1 and 2 both receive 1.5.
    """
    return all_reduce_sum(x) / world_size()


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with the gradient of every rank's loss flowing back to them.

    The backward pass sums over ranks, so that W ranks of B tiles give the gradient of one rank of W * B.
    A data-parallel mean over ranks then divides it by W: scale a loss over gathered rows to match.

    Args:
        x: (B, ...), B the same on every rank.

    Returns:
        (W * B, ...). Ranks that hold [1] and [2] both receive [1, 2].
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def gather_objects(x: T) -> list[T]:
    """Every rank's small picklable object, in rank order; for what happens rarely."""
    if world_size() == 1:
        return [x]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, x)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.n_rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = all_reduce_sum(grads[0].contiguous())
        return total.narrow(0, rank() * ctx.n_rows, ctx.n_rows)


def _is_on() -> bool:
    return dist.is_available() and dist.is_initialized()
