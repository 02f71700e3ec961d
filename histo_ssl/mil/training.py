"""Training a model of bags: one fold, from its bags to a model that scores others.

A fold's result is a function of its bags and its seed alone: run again, by itself or after others, it is the
same to the last digit.

Letters: N bags to learn from, V to validate on, M to predict, C outputs, B bags of a batch.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from histo_ssl.mil.bags import Bags
from histo_ssl.mil.base import BagModel, BagModelFactory, Scored, whole_loss
from histo_ssl.mil.loading import BagBatch, Epochs, TrainingBatches, WholeBags, loader
from histo_ssl.mil.objectives import Objective
from histo_ssl.parallel.quiet import quiet_trainer

Ints = NDArray[np.int64]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model of bags is trained (see `conf/task/recipe/` for what each value means)."""

    optimizer: MakeOptimizer
    epochs: int
    patience: int | None
    batch_bags: int
    max_tiles: int | None
    is_weighted: bool
    max_tiles_at_once: int
    precision: str | None
    n_workers: int

    def __post_init__(self) -> None:
        least = {"epochs": self.epochs, "batch_bags": self.batch_bags, "max_tiles": self.max_tiles or 1}
        for name, value in {**least, "patience": self.patience or 1}.items():
            if value < 1:
                raise ValueError(f"task.recipe.{name}={value}: 1 or more is expected")


@dataclass(frozen=True, kw_only=True)
class Device:
    """What trains, in Lightning's words."""

    accelerator: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch came to."""

    loss: float  # mean over its steps
    valid_loss: float  # NaN without a validation
    valid_score: float  # of the objective; NaN where it can't be told


class BagModule(LightningModule):
    """A model of bags, what it is told by, and its optimiser."""

    def __init__(self, model: BagModel, objective: Objective, *, optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.model, self.objective, self.make = model, objective, optimizer
        self.losses: list[Tensor] = []
        self.outputs: list[tuple[Tensor, Tensor]] = []  # of the validation: (B, C), numbers of the bags
        self.history: list[Epoch] = []

    def training_step(self, batch: BagBatch) -> Tensor:
        """The bags' loss; with that of their tiles, by the model's own weights, if it has one."""
        scored = self.model(batch.packed)
        class_B = self.objective.classes(batch.bag_B)
        of_tiles = None if class_B is None else self.model.instance_loss(scored, batch.packed, class_B)
        of_bags = self.objective.loss(scored.logits_BC, batch.bag_B)
        loss = whole_loss(of_bags, of_tiles, bag_weight=self.model.bag_weight)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: BagBatch) -> None:
        """Keep the bags' outputs."""
        self.outputs.append((self.model(batch.packed).logits_BC.float(), batch.bag_B))

    def on_validation_epoch_end(self) -> None:
        """Judge all bags of the validation together."""
        outputs_VC, bag_V = (torch.cat(parts) for parts in zip(*self.outputs, strict=True))
        loss, score = self.objective.loss(outputs_VC, bag_V), self.objective.score(outputs_VC, bag_V)
        self._close(valid_loss=float(loss), valid_score=score)

    def on_train_epoch_end(self) -> None:
        """Without a validation an epoch is over here."""
        if self.losses:
            self._close(valid_loss=math.nan, valid_score=math.nan)

    def configure_optimizers(self) -> Optimizer:
        """One optimiser of all parameters."""
        return self.make(self.parameters())

    def _close(self, *, valid_loss: float, valid_score: float) -> None:
        loss = float(torch.stack(self.losses).mean()) if self.losses else math.nan
        self.history.append(Epoch(loss=loss, valid_loss=valid_loss, valid_score=valid_score))
        self.losses, self.outputs = [], []


