"""What the models of bags are built from: how weights begin, units that are dropped, gated attention.

N: tiles of all bags of a pack; B: bags; D: features of a tile; H: hidden features; L: width of the attention;
A: columns of attention scores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histo_ssl.mil.dropout import Dropout
from histo_ssl.mil.packing import Packed, at_least_single, segment_softmax, weighted_sum


def initialise(module: nn.Module) -> None:
    """Weights of all linear layers from Xavier's normal distribution, biases 0, as CLAM's code begins."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Trunk(nn.Module):
    """Tiles one by one: (N, D) to (N, H) by a linear layer, ReLU and dropout."""

    def __init__(self, *, dim: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, n_hidden)
        self.dropout = Dropout(dropout)

    def forward(self, packed: Packed) -> Tensor:
        """Hidden features; embeddings are lifted from the dtype they are stored in to that of the layer."""
        x_ND = as_input(packed.features_ND, like=self.linear.weight)
        return F.relu_(self.dropout(self.linear(x_ND)))  # in this order both work in place, to the same end


def as_input(features_ND: Tensor, *, like: Tensor) -> Tensor:
    """Embeddings in the dtype that a layer computes in: under autocast, not its weight's."""
    device = features_ND.device.type
    if torch.is_autocast_enabled(device):
        return features_ND.to(torch.get_autocast_dtype(device))
    return features_ND.to(like.dtype)


class GatedAttention(nn.Module):
    """Scores of tiles, w^T (tanh(V h) * sigmoid(U h)) before the softmax (arXiv:1802.04712, eq. 9).

    With biases, and dropout on both factors, as CLAM's code has it.
    """

    def __init__(self, *, n_hidden: int, n_attention: int, n_columns: int, dropout: float) -> None:
        """Build the three layers.

        Args:
            n_hidden: H.
            n_attention: L.
            n_columns: A; 1, or one for each class.
            dropout: share of units of either factor, 0-1.
        """
        super().__init__()
        self.V = nn.Linear(n_hidden, n_attention)
        self.U = nn.Linear(n_hidden, n_attention)
        self.w = nn.Linear(n_attention, n_columns)
        self.dropout = Dropout(1 - (1 - dropout) ** 2)  # a product stays where both of its factors stay

    def forward(self, h_NH: Tensor) -> Tensor:
        """Scores (N, A), not in half precision: tiles are ranked by them."""
        weight = torch.cat([self.V.weight, self.U.weight])  # one product with both is faster than two
        value_NL, gate_NL = F.linear(h_NH, weight, torch.cat([self.V.bias, self.U.bias])).chunk(2, dim=1)
        return linear_in_full(self.dropout(value_NL.tanh() * gate_NL.sigmoid()), self.w)


def linear_in_full(x: Tensor, layer: nn.Module) -> Tensor:
    """What a small last layer makes of x, never in half precision: scores are ranked, and must not tie."""
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = layer(at_least_single(x))
    return y


def attend(h_NH: Tensor, scores_NA: Tensor, *, packed: Packed) -> Tensor:
    """Means of each bag's tiles, (B, A, H), weighted by softmaxed scores (arXiv:1802.04712, eq. 7)."""
    weight_NA = segment_softmax(scores_NA, packed=packed)
    return weighted_sum(h_NH.to(weight_NA.dtype), weight_NA, packed=packed)
