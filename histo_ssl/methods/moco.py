"""MoCo v2: a contrast with a queue of keys from a slowly moving encoder (arXiv:1911.05722, arXiv:2003.04297).

Where we differ from the paper's code: keys are enqueued, and the key encoder moves, after the optimiser step,
which is before the next one's keys, and once for all accumulated batches. The code shuffles tiles among GPUs
so that the BatchNorm of a query and of its key sees different tiles; a GPU's tiles are here any `norm_tiles`
neighbours of the batch, so that one device does the same, and gets the same, as many.

B: tiles of this rank; W: ranks; C: outputs of the projector; N: keys of the queue; D: features of the
backbone.
"""

import logging
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histo_ssl.backbones import BackboneFactory
from histo_ssl.methods.batchnorm import has_batch_norm, split
from histo_ssl.methods.heads import MlpSpec, Projected, mlp, n_features
from histo_ssl.methods.monitors import WatchSpec
from histo_ssl.methods.watched import WatchedMethod, pair_of
from histo_ssl.optim.ema import move_towards
from histo_ssl.optim.spec import OptimSpec
from histo_ssl.parallel.distributed import gather, rank, world_size

logger = logging.getLogger(__name__)

N_AGES = 4  # the newest and the oldest of so many parts of the queue are compared


def moco_loss(query_BC: Tensor, key_BC: Tensor, queue_NC: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE of each query with its own key against the queue (arXiv:1911.05722, eq. 1).

    Args:
        query_BC: unit vectors, float32.
        key_BC: the other view's; row i is the same tile as row i of query_BC.
        queue_NC: unit vectors of other tiles.
        temperature: divides the cosine similarities; > 0.

    Returns:
        Scalar in nats, the mean over B. log(1 + N) when all vectors are the same.
    """
    own_B1 = (query_BC * key_BC).sum(1, keepdim=True)
    # the clone leaves the backward pass what it needs when the queue moves on before it
    others_BN = query_BC @ queue_NC.clone().T
    logits = torch.cat([own_B1, others_BN], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


@dataclass(frozen=True, kw_only=True)
class QueueSpec:
    """How many keys queries are held against.

    Args:
        n_keys: N, a multiple of the tiles per optimiser step.
        max_gap: a queue whose `gap` is larger is stale, in cosines.
    """

    n_keys: int
    max_gap: float


class Queue(nn.Module):
    """The newest N keys. Born as random unit vectors, saved in checkpoints, the same on every rank."""

    keys_NC: Tensor
    n_enqueued: Tensor

    def __init__(self, n_keys: int, n_outputs: int) -> None:
        super().__init__()
        self.register_buffer("keys_NC", F.normalize(torch.randn(n_keys, n_outputs), dim=1))
        self.register_buffer("n_enqueued", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return len(self.keys_NC)

    def enqueue(self, keys_MC: Tensor) -> None:
        """Put keys in the places of the oldest."""
        self.keys_NC[self._places()[: len(keys_MC)]] = keys_MC
        self.n_enqueued += len(keys_MC)

    def gap(self, query_BC: Tensor) -> Tensor:
        """How much more alike queries are to the newest quarter of the keys than to the oldest quarter.

        Keys of an encoder that has moved on lie where no query lies any more: they are told apart by their
        age, not by their tile.

        Returns:
            Difference of mean cosines, in [-2, 2]; 0 when age makes no difference, and until keys have filled
            the queue once.
        """
        n = max(1, len(self) // N_AGES)
        oldest_first_N = (query_BC @ self.keys_NC.T).mean(0)[self._places()]
        gap = oldest_first_N[-n:].mean() - oldest_first_N[:n].mean()
        return torch.where(self.n_enqueued >= len(self), gap, torch.zeros_like(gap))

    def _places(self) -> Tensor:
        """Rows of the keys, the oldest first."""
        return (self.n_enqueued + torch.arange(len(self), device=self.keys_NC.device)) % len(self)


class MoCo(WatchedMethod):
    """A query encoder learns to find a tile's key, made by its own moving average, among other tiles'."""

    carried = (*WatchedMethod.carried, "new_keys")

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        optim: OptimSpec,
        projector: MlpSpec,
        watch: WatchSpec,
        queue: QueueSpec,
        temperature: float,
        momentum: float,
        norm_tiles: int | None,
    ) -> None:
        """Build query and key encoder with equal weights.

        Args:
            backbone: called twice; the key encoder's has no drop path.
            optim: how the query encoder is optimised.
            projector: its widths; two layers without BatchNorm.
            watch: when a failure is named.
            queue: its length, and when it is stale.
            temperature: divides the cosine similarities; > 0.
            momentum: share of the key encoder that stays at each step.
            norm_tiles: tiles that share BatchNorm statistics, others for a query than for its key; None: all
                tiles that are seen at a time, on all ranks. Nothing to a backbone without BatchNorm.

        Raises:
            ValueError: `norm_tiles` is less than 2.
        """
        super().__init__(optim=optim, watch=watch)
        if norm_tiles is not None and norm_tiles < 2:
            raise ValueError(f"method.norm_tiles={norm_tiles}: BatchNorm needs 2 tiles or more, or say null")
        self.temperature, self.momentum, self.max_gap = temperature, momentum, queue.max_gap
        self.query = self._network(backbone(), projector)
        self.key = self._network(backbone(drop_path=0.0), projector)
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.queue = Queue(queue.n_keys, projector.n_outputs)
        self.new_keys: list[Tensor] = []
        self.is_shuffled = norm_tiles is not None and has_batch_norm(self.query)
        if norm_tiles is not None:
            split(self.query, n_tiles=norm_tiles)
            split(self.key, n_tiles=norm_tiles)

    def encoder(self) -> nn.Module:
        """The query encoder's backbone, as in the paper's code."""
        return self.query.backbone

    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Loss of one batch; every `log_every` steps also the monitors."""
        query_view, key_view = pair_of(views)
        self._check_queue(len(query_view) * world_size())
        z_BD, p_BC = self.query(query_view)
        query_BC = F.normalize(p_BC.float(), dim=1)
        with torch.no_grad():
            keys_WBC = self._all_keys(key_view)
        key_BC = keys_WBC.chunk(world_size())[rank()]
        with torch.autocast(p_BC.device.type, enabled=False):
            loss = moco_loss(query_BC, key_BC, self.queue.keys_NC, temperature=self.temperature)
        self.new_keys.append(keys_WBC)
        chance = torch.full_like(loss, math.log(1 + len(self.queue)))
        monitors = self.look(z_BD, p_BC, loss=loss.detach(), chance=chance)
        return {"loss": loss, **monitors, **(self._age(query_BC.detach()) if monitors else {})}

    def after_step(self, progress: float) -> None:
        """Enqueue the keys of this step from all ranks, in rank order, and let the key encoder follow."""
        super().after_step(progress)
        self.queue.enqueue(torch.cat(self.new_keys))
        self.new_keys.clear()
        move_towards(self.key, self.query, momentum=self.momentum)

    def on_fit_start(self) -> None:
        """Read the length of training and warn of a queue in which tiles meet their own older keys."""
        super().on_fit_start()
        datamodule = getattr(self.trainer, "datamodule", None)
        n_tiles = len(getattr(datamodule, "rows", ()))
        if 0 < n_tiles < len(self.queue):
            logger.warning(
                "the queue holds %d keys, more than the %d tiles: a tile meets its own older key as "
                "another's; set method.queue.n_keys below that",
                len(self.queue),
                n_tiles,
            )

    def _network(self, backbone: nn.Module, projector: MlpSpec) -> Projected:
        n_in = n_features(backbone)
        widths = [n_in, projector.n_hidden, projector.n_outputs]
        return Projected(backbone, mlp(widths, hidden_norm=False, last_norm=None))

    def _all_keys(self, view: Tensor) -> Tensor:
        """Keys (W * B, C) of all ranks' tiles, in rank order."""
        if not self.is_shuffled:
            return gather(F.normalize(self.key(view)[1].float(), dim=1))
        # one order for all ranks, and for the same step of a resumed run
        generator = torch.Generator().manual_seed(self.global_step)
        order = torch.randperm(world_size() * len(view), generator=generator).to(view.device)
        mine = gather(view)[order].chunk(world_size())[rank()]
        keys = gather(F.normalize(self.key(mine)[1].float(), dim=1))
        return keys[order.argsort()]

    def _check_queue(self, n_tiles: int) -> None:
        n_step = self.tiles_per_step or n_tiles
        if len(self.queue) % n_step:
            nearest = max(1, round(len(self.queue) / n_step)) * n_step
            raise ValueError(
                f"method.queue.n_keys={len(self.queue)} is no multiple of the {n_step} keys that a step "
                f"brings: choose one, such as {nearest}"
            )

    def _age(self, query_BC: Tensor) -> dict[str, Tensor]:
        gap = self.queue.gap(query_BC)
        evidence = f"queries are nearer to new keys than to old ones by a cosine of {gap:.3f}"
        self.name_if("stale queue", is_there=gap.item() > self.max_gap, evidence=evidence)
        return {"queue_gap": gap}