class BestEpoch(Callback):
    """Keeps the weights of the best epoch of the validation, and ends where none was better for long.

    Better is a higher score, and of equal ones the lower loss.
    """

    def __init__(self, *, patience: int) -> None:
        self.patience = patience
        self.number, self.rank = -1, (-math.inf, -math.inf)
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch that has just been judged."""
        assert isinstance(pl_module, BagModule)
        last, number = pl_module.history[-1], len(pl_module.history) - 1
        score = last.valid_score if math.isfinite(last.valid_score) else -math.inf
        rank = (score, -last.valid_loss)
        if rank > self.rank or self.number < 0:
            self.number, self.rank = number, rank
            self.weights = copy.deepcopy(pl_module.model.state_dict())
        trainer.should_stop = trainer.should_stop or number - self.number >= self.patience


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model, and how it came to be."""

    model: BagModel
    epoch: int  # whose weights it has, from 0
    history: list[Epoch]
    recipe: Recipe
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.inference_mode()
    def outputs(self, bags: Bags, rows: Ints) -> NDArray[np.float64]:
        """Outputs (M, C) of whole bags."""
        found = [self._scored(batch).logits_BC.double().cpu() for batch in self._batches(bags, rows)]
        return torch.cat(found).numpy()

    @torch.inference_mode()
    def attention(self, bags: Bags, row: int) -> NDArray[np.float64] | None:
        """Attention (N,) or (N, C) that a bag's tiles draw, before the soft-max; None where there is none."""
        (batch,) = self._batches(bags, np.array([row]))
        found = self._scored(batch).attention_N
        return None if found is None else found.double().cpu().numpy()

    def _batches(self, bags: Bags, rows: Ints) -> Iterable[BagBatch]:
        whole = WholeBags(bags, rows, max_tiles=self.recipe.max_tiles_at_once)
        return loader(whole, n_workers=0)

    def _scored(self, batch: BagBatch) -> Scored:
        scored: Scored = self.model(batch.packed.to(self.device))
        return scored


def fit(
    make: BagModelFactory,
    objective: Objective,
    bags: Bags,
    *,
    train: Ints,
    valid: Ints,
    recipe: Recipe,
    seed: Sequence[int],
    device: Device,
) -> Fitted:
    """Train a model on the bags `train`, and choose its epoch on the bags `valid`.

    Args:
        make: builds the model, called with the bags' width and the objective's number of outputs.
        objective: what is learned.
        bags: all of them.
        train: numbers of the bags to learn from.
        valid: numbers of the bags to choose the epoch by, where the recipe has a patience; without any, the
            last epoch is taken.
        recipe: how.
        seed: of weights, order, tiles and dropout.
        device: what trains.

    Raises:
        ValueError: the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1)[0]))
        module = BagModule(
            make(dim=bags.dim, n_classes=objective.n_outputs), objective, optimizer=recipe.optimizer
        )
        best = BestEpoch(patience=recipe.patience) if recipe.patience and len(valid) else None
        epochs = Epochs(
            bag_N=train,
            stratum_N=objective.stratum(train) if recipe.is_weighted else None,
            batch_bags=min(recipe.batch_bags, len(train)),
            max_tiles=recipe.max_tiles,
            seed=seed,
        )
        trainer = quiet_trainer(
            accelerator=device.accelerator,
            precision=device.precision,
            epochs=recipe.epochs,
            callbacks=[best] if best else [],
            validates=bool(best),
            reloads=True,
        )
        trainer.fit(module, datamodule=_BagData(bags, epochs, valid if best else None, recipe=recipe))
    if not all(math.isfinite(epoch.loss) for epoch in module.history):
        raise ValueError(
            f"the loss of a model of bags is not finite after epoch {len(module.history)}: take a lower "
            "task.recipe.optimizer.lr, and look at the embeddings"
        )
    if best:
        module.model.load_state_dict(best.weights)
    epoch = best.number if best else len(module.history) - 1
    device_of = trainer.strategy.root_device  # from which the Trainer has taken the model in the end
    return Fitted(
        model=module.model.eval().to(device_of),
        epoch=epoch,
        history=module.history,
        recipe=recipe,
        device=device_of,
    )


class _BagData(LightningDataModule):
    """The batches of an epoch, and the bags that it is judged by."""

    def __init__(self, bags: Bags, epochs: Epochs, valid: Ints | None, *, recipe: Recipe) -> None:
        super().__init__()
        self.bags, self.epochs, self.valid, self.recipe = bags, epochs, valid, recipe

    def train_dataloader(self) -> DataLoader[BagBatch]:
        """The batches of the epoch that begins."""
        assert self.trainer is not None
        n_steps, epoch = self.epochs.n_steps, self.trainer.current_epoch
        batches = TrainingBatches(self.bags, self.epochs, n_epochs=self.recipe.epochs)
        steps = range(epoch * n_steps, (epoch + 1) * n_steps)
        return loader(batches, n_workers=self.recipe.n_workers, steps=steps)

    def val_dataloader(self) -> DataLoader[BagBatch] | list[BagBatch]:
        """The whole bags of the validation; none where no epoch is chosen."""
        if self.valid is None:
            return []
        whole = WholeBags(self.bags, self.valid, max_tiles=self.recipe.max_tiles_at_once)
        return loader(whole, n_workers=self.recipe.n_workers)
