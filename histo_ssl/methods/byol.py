"""BYOL: a network predicts what its moving average says of another view (arXiv:2006.07733).

B: tiles of this rank; C: outputs of the projector; D: features of the backbone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histo_ssl.backbones import BackboneFactory
from histo_ssl.methods.heads import MlpSpec, Projected, mlp, n_features
from histo_ssl.methods.monitors import WatchSpec
from histo_ssl.methods.watched import WatchedMethod, pair_of
from histo_ssl.optim.ema import move_towards
from histo_ssl.optim.schedules import cosine
from histo_ssl.optim.spec import OptimSpec


def byol_loss(prediction_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Mean squared distance of unit vectors (eq. 2).

    Args:
        prediction_BC: of one view; any scale, any float dtype.
        target_BC: projections of the other view of the same tiles; no gradient flows.

    Returns:
        Scalar, the mean over B, float32: 2 - 2 cos, 0 where both agree, 2 where they have nothing in common.
    """
    difference = F.normalize(prediction_BC.float(), dim=1) - F.normalize(target_BC.detach().float(), dim=1)
    return difference.square().sum(1).mean()


class BYOL(WatchedMethod):
    """An online network learns to predict its own moving average, the target, on another view."""

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        optim: OptimSpec,
        projector: MlpSpec,
        watch: WatchSpec,
        momentum: float,
        final_momentum: float,
    ) -> None:
        """Build the online network, its predictor and the target with equal weights.

        Args:
            backbone: called twice; the target's has no drop path.
            optim: how the online network and its predictor are optimised.
            projector: widths of the projector, and of the predictor.
            watch: when a failure is named.
            momentum: share of the target that stays at each step, at the start of training.
            final_momentum: the same at the end; a cosine leads there (section 3.2).
        """
        super().__init__(optim=optim, watch=watch)
        self.momentum, self.final_momentum = momentum, final_momentum
        self.online = self._network(backbone(), projector)
        self.target = self._network(backbone(drop_path=0.0), projector)
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        c = projector.n_outputs
        self.predictor = mlp([c, projector.n_hidden, c], hidden_norm=True, last_norm=None)

    def encoder(self) -> nn.Module:
        """The online network's backbone (section 3.1)."""
        return self.online.backbone

    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Loss of one batch, both ways; every `log_every` steps also the monitors."""
        first, second = pair_of(views)
        z_BD, p_BC = self.online(first)
        predictions = self.predictor(p_BC), self.predictor(self.online(second)[1])
        with torch.no_grad():
            targets = self.target(second)[1], self.target(first)[1]
        with torch.autocast(p_BC.device.type, enabled=False):
            one, other = map(byol_loss, predictions, targets)
        return {"loss": one + other, **self.look(z_BD, p_BC)}

    def after_step(self, progress: float) -> None:
        """Let the target follow."""
        super().after_step(progress)
        momentum = cosine(self.momentum, self.final_momentum, progress=progress)
        move_towards(self.target, self.online, momentum=momentum)

    def _network(self, backbone: nn.Module, projector: MlpSpec) -> Projected:
        n_in = n_features(backbone)
        widths = [n_in, projector.n_hidden, projector.n_outputs]
        return Projected(backbone, mlp(widths, hidden_norm=True, last_norm=None))
