"""Copies of an encoder are taught labelled tiles: at which rate is chosen first, then one learns from all.

The peak rate is the one of the lowest loss on training patients that are set aside.

Letters: M tiles that are asked for, C classes.
"""

import io
import logging
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from histo_ssl.data.base import TileSource
from histo_ssl.data.loading import TileLoader
from histo_ssl.data.reading import Batch, BlankedTiles
from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.encode import Encoder
from histo_ssl.folders.artifacts import write_bytes
from histo_ssl.parallel.quiet import quiet_trainer
from histo_ssl.progress import Progress
from histo_ssl.tasks.base import Workplace
from histo_ssl.tasks.lessons import Lessons, Lost, Order
from histo_ssl.tasks.logistic import folds_of
from histo_ssl.tasks.tiles import Lesson
from histo_ssl.tasks.tuning import Tuned, Tuning

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
TUNINGS = "tunings"  # folder of what each training came to
TRAINING, ASIDE, TEST = "training", "held-out", "test"  # tiles


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a copy said of tiles that it had not learned from."""

    logits_MC: NDArray[np.float32]
    is_read_M: Mask  # whether the tile could be read
    is_left_M: Mask  # whether its stain should have been normalised and could not
    n_replaced: int  # training tiles that could not be read until then

    @property
    def are_finite(self) -> bool:
        """Whether the copy has not diverged."""
        return bool(np.isfinite(self.logits_MC).all())


@dataclass(frozen=True, kw_only=True)
class School:
    """What copies of an encoder are taught, and by what.

    Args:
        encoder: that is copied; stays as it is.
        subject: whose it is, for messages and names of files.
        source: of the tiles.
        tiles: those that have a label.
        class_N: 0 to C - 1, of each of them.
        group_N: whose each is.
        n_classes: C.
        tuning: how.
        seed: of weights, order, turns and the part set aside.
        place: what trains, and how tiles are read.
    """

    encoder: Encoder
    subject: str
    source: TileSource
    tiles: EmbeddingSet
    class_N: Ints
    group_N: Ints
    n_classes: int
    tuning: Tuning
    seed: int
    place: Workplace

    def taught(self, train: Ints, test: Ints) -> tuple[Answers, list[str]]:
        """What a copy says of the test that has learned from all of train, and what a reader must know.

        Raises:
            ValueError: it diverges, or too many tiles can't be read.
        """
        lr, notes = self._lr(train)
        answers = self._answers(lr, train, test, name=TEST)
        if not answers.are_finite:
            raise ValueError(
                f"finetuning ({self.subject}) diverges at a rate of {lr:g}: take lower ones "
                "(task.protocol.tuning.lrs)"
            )
        return answers, notes

    def _lr(self, train: Ints) -> tuple[float, list[str]]:
        lrs = sorted(self.tuning.lrs)
        if len(lrs) == 1:
            return lrs[0], []
        learn, aside, why = self._parted(train)
        if why:
            middle = lrs[len(lrs) // 2]
            return middle, [f"{why}: its rate is {middle:g}, unchosen"]
        losses = [self._loss(lr, learn, aside) for lr in lrs]
        if not np.isfinite(losses).any():
            raise ValueError(
                f"finetuning ({self.subject}) diverges at every rate of {lrs}: take lower ones "
                "(task.protocol.tuning.lrs)"
            )
        best = lrs[int(np.nanargmin(losses))]
        is_edge = best in (lrs[0], lrs[-1])
        at_edge = f"took the rate {best:g}, at the edge of those tried: others may do better"
        return best, [at_edge] if is_edge else []

    def _parted(self, train: Ints) -> tuple[Ints, Ints, str]:
        """Who learns and who is set aside, of different patients; or why that can't be."""
        lesson = Lesson(
            features_ND=np.zeros((len(train), 0), np.float32),
            class_N=self.class_N[train],
            group_N=self.group_N[train],
            n_classes=self.n_classes,
        )
        folds, why = folds_of(lesson, n_folds=self.tuning.n_folds, seed=self.seed)
        learn, aside = (train[rows] for rows in folds[0]) if folds else (train, train)
        return learn, aside, why

    def _loss(self, lr: float, learn: Ints, aside: Ints) -> float:
        answers = self._answers(lr, learn, aside, name=ASIDE)
        if not answers.are_finite or not answers.is_read_M.any():
            loss = math.nan
        else:
            logits = torch.from_numpy(answers.logits_MC[answers.is_read_M])
            loss = float(F.cross_entropy(logits, torch.from_numpy(self.class_N[aside][answers.is_read_M])))
        log.info("evaluate (%s): a rate of %g has a loss of %.3f on tiles set aside", self.subject, lr, loss)
        return loss

    def _answers(self, lr: float, learn: Ints, asked: Ints, *, name: str) -> Answers:
        """What a copy says that has learned; taken from its file where an interrupted run has kept it."""
        path = self.place.folder / TUNINGS / f"{self.subject}-{name}-{lr:g}.npz"
        kept = _read(path, self.tiles.row[asked])
        if kept is None:
            lost = Lost(
                what=TRAINING,
                fate="gives its place to another",
                n_tiles=len(learn),
                max_failed=self.place.max_failed,
            )
            model, device = self.trained(learn, lr, lost)
            kept = self._asked(model.to(device), asked, what=name, n_replaced=len(lost.reasons))
            _write(path, kept, self.tiles.row[asked])
        return kept

    def trained(self, learn: Ints, lr: float, lost: Lost) -> tuple[Tuned, torch.device]:
        """A copy that has learned from these of the tiles, and where it did."""
        order = Order(
            rows=self.tiles.row[learn],
            batch_size=min(self.tuning.batch_size, len(learn)),
            epochs=self.tuning.epochs,
            seed=self.seed,
        )
        label = f"evaluate ({self.subject}): finetuning at a rate of {lr:g}"
        n_tiles = len(order) * order.batch_size
        with torch.random.fork_rng(devices=[]), Progress(label, n_items=n_tiles, noun="tiles") as progress:
            torch.manual_seed(self.seed)
            model = Tuned(
                self.encoder, n_classes=self.n_classes, lr=lr, tuning=self.tuning, n_steps=len(order)
            )
            lessons = Lessons(
                source=self.source,
                order=order,
                class_of=self._class_of,
                loading=self.place.loading,
                lost=lost,
                progress=progress,
            )
            place = self.place  # all epochs are one of the Trainer's
            trainer = quiet_trainer(accelerator=place.accelerator, precision=place.precision, epochs=1)
            trainer.fit(model, lessons)
        return model, trainer.strategy.root_device  # at its end Lightning has moved the model to the CPU

    @cached_property
    def _class_of(self) -> Mapping[int, int]:
        """Classes by the tiles' numbers in their source."""
        return dict(zip(self.tiles.row.tolist(), self.class_N.tolist(), strict=True))

    @torch.inference_mode()
    def _asked(self, model: Tuned, rows: Ints, *, what: str, n_replaced: int) -> Answers:
        model.eval()
        lost = Lost(what=what, fate="is left out", n_tiles=len(rows), max_failed=self.place.max_failed)
        logits, is_left = [], []
        for batch in self._batches(rows):
            lost.add(batch["failed"])
            made = model.restained(batch["tiles"].permute(0, 3, 1, 2))
            logits.append(model(made.tiles).cpu())
            is_left.append(made.is_left_B.cpu())
        return Answers(
            logits_MC=torch.cat(logits).numpy(),
            is_read_M=~np.isin(self.tiles.row[rows], list(lost.reasons)),
            is_left_M=torch.cat(is_left).numpy(),
            n_replaced=n_replaced,
        )

    def _batches(self, rows: Ints) -> Iterator[Batch]:
        n_batches = -(-len(rows) // self.tuning.batch_size)
        wanted = [
            [(int(row), 0) for row in chunk] for chunk in np.array_split(self.tiles.row[rows], n_batches)
        ]
        return iter(TileLoader(BlankedTiles(self.source), wanted, self.place.loading))


def _write(path: Path, answers: Answers, rows: Ints) -> None:
    stream = io.BytesIO()
    np.savez(
        stream,
        rows=rows,
        logits=answers.logits_MC,
        is_read=answers.is_read_M,
        is_left=answers.is_left_M,
        n_replaced=answers.n_replaced,
    )
    write_bytes(path, stream.getvalue())


def _read(path: Path, rows: Ints) -> Answers | None:
    """What an earlier start has kept of a training; None where there is nothing whole."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            content = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if not np.array_equal(content["rows"], rows):
        return None
    return Answers(
        logits_MC=content["logits"],
        is_read_M=content["is_read"],
        is_left_M=content["is_left"],
        n_replaced=int(content["n_replaced"]),
    )
