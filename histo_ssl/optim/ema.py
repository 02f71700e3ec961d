"""Exponential moving average of one module's parameters in another's."""

import torch
from torch import nn

from histo_ssl.parallel.sharding import locals_of


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, *, momentum: float) -> None:
    """Set each parameter of the target to momentum * target + (1 - momentum) * source, in one fused call.

    Buffers stay: a target with BatchNorm keeps the statistics of what it has seen itself.

    Args:
        target: the module that moves, such as a teacher.
        source: a module with the same parameters in the same order, such as its student.
        momentum: share that stays, 0-1. With 0.9 a parameter at 1 moves to 1.1 when its source is at 2.
    """
    moved, towards = locals_of(target.parameters()), locals_of(source.parameters())
    torch._foreach_lerp_(moved, towards, 1.0 - momentum)
