"""Whose statistics a BatchNorm takes: those of all ranks together, or those of a few tiles at a time.

torch's layer takes those of one process, so that its result depends on how a batch is shared out. On several
ranks the base class replaces every one of them. Parameters and buffers stay the same under the same names.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from histo_ssl.parallel.distributed import all_reduce_mean, gather, world_size


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over the rows of all ranks: what `nn.SyncBatchNorm` does, which refuses to run on CPUs."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions, channels second."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...), B the same on every rank; running statistics see the rows of all."""
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        var_C, mean_C = torch.var_mean(x.float(), dims, correction=0)
        mean_WC, var_WC = gather(torch.stack([mean_C, var_C])[None]).unbind(1)
        mean_C = mean_WC.mean(0)
        var_C = (var_WC + (mean_WC - mean_C).square()).mean(0)  # within ranks, and between them
        n = world_size() * x.numel() // x.shape[1]
        _follow(self, mean_C.detach(), var_C.detach() * n / (n - 1))
        scale_C = torch.rsqrt(var_C + self.eps) * (1.0 if self.weight is None else self.weight)
        shift_C = (0.0 if self.bias is None else self.bias) - mean_C * scale_C
        shape = [1, -1] + [1] * (x.ndim - 2)
        return (x * scale_C.view(shape) + shift_C.view(shape)).to(x.dtype)


class GhostBatchNorm(_BatchNorm):
    """BatchNorm over each `n_tiles` neighbouring rows by themselves (arXiv:1705.08741, algorithm 1).

    The same on one rank as on many whose batches are multiples of `n_tiles`: groups never reach across ranks,
    and running statistics take the mean over all ranks' groups.
    """

    def __init__(self, n_channels: int, *, n_tiles: int, **options: Any) -> None:
        super().__init__(n_channels, **options)
        self.n_tiles = n_tiles

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions, channels second."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) group by group.

        Raises:
            ValueError: B is no multiple of the group in training.
        """
        if not self.training:
            return super().forward(x)
        if len(x) % self.n_tiles:
            raise ValueError(
                f"method.norm_tiles={self.n_tiles} does not divide the {len(x)} tiles that a rank sees at a "
                f"time: choose a divisor of {len(x)}, or null for statistics over all tiles"
            )
        groups = torch.split(x, self.n_tiles)
        moments_G2C = torch.zeros(len(groups), 2, x.shape[1], device=x.device)
        y = [self._normalised(group, *moments) for group, moments in zip(groups, moments_G2C, strict=True)]
        _follow(self, *all_reduce_mean(moments_G2C.mean(0)))
        return torch.cat(y)

    def _normalised(self, x: Tensor, mean_C: Tensor, var_C: Tensor) -> Tensor:
        # a momentum of 1 leaves the group's own statistics in what else are running ones
        return F.batch_norm(
            x, mean_C, var_C, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps
        )


def synchronise(module: nn.Module, *, device_type: str) -> None:
    """Give every plain BatchNorm inside of a module the statistics of all ranks, in place."""

    def global_twin(norm: _BatchNorm) -> _BatchNorm:
        kind = nn.SyncBatchNorm if device_type == "cuda" else GlobalBatchNorm  # torch's is fused
        return kind(norm.num_features, **_options(norm))

    _replace(module, global_twin)


def split(module: nn.Module, *, n_tiles: int) -> None:
    """Give every plain BatchNorm inside of a module the statistics of `n_tiles` rows at a time, in place."""
    _replace(module, lambda norm: GhostBatchNorm(norm.num_features, n_tiles=n_tiles, **_options(norm)))


def check_batch(module: nn.Module, *, n_tiles: int) -> None:
    """Stop at a single tile where there is a BatchNorm: there is nothing to normalise it against.

    Args:
        module: a method.
        n_tiles: that it sees at a time, over all ranks.

    Raises:
        ValueError: one tile, and a BatchNorm.
    """
    if n_tiles == 1 and has_batch_norm(module):
        raise ValueError(
            "training.batch_size: BatchNorm needs 2 tiles at a time or more, got 1: raise it, or lower "
            "trainer.accumulate_grad_batches"
        )


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any BatchNorm is inside."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _options(norm: _BatchNorm) -> dict[str, Any]:
    return {
        "eps": norm.eps,
        "momentum": norm.momentum,
        "affine": norm.affine,
        "track_running_stats": norm.track_running_stats,
    }


def _replace(module: nn.Module, twin: Callable[[_BatchNorm], _BatchNorm]) -> None:
    for name, child in module.named_children():
        if isinstance(child, GlobalBatchNorm | GhostBatchNorm | nn.SyncBatchNorm):
            continue
        if isinstance(child, _BatchNorm):
            setattr(module, name, _dressed(twin(child), child))
        else:
            _replace(child, twin)


def _dressed(new: _BatchNorm, old: _BatchNorm) -> _BatchNorm:
    """The new layer with the old one's tensors, and with what timm's BatchNorms do after normalising."""
    new.weight, new.bias = old.weight, old.bias
    for name, buffer in old.named_buffers(recurse=False):
        setattr(new, name, buffer)
    drop, act = getattr(old, "drop", None), getattr(old, "act", None)
    if drop is not None and act is not None:
        new.register_forward_hook(lambda _, __, x: act(drop(x)))
    return new.train(old.training)


@torch.no_grad()
def _follow(norm: _BatchNorm, mean_C: Tensor, var_C: Tensor) -> None:
    """Move running statistics as torch does, towards a mean and an unbiased variance."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    # None: the mean over all batches
    share = 1.0 / norm.num_batches_tracked.float() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean_C, share)
    norm.running_var.lerp_(var_C, share)
