"""Labelled tiles x protocols: what frozen embeddings say of a tile's class, by each of several protocols.

A protocol learns from the training tiles and scores the test tiles; split, intervals, predictions and errors
are the task's, so that all protocols are held to the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.base import METRICS, Score, TaskResult, table_of
from histo_ssl.tasks.scores import Predictions, cautions, scores_of
from histo_ssl.tasks.splits import Split, split_tiles


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a protocol may learn from: N training tiles."""

    features_ND: NDArray[np.float32]
    class_N: NDArray[np.int64]  # 0 to C - 1, every one of which is there
    group_N: NDArray[np.int64]  # whose tile it is; equal numbers are the same patient (or slide)
    n_classes: int  # C, 2 or more


class TileProtocol(Protocol):
    """A way from embeddings to classes."""

    def classify(self, lesson: Lesson, test_MD: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[str]]:
        """Class scores (M, C) of test tiles, higher is likelier, and what a reader of them must know."""


class TileTask:
    """Scores embeddings of labelled tiles (see `conf/task/tiles.yaml` for what each value means)."""

    def __init__(
        self,
        *,
        protocols: Mapping[str, TileProtocol],
        primary: tuple[str, str],
        test_share: float,
        n_bootstrap: int,
        seed: int,
    ) -> None:
        if primary[0] not in protocols or primary[1] not in METRICS:
            raise ValueError(
                f"task.protocol.primary={list(primary)}: expected a protocol ({', '.join(protocols)}) and "
                f"a metric ({', '.join(METRICS)})"
            )
        if not 0 < test_share < 1 or n_bootstrap < 1:
            raise ValueError(
                f"task.protocol.test_share={test_share}, n_bootstrap={n_bootstrap}: a share between 0 and 1, "
                "and 1 resample or more, are expected"
            )
        self.protocols = protocols
        self.primary = (primary[0], primary[1])
        self.test_share = test_share
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def evaluate(self, embeddings: EmbeddingSet, *, subject: str) -> TaskResult:
        """Scores with intervals, predictions and confusion matrices under every protocol.

        Data without a label, or of one class alone, give a result without scores, and a note that says so.

        Raises:
            ValueError: the test has a class that train lacks, or the split leaks.
        """
        labelled = embeddings.labelled()
        reason = _why_nothing(labelled)
        if reason:
            return self._nothing(reason)
        split = self.split(labelled)
        classes = _classes(labelled.label, split)
        predictions, notes = self._predictions(labelled, split, classes=classes)
        tiles = table_of(labelled.subset(split.test)).assign(subject=subject)
        return TaskResult(
            scores=[
                score for name, found in predictions.items() for score in self._scores(found, subject, name)
            ],
            predictions=pd.concat(
                [_predicted(found, tiles, name) for name, found in predictions.items()], ignore_index=True
            ),
            confusion={name: _confusion(found) for name, found in predictions.items()},
            classes=classes,
            notes=[*split.notes, *notes, *cautions(next(iter(predictions.values())))],
            counts=_counts(split),
            primary=self.primary,
        )

    def check(self, tiles: EmbeddingSet) -> None:
        """Stop at labels and splits that `evaluate` would refuse.

        Raises:
            ValueError: as there.
        """
        labelled = tiles.labelled()
        if not _why_nothing(labelled):
            _classes(labelled.label, self.split(labelled))

    def split(self, labelled: EmbeddingSet) -> Split:
        """Who learns and who is tested, of tiles that all have a label; features don't matter.

        Raises:
            ValueError: a patient is in both parts of a given split, or no test can be drawn.
        """
        return split_tiles(labelled, test_share=self.test_share, seed=self.seed)

    def _predictions(
        self, tiles: EmbeddingSet, split: Split, *, classes: list[str]
    ) -> tuple[dict[str, Predictions], list[str]]:
        """Test tiles as each protocol sees them, by its name, and what the protocols want to be known."""
        truth = np.searchsorted(classes, tiles.label)
        group = np.unique(split.group[split.test], return_inverse=True)[1]
        lesson = Lesson(
            features_ND=tiles.features[split.train],
            class_N=truth[split.train],
            group_N=split.group[split.train],
            n_classes=len(classes),
        )
        predictions, notes = {}, []
        for name, protocol in self.protocols.items():
            score_MC, said = protocol.classify(lesson, tiles.features[split.test])
            predictions[name] = Predictions(
                score_MC=score_MC, truth_M=truth[split.test], group_M=group, classes=classes
            )
            notes += [f"{name} {sentence}" for sentence in said]
        return predictions, notes

    def _scores(self, predictions: Predictions, subject: str, protocol: str) -> list[Score]:
        return scores_of(
            predictions, subject=subject, protocol=protocol, n_bootstrap=self.n_bootstrap, seed=self.seed
        )

    def _nothing(self, reason: str) -> TaskResult:
        counts = dict.fromkeys(("n_train", "n_test", "n_train_groups", "n_test_groups"), 0)
        return TaskResult(
            scores=[],
            predictions=pd.DataFrame(),
            confusion={},
            classes=[],
            counts=counts,
            primary=self.primary,
            notes=[f"{reason}: nothing to score"],
        )


def _why_nothing(labelled: EmbeddingSet) -> str:
    """Why labelled tiles have no score; "" if they have one."""
    if not len(labelled):
        return "no tile of this data set has a label"
    classes = np.unique(labelled.label)
    return f"all labelled tiles are of one class, {classes[0]}" if len(classes) == 1 else ""


def _classes(label: NDArray[np.str_], split: Split) -> list[str]:
    """Classes that train knows, sorted; those of the test are among them.

    Raises:
        ValueError: there is only one, or the test has another.
    """
    known = np.unique(label[split.train])
    unknown = np.setdiff1d(label[split.test], known)
    if len(unknown):
        raise ValueError(
            f"the test has tiles of class {', '.join(unknown)}, train has none (it has {', '.join(known)}): "
            "nobody could get them right; correct the labels or the split"
        )
    if len(known) < 2:
        raise ValueError(
            f"all labelled tiles in train are of class {known[0]}: telling classes apart needs two or more"
        )
    return [str(name) for name in known]


def _counts(split: Split) -> dict[str, int]:
    parts = {"train": split.train, "test": split.test}
    tiles = {f"n_{name}": int(part.sum()) for name, part in parts.items()}
    return tiles | {f"n_{name}_groups": split.n_groups(part) for name, part in parts.items()}


def _predicted(predictions: Predictions, tiles: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Test tiles with the class they were given and the score of each class."""
    classes = np.array(predictions.classes)
    scores = {f"score_{name}": column for name, column in zip(classes, predictions.score_MC.T, strict=True)}
    return tiles.assign(protocol=protocol, predicted=classes[predictions.predicted_M], **scores)


def _confusion(predictions: Predictions) -> list[list[int]]:
    rows: list[list[int]] = predictions.confusion_GCC().sum(axis=0).astype(int).tolist()
    return rows
