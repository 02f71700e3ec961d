"""MoCo v3: a contrast of each view with the other views of the batch, without a queue (arXiv:2104.02057).

A ViT takes the paper's ViT form: fixed sin-cos positions, a frozen random patch projection, a projector of
three layers and a last BatchNorm in the predictor. Everything else takes its ResNet form: a projector of two
layers, no last BatchNorm in the predictor. The paper's ViT-S has 12 heads, `backbone=vit_s` has 6 as in DINO:
weights cannot be exchanged between them.

Where we differ from the paper's code: positions are laid out for the backbone's own grid, and resampled where
views are of another size.

B: tiles of this rank; W: ranks; C: outputs of the projector; D: features of the backbone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histo_ssl.backbones import BackboneFactory
from histo_ssl.backbones.vit import fix_positions, freeze_patches, is_vit
from histo_ssl.methods.heads import MlpSpec, Projected, mlp, n_features
from histo_ssl.methods.monitors import WatchSpec
from histo_ssl.methods.watched import WatchedMethod, pair_of
from histo_ssl.optim.ema import move_towards
from histo_ssl.optim.schedules import cosine
from histo_ssl.optim.spec import OptimSpec
from histo_ssl.parallel.distributed import gather, rank, world_size


def contrast(query_BC: Tensor, key_BC: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE of this rank's queries with their own keys among the keys of all ranks (algorithm 1).

    Args:
        query_BC: of one view; any scale, any float dtype.
        key_BC: of the other view of the same tiles; no gradient flows.
        temperature: divides the cosine similarities; > 0.

    Returns:
        Scalar, the mean over B, float32, multiplied by 2T as in the paper. 2T log(W B) when all vectors are
        the same.
    """
    query_BC = F.normalize(query_BC.float(), dim=1)
    keys_NC = gather(F.normalize(key_BC.detach().float(), dim=1))
    own_B = rank() * len(query_BC) + torch.arange(len(query_BC), device=query_BC.device)
    return 2.0 * temperature * F.cross_entropy(query_BC @ keys_NC.T / temperature, own_B)


class MoCoV3(WatchedMethod):
    """A predictor learns to say of each view what the backbone's moving average says of the other one."""

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        optim: OptimSpec,
        projector: MlpSpec,
        watch: WatchSpec,
        temperature: float,
        momentum: float,
        final_momentum: float,
    ) -> None:
        """Build the network, its predictor and its moving average with equal weights.

        Args:
            backbone: called twice; the moving average's has no drop path.
            optim: how network and predictor are optimised.
            projector: widths of the projector, and of the predictor.
            watch: when a failure is named.
            temperature: divides the cosine similarities; > 0.
            momentum: share of the moving average that stays at each step, at the start of training.
            final_momentum: the same at the end; a cosine leads there.
        """
        super().__init__(optim=optim, watch=watch)
        self.temperature = temperature
        self.momentum, self.final_momentum = momentum, final_momentum
        self.base = self._network(backbone(), projector)
        self.average = self._network(backbone(drop_path=0.0), projector)
        self.average.load_state_dict(self.base.state_dict())
        self.average.requires_grad_(False)
        c = projector.n_outputs
        last_norm = nn.BatchNorm1d(c, affine=False) if is_vit(self.base.backbone) else None
        self.predictor = mlp([c, projector.n_hidden, c], hidden_norm=True, last_norm=last_norm)

    def encoder(self) -> nn.Module:
        """The trained backbone, as in the paper's code."""
        return self.base.backbone

    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Loss of one batch, both ways; every `log_every` steps also the monitors."""
        first, second = pair_of(views)
        z_BD, p_BC = self.base(first)
        queries = [self.predictor(p_BC), self.predictor(self.base(second)[1])]
        with torch.no_grad():
            keys = [self.average(view)[1] for view in (second, first)]
        with torch.autocast(p_BC.device.type, enabled=False):
            one, other = (
                contrast(q, k, temperature=self.temperature) for q, k in zip(queries, keys, strict=True)
            )
        loss = one + other
        chance = torch.full_like(loss, 4.0 * self.temperature * math.log(world_size() * len(first)))
        return {"loss": loss, **self.look(z_BD, p_BC, loss=loss.detach(), chance=chance)}

    def after_step(self, progress: float) -> None:
        """Let the moving average follow by the momentum of the step that it is moved for, the next one."""
        super().after_step(progress)
        following = min(1.0, progress + 1.0 / self.total_steps)
        move_towards(self.average, self.base, momentum=self.momentum_at(following))

    def momentum_at(self, progress: float) -> float:
        """Share of the moving average that stays, at a share of training."""
        return cosine(self.momentum, self.final_momentum, progress=progress)

    def _network(self, backbone: nn.Module, projector: MlpSpec) -> Projected:
        n_hidden_layers = 1
        if is_vit(backbone):
            fix_positions(backbone)
            freeze_patches(backbone)
            n_hidden_layers = 2
        widths = [n_features(backbone), *n_hidden_layers * [projector.n_hidden], projector.n_outputs]
        last_norm = nn.BatchNorm1d(projector.n_outputs, affine=False)
        return Projected(backbone, mlp(widths, hidden_norm=True, last_norm=last_norm))
