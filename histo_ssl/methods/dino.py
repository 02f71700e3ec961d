"""DINO: self-distillation with no labels (arXiv:2104.14294).

Where we differ from the paper's code: the head's last layer runs in float32 under mixed precision; the centre
moves once per optimiser step, so that accumulated batches equal one large batch; temperatures and the frozen
last layer count in optimiser steps, not in epochs. Beside the paper's centre there are Sinkhorn's targets,
which DINOv2 took over from SwAV: on some thousand tiles the centre does not hold off a constant teacher.

B: tiles; V: views of a tile, the first G of which the teacher sees; K: outputs of the head; D: features of
the backbone; N: rows, V * B or G * B, view after view.
"""

import logging
import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from histo_ssl.backbones import BackboneFactory
from histo_ssl.methods.base import SSLMethod
from histo_ssl.methods.monitors import CollapseWatch, EmbeddingWindow, MonitorSpec, entropy, rankme
from histo_ssl.methods.sinkhorn import sinkhorn
from histo_ssl.optim.ema import move_towards
from histo_ssl.optim.schedules import cosine, linear
from histo_ssl.optim.spec import OptimSpec
from histo_ssl.parallel.distributed import all_reduce_sum, rank, world_size

logger = logging.getLogger(__name__)

N_GLOBAL = 2  # G: the two large views of section 3.1
INIT_STD = 0.02  # of the head's hidden layers, as of ViTs (arXiv:2010.11929)


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Shape of the projection head (appendix C).

    Args:
        n_outputs: K.
        n_hidden: width of the two hidden layers.
        n_bottleneck: width of the normalised layer before the last.
        norm_last_layer: keep the last layer's rows at length 1, so that its logits are cosines.
    """

    n_outputs: int
    n_hidden: int
    n_bottleneck: int
    norm_last_layer: bool


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """How the teacher follows and what it says (section 3.1).

    Args:
        momentum: share of the teacher that stays at each step, at the start of training.
        final_momentum: the same at the end; a cosine leads there.
        first_temp: temperature of its distributions at the start.
        temp: temperature after the warm-up; lower is sharper.
        temp_warmup: share of training in which the temperature goes from one to the other, 0-1.
        centre_momentum: share of the centre that stays at each step (eq. 4).
        n_sinkhorn: iterations of Sinkhorn's that take the place of the centre; 0 keeps the paper's centre.
    """

    momentum: float
    final_momentum: float
    first_temp: float
    temp: float
    temp_warmup: float
    centre_momentum: float
    n_sinkhorn: int

    def momentum_at(self, progress: float) -> float:
        """Share of the teacher that stays, at a share of training."""
        return cosine(self.momentum, self.final_momentum, progress=progress)

    def targets(self, logits_NK: Tensor, centre_K: Tensor, *, progress: float) -> Tensor:
        """What the teacher says, (N, K) in float32, rows sum to 1 (eq. 1, with the centre of section 3.1)."""
        if self.n_sinkhorn:
            return sinkhorn(logits_NK / self.temp_at(progress), n_iterations=self.n_sinkhorn)
        return ((logits_NK - centre_K) / self.temp_at(progress)).softmax(-1)

    def temp_at(self, progress: float) -> float:
        """Temperature at a share of training: a line over the warm-up, then constant."""
        if progress >= self.temp_warmup:
            return self.temp
        return linear(self.first_temp, self.temp, progress=progress / self.temp_warmup)


def dino_loss(student_VBK: Tensor, target_GBK: Tensor, *, student_temp: float) -> Tensor:
    """Cross-entropy of the student's views under the teacher's, over different views of a tile (eq. 3).

    Args:
        student_VBK: logits of the V views, float32.
        target_GBK: the teacher's probabilities for the first G of the same views.
        student_temp: divides the student's logits; > 0.

    Returns:
        Scalar in nats, the mean over B tiles and G * (V - 1) pairs of views. ln K when all logits are equal.
    """
    log_student_VBK = F.log_softmax(student_VBK / student_temp, dim=-1)
    pairs_GV = -torch.einsum("gbk,vbk->gv", target_GBK, log_student_VBK)
    n_global, n_views = pairs_GV.shape
    same_view = pairs_GV.diagonal().sum()
    return (pairs_GV.sum() - same_view) / (n_global * (n_views - 1) * student_VBK.shape[1])


class UnitLinear(nn.Module):
    """A weight-normalised linear layer without bias: row k is g_k v_k / |v_k| (arXiv:1602.07868, eq. 2).

    Its parameters are named as in DINO's checkpoints; g starts at 1 and is trained only if asked.
    """

    def __init__(self, n_in: int, n_out: int, *, is_length_fixed: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(n_out, 1), requires_grad=not is_length_fixed)
        self.weight_v = nn.Parameter(torch.empty(n_out, n_in))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5.0))  # the start of torch's linear layers

    def forward(self, x_ND: Tensor) -> Tensor:
        """Rows (N, n_in) to (N, n_out): cosines when rows are unit vectors and g is 1."""
        return F.linear(x_ND, torch._weight_norm(self.weight_v, self.weight_g, 0))


class Head(nn.Module):
    """Three-layer GELU MLP, L2 normalisation, weight-normalised linear layer (appendix C)."""

    def __init__(self, n_features: int, spec: HeadSpec) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(n_features, spec.n_hidden),
            nn.GELU(),
            nn.Linear(spec.n_hidden, spec.n_hidden),
            nn.GELU(),
            nn.Linear(spec.n_hidden, spec.n_bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                nn.init.zeros_(layer.bias)
        self.last_layer = UnitLinear(spec.n_bottleneck, spec.n_outputs, is_length_fixed=spec.norm_last_layer)

    def forward(self, z_ND: Tensor) -> Tensor:
        """Features (N, D) to logits (N, K) in float32, in [-1, 1] when the last layer's length is fixed."""
        x = self.mlp(z_ND)
        # a temperature of 0.04 would blow bfloat16's steps near 1 up to 0.1 of a logit
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.last_layer(F.normalize(x.float(), dim=-1))
        return logits


