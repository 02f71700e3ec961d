"""Models that pool a bag's tiles and classify the result (arXiv:1802.04712): by mean, maximum or attention.

All pool embeddings, not predictions of single tiles: `mean` and `max` are the paper's "Embedding+mean" and
"Embedding+max", behind the same layer as CLAM's, so that the ways of pooling differ in nothing else. Where we
differ from the paper: V, U and w of the attention have biases, as in CLAM's code.

B: bags; C: classes; H: hidden features.
"""

from torch import Tensor, nn

from histo_ssl.mil.base import BagModel, Scored
from histo_ssl.mil.layers import GatedAttention, Trunk, attend, initialise, linear_in_full
from histo_ssl.mil.packing import Packed, at_least_single, segment_max, segment_mean


class _Pooling(BagModel):
    """A layer on each tile, a pooling that has no weights, a linear classifier."""

    def __init__(self, *, dim: int, n_classes: int, n_hidden: int, dropout: float) -> None:
        """Build both layers.

        Args:
            dim: features of a tile.
            n_classes: C; 1 for a risk.
            n_hidden: H.
            dropout: share of hidden units, 0-1.
        """
        super().__init__()
        self.trunk = Trunk(dim=dim, n_hidden=n_hidden, dropout=dropout)
        self.classifier = nn.Linear(n_hidden, n_classes)
        initialise(self)

    def forward(self, packed: Packed) -> Scored:
        """Logits, without attention."""
        z_BH = self.pool(at_least_single(self.trunk(packed)), packed)
        logits_BC = linear_in_full(z_BH, self.classifier)
        return Scored(logits_BC=logits_BC, attention_N=None, hidden_ND=None)

    def pool(self, h_NH: Tensor, packed: Packed) -> Tensor:
        """One row per bag, (B, H)."""
        raise NotImplementedError


class MeanPooling(_Pooling):
    """Every tile counts the same."""

    def pool(self, h_NH: Tensor, packed: Packed) -> Tensor:
        """The mean over each bag's tiles."""
        return segment_mean(h_NH, packed=packed)


class MaxPooling(_Pooling):
    """Every hidden feature comes from the tile that has most of it."""

    def pool(self, h_NH: Tensor, packed: Packed) -> Tensor:
        """The maximum over each bag's tiles, feature by feature."""
        return segment_max(h_NH, packed=packed)


class AbMil(BagModel):
    """Gated attention says how much each tile counts (section 2.4)."""

    def __init__(self, *, dim: int, n_classes: int, n_hidden: int, n_attention: int, dropout: float) -> None:
        """Build trunk, attention and classifier.

        Args:
            dim: features of a tile.
            n_classes: C; 1 for a risk.
            n_hidden: H.
            n_attention: width of the attention.
            dropout: share of hidden units, and of the attention's, 0-1.
        """
        super().__init__()
        self.trunk = Trunk(dim=dim, n_hidden=n_hidden, dropout=dropout)
        self.attention = GatedAttention(
            n_hidden=n_hidden, n_attention=n_attention, n_columns=1, dropout=dropout
        )
        self.classifier = nn.Linear(n_hidden, n_classes)
        initialise(self)

    def forward(self, packed: Packed) -> Scored:
        """Logits and one score per tile."""
        h_NH = self.trunk(packed)
        scores_N1 = self.attention(h_NH)
        z_BH = attend(h_NH, scores_N1, packed=packed)[:, 0]
        logits_BC = linear_in_full(z_BH, self.classifier)
        return Scored(logits_BC=logits_BC, attention_N=scores_N1[:, 0], hidden_ND=None)
