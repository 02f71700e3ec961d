"""What every model of bags is: one forward pass, and where it has one, a loss on single tiles.

N: tiles of all bags of a pack; B: bags; C: classes; D: features of a tile.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from histo_ssl.mil.packing import Packed


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model says of a pack.

    Args:
        logits_BC: float32; with one class, a risk.
        attention_N: scores before the softmax over the bag, one per tile; (N, C) where each class has its
            own; None where the model has none. They compare tiles of one bag only.
        hidden_ND: what the loss on tiles is made from; None where there is no such loss.
    """

    logits_BC: Tensor
    attention_N: Tensor | None
    hidden_ND: Tensor | None


class BagModel(nn.Module):
    """From a pack to logits. The loss of the bags is the caller's, for classes and for survival alike."""

    bag_weight: float = 1.0  # share of the bags' loss in the whole; the rest is the tiles'

    def forward(self, packed: Packed) -> Scored:
        """Logits and attention of each bag, which do not depend on what else is in the pack."""
        raise NotImplementedError

    def instance_loss(self, scored: Scored, packed: Packed, target_B: Tensor) -> Tensor | None:
        """The mean over bags of a loss on their tiles; None where the model has none.

        Args:
            scored: what `forward` said of `packed`.
            packed: the bags.
            target_B: true classes, int64, 0 to C - 1.
        """
        del scored, packed, target_B
        return None


class BagModelFactory(Protocol):
    """A YAML of `conf/task/models/`: builds one model per call, with fresh weights."""

    def __call__(self, *, dim: int, n_classes: int) -> BagModel:
        """A model of tiles with `dim` features; `n_classes` 1 is a risk."""


def whole_loss(bag_loss: Tensor, instance_loss: Tensor | None, *, bag_weight: float) -> Tensor:
    """What is minimised: `bag_weight` of the bags' loss and the rest of the tiles', or the bags' alone."""
    if instance_loss is None:
        return bag_loss
    return bag_weight * bag_loss + (1 - bag_weight) * instance_loss