class Network(nn.Module):
    """A backbone and its head: student or teacher."""

    def __init__(self, backbone: nn.Module, head: HeadSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(cast(int, backbone.num_features), head)

    def forward(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (N, D) and logits (N, K) of views of (B, 3, s, s), view after view.

        Neighbouring views of one resolution go through the backbone together, all of them through the head.
        """
        sizes = groupby(views, key=lambda view: view.shape[-2:])
        z_ND = torch.cat([self.backbone(torch.cat(list(same))) for _, same in sizes])
        return z_ND, self.head(z_ND)


class DINO(SSLMethod):
    """A student learns to say of every view what its slowly moving average says of the large ones."""

    carried = ("n_teacher_rows", "embeddings")
    centre_K: Tensor
    teacher_sum_K: Tensor

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        optim: OptimSpec,
        head: HeadSpec,
        teacher: TeacherSpec,
        monitors: MonitorSpec,
        student_temp: float,
        freeze_last_layer_epochs: float,
    ) -> None:
        """Build student and teacher with equal weights.

        Args:
            backbone: called twice; the teacher's has no drop path.
            optim: how the student is optimised.
            head: shape of both heads.
            teacher: how the teacher follows and what it says.
            monitors: when a collapse is named.
            student_temp: temperature of the student's distributions; > 0.
            freeze_last_layer_epochs: passes over the data in which the last layer stays as it is.
        """
        super().__init__(optim=optim)
        self.spec = teacher
        self.student_temp = student_temp
        self.freeze_last_layer_epochs = freeze_last_layer_epochs
        self.student = Network(backbone(), head)
        self.teacher = Network(backbone(drop_path=0.0), head)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.register_buffer("centre_K", torch.zeros(head.n_outputs))
        self.register_buffer("teacher_sum_K", torch.zeros(head.n_outputs), persistent=False)
        self.n_teacher_rows = 0
        self.max_entropy = math.log(head.n_outputs)
        self.embeddings = EmbeddingWindow(monitors.rankme_rows)
        self.collapse = CollapseWatch(monitors, max_entropy=self.max_entropy)

    def encoder(self) -> nn.Module:
        """The teacher's backbone, the better of the two (section 5.2)."""
        return self.teacher.backbone

    def step(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Loss of one batch; every `log_every` steps also the monitors."""
        with torch.no_grad():
            _, teacher_NK = self.teacher(views[:N_GLOBAL])
        z_ND, student_NK = self.student(views)
        with torch.autocast(student_NK.device.type, enabled=False):
            target_NK = self.spec.targets(teacher_NK, self.centre_K, progress=self.progress)
            loss = dino_loss(
                student_NK.unflatten(0, (len(views), -1)),
                target_NK.view(N_GLOBAL, -1, target_NK.shape[-1]),
                student_temp=self.student_temp,
            )
            self.teacher_sum_K += teacher_NK.sum(0)
        self.n_teacher_rows += len(teacher_NK)
        self.embeddings.push(z_ND[: len(teacher_NK)])
        monitors = self._monitor(target_NK, loss.detach()) if self.is_log_step else {}
        return {"loss": loss, **monitors}

    def after_step(self, progress: float) -> None:
        """Move the centre (eq. 4) by the tiles of this step on all ranks, and the teacher."""
        mean_K = all_reduce_sum(self.teacher_sum_K) / (self.n_teacher_rows * world_size())
        self.centre_K.lerp_(mean_K, 1.0 - self.spec.centre_momentum)
        self.teacher_sum_K.zero_()
        self.n_teacher_rows = 0
        move_towards(self.teacher, self.student, momentum=self.spec.momentum_at(progress))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what RankMe looks at, so that a resumed run logs what an unbroken one would have."""
        checkpoint["newest_embeddings"] = self.embeddings.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self.embeddings.restore(checkpoint["newest_embeddings"])

    def on_fit_start(self) -> None:
        """Read the length of training and warn when the last layer would stay frozen throughout."""
        super().on_fit_start()
        if self.freeze_last_layer_epochs * self.steps_per_epoch >= self.total_steps:
            logger.warning(
                "the head's last layer is frozen for all %d steps, an epoch has %d: train longer or set "
                "method.freeze_last_layer_epochs below %.2g",
                self.total_steps,
                self.steps_per_epoch,
                self.total_steps / self.steps_per_epoch,
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Schedules and clipping, then no gradient for the last layer in its frozen epochs."""
        super().on_before_optimizer_step(optimizer)
        if self.global_step < self.freeze_last_layer_epochs * self.steps_per_epoch:
            for p in self.student.head.last_layer.parameters():
                p.grad = None  # a gradient of zero would still let weight decay and momentum move it

    def _monitor(self, target_NK: Tensor, loss: Tensor) -> dict[str, Tensor]:
        row_entropy, mean_entropy = entropy(target_NK), entropy(target_NK.mean(0, keepdim=True))
        if rank() == 0:
            self.collapse.look(
                row_entropy=row_entropy.item(), mean_entropy=mean_entropy.item(), progress=self.progress
            )
        return {
            "teacher_entropy": row_entropy,
            "mean_entropy": mean_entropy,
            "max_entropy": torch.full_like(loss, self.max_entropy),
            "kl": loss - row_entropy,  # every view of the teacher is in V - 1 pairs, so the means agree
            "centre_norm": self.centre_K.norm(),
            "rankme": rankme(self.embeddings.rows()),
        }
