"""What a task is: it takes embeddings of labelled tiles and returns scores that say how sure they are."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.splits import Split

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number about one set of embeddings, with what it takes to judge it."""

    subject: str  # whose embeddings: "encoder", or a floor: "colour", "random"
    protocol: str  # how they were scored, such as "weighted_k20"
    metric: str  # one of METRICS
    label: str  # the class it is about; "" for all classes together
    value: float  # 0-1, NaN where the test set doesn't define it
    low: float  # 95 % interval, NaN where there is none
    high: float
    chance: float  # what the best guess reaches that never looks at the tile


@dataclass(kw_only=True)
class TaskResult:
    """What a task found out about one set of embeddings."""

    scores: list[Score]
    predictions: pd.DataFrame  # one row per protocol and test tile
    confusion: dict[str, list[list[int]]]  # by protocol: row = true class, column = predicted class
    classes: list[str]  # order of the rows and columns of `confusion`
    notes: list[str]  # sentences that a reader of the scores must know
    counts: dict[str, int]  # n_train, n_test (tiles), n_train_groups, n_test_groups
    primary: tuple[str, str]  # protocol and metric that stand for the task
    thumbnail_px: int = 0  # side of the pictures that the tiles of `predictions` are to be shown by; 0: none


def check_finite(features_ND: NDArray[np.floating]) -> None:
    """Stop at embeddings of an encoder that has diverged, before a protocol makes something of them.

    Raises:
        ValueError: says how many are not finite.
    """
    n_bad = int((~np.isfinite(features_ND)).any(axis=1).sum())
    if n_bad:
        raise ValueError(
            f"{n_bad} of {len(features_ND)} embeddings are not finite: the encoder has diverged; look at its "
            "loss and train it again"
        )


class Task(Protocol):
    """Labelled data x protocol."""

    def split(self, labelled: EmbeddingSet) -> Split:
        """Who learns and who is tested, of tiles that all have a label."""

    def check(self, tiles: EmbeddingSet) -> None:
        """Stop at tiles that `evaluate` would refuse, whatever their features: before hours of training.

        Raises:
            ValueError: says why they can't be scored.
        """

    def evaluate(self, embeddings: EmbeddingSet, *, subject: str) -> TaskResult:
        """Scores of `embeddings`, which belong to `subject` ("encoder", "colour" or "random")."""


def table_of(tiles: EmbeddingSet) -> pd.DataFrame:
    """What is known of each tile, as the first columns of a table of predictions."""
    x, y = tiles.coords.T
    return pd.DataFrame(
        {
            "slide": tiles.slide,
            "x": x,
            "y": y,
            "patient": tiles.patient,
            "label": tiles.label,
            "tile": tiles.row,
        }
    )
