"""SimCLR: a contrast between all views of all tiles (arXiv:2002.05709).

Where we differ from the paper's code: the loss is the mean over all views, as in the paper's algorithm 1 and
in most ports, while the code adds the means of both directions. A learning rate of the code's therefore acts
as half of itself where a step is proportional to the gradient (SGD; with LARS, biases and BatchNorm alone),
and as itself where it is not (LARS' other tensors, AdamW). The projector's last BatchNorm has a shift, too.

B: tiles of this rank; W: ranks; C: outputs of the projector; N: all views, 2 * W * B; M: those of this rank,
2 * B.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histo_ssl.backbones import BackboneFactory
from histo_ssl.methods.heads import MlpSpec, Projected, mlp, n_features
from histo_ssl.methods.monitors import WatchSpec
from histo_ssl.methods.watched import WatchedMethod, pair_of
from histo_ssl.optim.spec import OptimSpec
from histo_ssl.parallel.distributed import gather, rank, world_size


def nt_xent(z_BC: Tensor, w_BC: Tensor, *, temperature: float) -> Tensor:
    """SimCLR's contrastive loss of this rank's views against those of all ranks (eq. 1).

    The mean of all ranks' losses is the loss of the whole batch, and since the gradient of every rank's loss
    flows back through the gather, the mean of their gradients is its gradient.

    Args:
        z_BC: projections of the first view of B tiles; any scale, any float dtype.
        w_BC: projections of the second view; row i is the same tile as row i of z_BC.
        temperature: divides the cosine similarities; > 0, no unit.

    Returns:
        Scalar in nats, float32, the mean over this rank's 2B views. log(2 W B - 1) when every projection is
        the same.
    """
    first_BC, second_BC = (F.normalize(x.float(), dim=1) for x in (z_BC, w_BC))
    all_NC = torch.cat([gather(first_BC), gather(second_BC)])
    n_tiles = len(all_NC) // 2
    first_B = rank() * len(z_BC) + torch.arange(len(z_BC), device=z_BC.device)  # places of this rank's views
    second_B = first_B + n_tiles
    logits_MN = torch.cat([first_BC, second_BC]) @ all_NC.T / temperature
    itself_M1 = torch.cat([first_B, second_B])[:, None]
    logits_MN = logits_MN.scatter(1, itself_M1, -math.inf)
    return F.cross_entropy(logits_MN, torch.cat([second_B, first_B]))


class SimCLR(WatchedMethod):
    """A backbone learns to recognise a tile's other view among all views of the batch."""

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        optim: OptimSpec,
        projector: MlpSpec,
        watch: WatchSpec,
        temperature: float,
    ) -> None:
        """Build the backbone and its projector, two layers each with a BatchNorm.

        Args:
            backbone: called once.
            optim: how both are optimised.
            projector: its widths.
            watch: when a failure is named.
            temperature: divides the cosine similarities; > 0.
        """
        super().__init__(optim=optim, watch=watch)
        self.temperature = temperature
        encoder = backbone()
        widths = [n_features(encoder), projector.n_hidden, projector.n_outputs]
        last_norm = nn.BatchNorm1d(projector.n_outputs)
        self.network = Projected(encoder, mlp(widths, hidden_norm=True, last_norm=last_norm))

    def encoder(self) -> nn.Module:
        """The backbone without its projector (section 4.2)."""
        return self.network.backbone

    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Loss of one batch; every `log_every` steps also the monitors."""
        z_MD, p_MC = self.network(torch.cat(pair_of(views)))
        first_BC, second_BC = p_MC.chunk(2)
        with torch.autocast(p_MC.device.type, enabled=False):
            loss = nt_xent(first_BC, second_BC, temperature=self.temperature)
        chance = torch.full_like(loss, math.log(world_size() * len(p_MC) - 1))
        return {"loss": loss, **self.look(z_MD, p_MC, loss=loss.detach(), chance=chance)}
