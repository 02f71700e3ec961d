"""The protocol of the linear probe: one layer on standardised embeddings, trained in mini-batches.

As DINO's (arXiv:2104.14294, section 3.2) but for the learning rate, which is chosen among several on training
patients that are set aside. One head per rate trains on the same batches (as arXiv:2304.07193, appendix B.3);
then a head with the best rate trains on all.

Letters: N training tiles, M test tiles, B tiles of a batch, L learning rates, D width, C classes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from histo_ssl.parallel.quiet import quiet_trainer
from histo_ssl.tasks.logistic import folds_of
from histo_ssl.tasks.tiles import Lesson

Floats = NDArray[np.float64]
MakeOptimizer = Callable[[Iterable[dict[str, Any]]], Optimizer]
Batch = tuple[Tensor, Tensor]

LOWER = "give it lower ones by task.protocols.linear.lrs=[...]"


class Heads(LightningModule):
    """One linear layer per learning rate, all trained on the same batches."""

    def __init__(
        self, *, dim: int, n_classes: int, lrs: Sequence[float], optimizer: MakeOptimizer, n_steps: int
    ) -> None:
        """Draw the weights: normal, SD .01, without bias at first, as DINO's code."""
        super().__init__()
        self.lrs, self.make, self.n_steps = lrs, optimizer, n_steps
        self.layers = nn.ModuleList(nn.Linear(dim, n_classes) for _ in lrs)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x_BD: Tensor) -> Tensor:
        """Logits (L, B, C)."""
        return torch.stack([layer(x_BD) for layer in self.layers])

    def training_step(self, batch: Batch) -> Tensor:
        """The sum of the heads' cross-entropies; none has a share in another's gradient."""
        x_BD, class_B = batch
        return torch.stack([F.cross_entropy(logits_BC, class_B) for logits_BC in self(x_BD)]).sum()

    def configure_optimizers(self) -> Any:
        """Each head's own rate, all down to 0 along a cosine."""
        pairs = zip(self.layers, self.lrs, strict=True)
        groups = [{"params": list(layer.parameters()), "lr": lr} for layer, lr in pairs]
        optimizer = self.make(groups)
        schedule = CosineAnnealingLR(optimizer, T_max=self.n_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A linear layer; mean and SD of the features are those of the training tiles.

    Args:
        lrs: learning rates to choose from, by the lowest mean loss.
        optimizer: makes an optimiser of groups of parameters.
        epochs: passes over the training tiles.
        batch_size: tiles per step, at most all.
        n_folds: one part of so many is set aside to choose by; of fewer where a class has fewer patients.
        seed: of weights, batches and the part set aside.
    """

    lrs: Sequence[float]
    optimizer: MakeOptimizer
    epochs: int
    batch_size: int
    n_folds: int
    seed: int

    def __post_init__(self) -> None:
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"linear: lrs={list(self.lrs)}: numbers above 0 are expected")
        if min(self.epochs, self.batch_size) < 1 or self.n_folds < 2:
            raise ValueError(
                f"linear: epochs={self.epochs}, batch_size={self.batch_size}, n_folds={self.n_folds}: "
                "1, 1 and 2, or more, are expected"
            )

    def classify(self, lesson: Lesson, test_MD: NDArray[np.float32]) -> tuple[Floats, list[str]]:
        """Probabilities (M, C), and a note where the rate could not be chosen, or others may do better.

        Raises:
            ValueError: no rate leads to a finite loss.
        """
        mean_D = lesson.features_ND.mean(axis=0, dtype=np.float64)
        sd_D = lesson.features_ND.std(axis=0, dtype=np.float64)
        sd_D = np.where(sd_D > 0, sd_D, 1.0)
        x_ND, x_MD = (
            torch.from_numpy(((x - mean_D) / sd_D).astype(np.float32)) for x in (lesson.features_ND, test_MD)
        )
        class_N = torch.from_numpy(lesson.class_N)
        lr, notes = self._lr(lesson, x_ND, class_N)
        logits_MC = self._trained(x_ND, class_N, lesson, lrs=[lr])(x_MD)[0]
        if not logits_MC.isfinite().all():
            raise ValueError(f"linear: a training with lr={lr:g} diverged; {LOWER}")
        return logits_MC.double().softmax(dim=1).numpy(), notes

    def _lr(self, lesson: Lesson, x_ND: Tensor, class_N: Tensor) -> tuple[float, list[str]]:
        if len(self.lrs) == 1:
            return self.lrs[0], []
        folds, why = folds_of(lesson, n_folds=self.n_folds, seed=self.seed)
        if why:
            middle = sorted(self.lrs)[len(self.lrs) // 2]
            return middle, [f"{why}: its rate is {middle:g}, unchosen"]
        learn, aside = folds[0]
        heads = self._trained(x_ND[learn], class_N[learn], lesson, lrs=self.lrs)
        losses = [F.cross_entropy(logits, class_N[aside]).item() for logits in heads(x_ND[aside])]
        if not np.isfinite(losses).any():
            tried = ", ".join(f"{lr:g}" for lr in self.lrs)
            raise ValueError(f"linear: the trainings with lrs={tried} all diverged; {LOWER}")
        lr = self.lrs[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))]
        return lr, _at_the_edge(lr, self.lrs)

    def _trained(
        self, x_ND: Tensor, class_N: Tensor, lesson: Lesson, *, lrs: Sequence[float]
    ) -> Callable[[Tensor], Tensor]:
        """Heads as a function from standardised embeddings to logits (L, B, C)."""
        batch_size = min(self.batch_size, len(x_ND))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            heads = Heads(
                dim=x_ND.shape[1],
                n_classes=lesson.n_classes,
                lrs=lrs,
                optimizer=self.optimizer,
                n_steps=self.epochs * (len(x_ND) // batch_size),
            )
            batches = DataLoader(TensorDataset(x_ND, class_N), batch_size, shuffle=True, drop_last=True)
            trainer = quiet_trainer(accelerator=lesson.accelerator, precision="32-true", epochs=self.epochs)
            trainer.fit(heads, batches)
        return torch.inference_mode()(heads.cpu().eval())


def _at_the_edge(lr: float, lrs: Sequence[float]) -> list[str]:
    """A note where the best of several rates has none beyond it.

    >>> _at_the_edge(0.3, [0.1, 0.3]), _at_the_edge(0.1, [0.01, 0.1, 1.0])
    (['did best with the highest of its learning rates, 0.3: higher ones may do better; add some to lrs'], [])
    """
    if min(lrs) < lr < max(lrs) or min(lrs) == max(lrs):
        return []
    end, beyond = ("highest", "higher") if lr == max(lrs) else ("lowest", "lower")
    return [
        f"did best with the {end} of its learning rates, {lr:g}: {beyond} ones may do better; add some to lrs"
    ]
