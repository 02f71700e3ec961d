"""Layer-wise adaptive rates for large batches (arXiv:1708.03888)."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from histo_ssl.parallel.sharding import norms


class LARS(Optimizer):
    """SGD with momentum whose steps have a length relative to each tensor's (algorithm 1).

    Groups that say `is_decayed: False`, those of biases and of BatchNorm, take plain steps of SGD, as in the
    codes of SimCLR and BYOL. There the norm under the ratio is that of gradient and decay together; here, as
    in eq. 6, it is the sum of both norms: with decays of 1e-6 no digit that matters differs.
    """

    def __init__(self, params: list[dict[str, Any]], *, momentum: float, trust: float) -> None:
        """Start with a learning rate and a decay of 0, which `OptimSpec.schedule` sets before each step.

        Args:
            params: parameter groups, such as those of `decay_groups`.
            momentum: share of the velocity that stays at each step, 0-1.
            trust: length of a step relative to its tensor's at a learning rate of 1 (eta of eq. 6).
        """
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; the closure's loss comes back."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)
        return loss

    def _move(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        update = p.grad.add(p, alpha=decay) if p.grad is not None else torch.zeros_like(p)
        if p.grad is not None and group.get("is_decayed", True):
            update *= _local_rate(p, p.grad, decay=decay, trust=group["trust"])
        velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
        velocity.mul_(group["momentum"]).add_(update, alpha=group["lr"])
        p.sub_(velocity)


def _local_rate(p: torch.Tensor, grad: torch.Tensor, *, decay: float, trust: float) -> torch.Tensor:
    """Eq. 6; 1 where a tensor or its gradient is all zeros, so that it can leave zero."""
    length, slope = norms([p, grad])
    both = slope + decay * length
    return torch.where((length > 0) & (both > 0), trust * length / both, 1.0)
