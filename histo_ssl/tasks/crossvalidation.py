"""Models of bags, trained for every fold of a cross-validation; each fold is kept when it is done.

A fold depends on its bags, its seed and its name alone, so that it may run by itself, in any order, or again.

Letters: M tested bags, C outputs.
"""

import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from histo_ssl.folders.artifacts import write_bytes
from histo_ssl.folds.names import some
from histo_ssl.mil.bags import Bags
from histo_ssl.mil.base import BagModelFactory
from histo_ssl.mil.objectives import Objective
from histo_ssl.mil.training import Device, Epoch, Fitted, Recipe, fit
from histo_ssl.tasks.base import Workplace

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
FOLDS = "folds"  # folder of what each fold came to
EPOCH = [field.name for field in fields(Epoch)]
SMALL_DIM = 8  # of bags that a model is built for to see whether it can be
WEIGHTS = "weights/"  # before the names of a model's tensors


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A fold's bags by their numbers."""

    name: str
    train: Ints
    valid: Ints
    test: Ints


def check_validation(folds: Sequence[Rows], recipe: Recipe) -> None:
    """Refuse folds without a validation where the epoch is chosen by one."""
    empty = [fold.name for fold in folds if not len(fold.valid)]
    if recipe.patience and empty:
        raise ValueError(
            f"{len(empty)} of {len(folds)} folds ({some(empty)}) have nobody to choose the epoch by: take a "
            "larger task.folds.valid_share, or say task.recipe.patience=null, which tests the last epoch"
        )


def check_models(models: Mapping[str, BagModelFactory], *, n_outputs: int) -> None:
    """Refuse models that can't be built, such as those of a library that is not there.

    Raises:
        ValueError: says what is missing.
    """
    for make in models.values():
        make(dim=SMALL_DIM, n_classes=n_outputs)


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """What a model said of a fold's test bags."""

    rows: Rows
    output_MC: Floats  # of the bags of `rows.test`
    model: Fitted


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """Everything that the models of a cross-validation share.

    Args:
        bags: all of them.
        objective: what a fold's model learns.
        recipe: how.
        seed: of weights and order; with the fold's name it gives the fold's own.
        place: what trains, and where what each fold came to is kept.
        subject: whose embeddings the bags hold, for names of files.
    """

    bags: Bags
    objective: Callable[[Rows], Objective]
    recipe: Recipe
    seed: int
    place: Workplace
    subject: str

    def run(self, models: Mapping[str, BagModelFactory], folds: Sequence[Rows]) -> dict[str, list[FoldRun]]:
        """Every model on every fold; what was kept of an interrupted run is taken.

        Raises:
            ValueError: a training came to nothing; names the fold.
        """
        return {name: [self._fold(name, make, rows) for rows in folds] for name, make in models.items()}

    def _fold(self, name: str, make: BagModelFactory, rows: Rows) -> FoldRun:
        path = self.place.folder / FOLDS / f"{self.subject}-{name}-{rows.name}.npz"
        objective = self.objective(rows)
        kept = _read(path, rows, self.bags)
        if kept is not None:
            model = make(dim=self.bags.dim, n_classes=objective.n_outputs)
            model.load_state_dict(kept.weights)
            fitted = Fitted(model=model.eval(), epoch=kept.epoch, history=kept.history, recipe=self.recipe)
            return FoldRun(rows=rows, output_MC=kept.output_MC, model=fitted)
        started = time.monotonic()
        fitted = self._fit(make, objective, rows)
        output_MC = fitted.outputs(self.bags, rows.test)
        _write(path, fitted, output_MC, ids=self.bags.ids[rows.test])
        log.info(
            "evaluate (%s): %s, fold %s: %d bags to learn from, %d tested, epoch %d of %d, %.1f s",
            *(self.subject, name, rows.name, len(rows.train), len(rows.test)),
            *(fitted.epoch + 1, len(fitted.history), time.monotonic() - started),
        )
        return FoldRun(rows=rows, output_MC=output_MC, model=fitted)

    def _fit(self, make: BagModelFactory, objective: Objective, rows: Rows) -> Fitted:
        try:
            return fit(
                make,
                objective,
                self.bags,
                train=rows.train,
                valid=rows.valid,
                recipe=self.recipe,
                seed=[self.seed, *rows.name.encode()],
                device=Device(
                    accelerator=self.place.accelerator,
                    precision=self.recipe.precision or self.place.precision,
                ),
            )
        except ValueError as error:
            raise ValueError(f"fold {rows.name}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Kept:
    output_MC: Floats
    weights: dict[str, torch.Tensor]
    epoch: int
    history: list[Epoch]


def _write(path: Path, fitted: Fitted, output_MC: Floats, *, ids: NDArray[np.str_]) -> None:
    weights = {WEIGHTS + name: tensor.cpu().numpy() for name, tensor in fitted.model.state_dict().items()}
    history = np.array([astuple(epoch) for epoch in fitted.history], dtype=np.float64)
    stream = io.BytesIO()
    np.savez(stream, outputs=output_MC, ids=ids, epoch=fitted.epoch, history=history, **weights)
    write_bytes(path, stream.getvalue())


def _read(path: Path, rows: Rows, bags: Bags) -> _Kept | None:
    """What an earlier start has kept of this fold; None where there is nothing whole."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            content: Mapping[str, Any] = dict(stored)
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    if not np.array_equal(content["ids"], bags.ids[rows.test]):
        return None
    names = [name for name in content if name.startswith(WEIGHTS)]
    return _Kept(
        output_MC=content["outputs"],
        weights={name.removeprefix(WEIGHTS): torch.from_numpy(content[name]) for name in names},
        epoch=int(content["epoch"]),
        history=[Epoch(**dict(zip(EPOCH, row, strict=True))) for row in content["history"].tolist()],
    )
