"""The MLPs that stand on a backbone during pretraining and are thrown away after it.

N: rows; D: features of the backbone; C: outputs of the projector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """Widths of a projector or predictor; a method knows its number of layers.

    Args:
        n_hidden: width of every hidden layer.
        n_outputs: C.
    """

    n_hidden: int
    n_outputs: int


def mlp(widths: Sequence[int], *, hidden_norm: bool, last_norm: nn.Module | None) -> nn.Sequential:
    """Linear layers with ReLUs between them; a layer that a BatchNorm follows has no bias.

    Args:
        widths: of the input, every hidden layer and the output.
        hidden_norm: put a BatchNorm before each ReLU.
        last_norm: what follows the last layer.
    """
    *hidden, (n_in, n_out) = pairwise(widths)
    layers: list[nn.Module] = []
    for n_from, n_to in hidden:
        layers.append(nn.Linear(n_from, n_to, bias=not hidden_norm))
        layers += [nn.BatchNorm1d(n_to), nn.ReLU()] if hidden_norm else [nn.ReLU()]
    layers.append(nn.Linear(n_in, n_out, bias=last_norm is None))
    return nn.Sequential(*layers, *([] if last_norm is None else [last_norm]))


def n_features(backbone: nn.Module) -> int:
    """D, as every backbone says it."""
    return cast(int, backbone.num_features)


class Projected(nn.Module):
    """A backbone with its projector."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and projections (N, C) of views (N, 3, s, s)."""
        z_ND = self.backbone(x)
        return z_ND, self.projector(z_ND)
