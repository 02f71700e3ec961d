"""Models of the torchmil library behind the seam of our own; `pip install 'histo-ssl[mil]'` brings it.

torchmil's models predict one logit of a padded batch. Here their last layers are replaced by ones for C
classes, and every bag of a pack goes through on its own, since landmarks and paddings mix bags otherwise.

N: tiles of all bags of a pack; M: tiles of one bag; B: bags; C: classes; D: features of a tile.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histo_ssl.mil.base import BagModel, Scored
from histo_ssl.mil.layers import as_input, linear_in_full
from histo_ssl.mil.packing import Packed, segment_max


def _torchmil() -> Any:
    """The models of torchmil.

    Raises:
        ValueError: it is not installed; says how it is.
    """
    try:
        return importlib.import_module("torchmil.models")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this model is torchmil's, and the module {error.name!r} is not installed: pip install "
            "'histo-ssl[mil]', or choose among task/models=[mean,max,abmil,clam_sb,clam_mb]"
        ) from error


class InFull(nn.Module):
    """A layer that computes in float32 at least, under autocast too: logits are ranked, and must not tie."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of x."""
        return linear_in_full(x, self.layer)


def _one_by_one(
    packed: Packed, model: nn.Module, call: Callable[[Tensor], tuple[Tensor, ...]]
) -> list[Tensor]:
    """Each of a model's outputs of the bags, (1, M_b, D) each, end to end."""
    x_ND = as_input(packed.features_ND, like=next(model.parameters()))
    bags = torch.split(x_ND, packed.n_tiles_B.tolist())
    outputs = [call(x_MD[None]) for x_MD in bags]
    return [torch.cat(of_bags) for of_bags in zip(*outputs, strict=True)]


class TransMil(BagModel):
    """TransMIL: tiles attend to each other through landmarks (arXiv:2106.00908, algorithm 2).

    It depends on the order of tiles, which its convolutions take for places in a square: keep the one they
    were cut in. It has no attention per tile: torchmil's would need M x M numbers for each head. Where
    torchmil differs from the authors' code: no convolution of the values beside the attention, no dropout.
    """

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        n_landmarks: int,
        n_inverse_steps: int,
    ) -> None:
        """Build the model of torchmil, with the ReLU after its first layer that it lacks.

        Args:
            dim: D.
            n_classes: C; 1 for a risk.
            n_hidden: width of all layers; a multiple of `n_heads`.
            n_layers: 2 or more, the convolutions come after the first.
            n_heads: of each layer's attention.
            n_landmarks: tiles' means that stand for all tiles.
            n_inverse_steps: of the iteration towards the pseudo-inverse.
        """
        super().__init__()
        self.model = _torchmil().TransMIL(
            in_shape=(dim,),
            feat_ext=nn.Sequential(nn.Linear(dim, n_hidden), nn.ReLU()),
            att_dim=n_hidden,
            n_layers=n_layers,
            n_heads=n_heads,
            n_landmarks=n_landmarks,
            pinv_iterations=n_inverse_steps,
        )
        for layer in self.model.layers:
            layer.norm2 = nn.Identity()  # made for an MLP that is not there
        self.model.classifier = InFull(nn.Linear(n_hidden, n_classes))

    def forward(self, packed: Packed) -> Scored:
        """Logits, without attention."""

        def logits(x_1MD: Tensor) -> tuple[Tensor, ...]:
            return (self.model(x_1MD).view(1, -1),)

        (logits_BC,) = _one_by_one(packed, self, logits)
        return Scored(logits_BC=logits_BC, attention_N=None, hidden_ND=None)


class DsMil(BagModel):
    """DSMIL: each class's most telling tile asks the others how alike they are (arXiv:2011.08939, eq. 1-6).

    The bag's logits are the second stream's; the loss on tiles is the first stream's, a cross-entropy of the
    maximum over tiles. `hidden_ND` of what it says are the tiles' logits (N, C).
    """

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        n_attention: int,
        nonlinear_query: bool,
        nonlinear_value: bool,
        dropout: float,
        bag_weight: float,
    ) -> None:
        """Build the model of torchmil, with the authors' last layers for several classes.

        Args:
            dim: D.
            n_classes: C; 1 for a risk, which knows no loss on tiles.
            n_attention: width of the queries.
            nonlinear_query: queries come from two layers with ReLU and tanh; else from a linear one.
            nonlinear_value: values come from a layer with ReLU; else they are the embeddings.
            dropout: share of the embeddings that such values are made of, 0-1.
            bag_weight: share of the second stream's loss, 0-1.
        """
        super().__init__()
        self.n_classes, self.bag_weight = n_classes, bag_weight
        self.model = _torchmil().DSMIL(
            in_shape=(dim,),
            att_dim=n_attention,
            nonlinear_q=nonlinear_query,
            nonlinear_v=nonlinear_value,
            dropout=dropout,
        )
        self.model.inst_classifier = InFull(nn.Linear(dim, n_classes))
        self.model.bag_classifier = InFull(nn.Conv1d(n_classes, n_classes, kernel_size=dim))

    def forward(self, packed: Packed) -> Scored:
        """Logits, and the logarithm of each class's attention, whose softmax it is."""

        def streams(x_1MD: Tensor) -> tuple[Tensor, ...]:
            logits, weights_1MC, tiles = self.model(x_1MD, return_att=True, return_inst_pred=True)
            tiny = torch.finfo(weights_1MC.dtype).tiny
            logits_1C, tiles_MC = logits.view(1, -1), tiles.view(-1, self.n_classes)
            return logits_1C, weights_1MC[0].clamp(min=tiny).log(), tiles_MC

        logits_BC, attention_NC, tiles_NC = _one_by_one(packed, self, streams)
        attention_N = attention_NC if self.n_classes > 1 else attention_NC[:, 0]
        return Scored(logits_BC=logits_BC, attention_N=attention_N, hidden_ND=tiles_NC)

    def instance_loss(self, scored: Scored, packed: Packed, target_B: Tensor) -> Tensor | None:
        """Cross-entropy of each class's highest tile, the mean over bags; None for a risk."""
        if self.n_classes == 1:
            return None
        assert scored.hidden_ND is not None
        return F.cross_entropy(segment_max(scored.hidden_ND, packed=packed), target_B)
