"""CLAM: attention, and a loss on the tiles that it finds most and least telling (arXiv:2004.09666).

As in the authors' code: `subtyping` says that classes exclude each other, the tiles are chosen by attention
without a gradient through the choice, and what is classified of them are hidden features with their dropout.
Where we differ: a step may hold several bags, whose losses are averaged; a bag of fewer than 2n tiles gives
half of them to either side, where the code fails or takes a tile as both.

N: tiles of all bags of a pack; B: bags; C: classes; H: hidden features; A: columns of attention, 1 or C;
K: chosen tiles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histo_ssl.mil.base import BagModel, Scored
from histo_ssl.mil.layers import GatedAttention, Trunk, attend, initialise, linear_in_full
from histo_ssl.mil.packing import Packed, extremes


def smooth_top1_svm(logits: Tensor, target: Tensor) -> Tensor:
    """Smooth top-1 SVM loss with temperature and margin 1 (arXiv:1802.07595, the smooth loss with k = 1).

    The cross-entropy of logits in which every wrong class has 1 more.

    Args:
        logits: (..., C).
        target: (...) int64, 0 to C - 1.

    Returns:
        (...) in nats. With two classes, softplus(other - true + 1): log(1 + e) where both are the same.
    """
    wrong = 1 - F.one_hot(target, logits.shape[-1])
    true = logits.gather(-1, target[..., None])[..., 0]
    return (logits + wrong).logsumexp(-1) - true


class ClamSb(BagModel):
    """CLAM with one branch of attention for all classes."""

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        n_hidden: int,
        n_attention: int,
        dropout: float,
        n_instances: int,
        subtyping: bool,
        bag_weight: float,
    ) -> None:
        """Build trunk, attention and all classifiers.

        Args:
            dim: features of a tile.
            n_classes: C; 1 for a risk, which knows no loss on tiles.
            n_hidden: H.
            n_attention: width of the attention.
            dropout: share of hidden units, and of either factor of the attention, 0-1.
            n_instances: tiles of a bag that are taken as telling, and as many as not; the paper's B.
            subtyping: classes exclude each other: the telling tiles are none of another class.
            bag_weight: share of the bags' loss in the whole, 0-1.
        """
        super().__init__()
        self.n_classes, self.n_instances = n_classes, n_instances
        self.subtyping, self.bag_weight = subtyping, bag_weight
        self.trunk = Trunk(dim=dim, n_hidden=n_hidden, dropout=dropout)
        self.attention = GatedAttention(
            n_hidden=n_hidden, n_attention=n_attention, n_columns=self.n_columns(n_classes), dropout=dropout
        )
        self.classifiers = self.bag_classifiers(n_hidden, n_classes)
        n_instance_classifiers = n_classes if n_classes > 1 else 0
        self.instance_classifiers = nn.ModuleList(
            nn.Linear(n_hidden, 2) for _ in range(n_instance_classifiers)
        )
        initialise(self)

    @staticmethod
    def n_columns(n_classes: int) -> int:
        """Columns of attention for so many classes."""
        del n_classes
        return 1

    @staticmethod
    def bag_classifiers(n_hidden: int, n_classes: int) -> nn.ModuleList:
        """One linear layer for all classes."""
        return nn.ModuleList([nn.Linear(n_hidden, n_classes)])

    def forward(self, packed: Packed) -> Scored:
        """Logits, scores (N,) or (N, C), and hidden features."""
        h_NH = self.trunk(packed)
        scores_NA = self.attention(h_NH)
        z_BAH = attend(h_NH, scores_NA, packed=packed)
        logits = [linear_in_full(z_BAH[:, a], classify) for a, classify in enumerate(self.classifiers)]
        attention_N = scores_NA if len(self.classifiers) > 1 else scores_NA[:, 0]
        return Scored(logits_BC=torch.cat(logits, dim=1), attention_N=attention_N, hidden_ND=h_NH)

    def instance_loss(self, scored: Scored, packed: Packed, target_B: Tensor) -> Tensor | None:
        """Mean over bags of the loss on their tiles; None for a risk.

        The classifier of the true class has to call the most attended tiles 1 and the least attended 0; with
        `subtyping`, every other classifier has to call the most attended 0, and the sum over classifiers is
        divided by their number.

        Args:
            scored: what `forward` said of `packed`.
            packed: the bags.
            target_B: true classes, int64, 0 to C - 1.
        """
        if self.n_classes == 1:
            return None
        assert scored.attention_N is not None
        assert scored.hidden_ND is not None
        scores_NA = scored.attention_N.reshape(len(scored.hidden_ND), -1)
        chosen = extremes(scores_NA, packed=packed, n=self.n_instances)
        logits_KC2 = self._instance_logits(scored.hidden_ND, chosen.rows_KA)
        is_true_KC = F.one_hot(target_B, self.n_classes).bool()[chosen.bag_K]
        is_top_K1 = chosen.is_top_K[:, None]
        loss_KC = smooth_top1_svm(logits_KC2, (is_true_KC & is_top_K1).long())
        counts_KC = is_true_KC | is_top_K1 if self.subtyping else is_true_KC
        n_BC = loss_KC.new_zeros(packed.n_bags, self.n_classes).index_add(
            0, chosen.bag_K, counts_KC.to(loss_KC)
        )
        shares_KC = counts_KC / n_BC.clamp(min=1)[chosen.bag_K]
        return (loss_KC * shares_KC).sum() / packed.n_bags / (self.n_classes if self.subtyping else 1)

    def _instance_logits(self, h_NH: Tensor, rows_KA: Tensor) -> Tensor:
        """What every instance classifier says of the tiles that were chosen for its class, (K, C, 2)."""
        h_KAH = h_NH.index_select(0, rows_KA.flatten()).view(*rows_KA.shape, -1)
        columns = h_KAH.expand(-1, self.n_classes, -1).unbind(1)
        pairs = zip(columns, self.instance_classifiers, strict=True)
        return torch.stack([linear_in_full(h_KH, classify) for h_KH, classify in pairs], dim=1)


class ClamMb(ClamSb):
    """CLAM with a branch of attention for each class, and a classifier for what each branch sees."""

    @staticmethod
    def n_columns(n_classes: int) -> int:
        """One column for each class."""
        return n_classes

    @staticmethod
    def bag_classifiers(n_hidden: int, n_classes: int) -> nn.ModuleList:
        """One linear layer with one output for each class."""
        return nn.ModuleList(nn.Linear(n_hidden, 1) for _ in range(n_classes))
