"""Labelled tiles x protocols: what frozen embeddings say of a tile's class, by each of several protocols.

A protocol learns from the training tiles and scores the test tiles; split, intervals, predictions and errors
are the task's, so that all protocols are held to the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.base import (
    METRICS,
    Score,
    TaskResult,
    check_finite,
    check_primary,
    check_sampling,
    counts_of,
    table_of,
    without_scores,
)
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.scores import Predictions, cautions, episode_scores, mean_scores
from histo_ssl.tasks.splits import Split, split_tiles


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a protocol may learn from: N training tiles."""

    features_ND: NDArray[np.float32]
    class_N: NDArray[np.int64]  # 0 to C - 1, every one of which is there
    group_N: NDArray[np.int64]  # whose tile it is; equal numbers are the same patient (or slide)
    n_classes: int  # C, 2 or more
    accelerator: str = "auto"  # as Lightning's Trainer takes it; what may be learned on

    @property
    def device(self) -> torch.device:
        """Where a protocol computes that needs no Trainer."""
        on_gpu = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else "cpu")


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What a protocol is asked: M test tiles, and what would be right."""

    features_MD: NDArray[np.float32]
    class_M: NDArray[np.int64]  # 0 to C - 1
    group_M: NDArray[np.int64]  # 0 to G - 1, each of which has a tile


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """What was found for each of M test tiles among the training tiles."""

    values: Mapping[str, NDArray[np.float64]]  # by metric, (M,)
    chances: Mapping[str, float]  # by metric: what a random order reaches
    nearest_M: NDArray[np.int64]  # class of the first that was found


@runtime_checkable
class TileProtocol(Protocol):
    """A way from embeddings to classes."""

    def classify(self, lesson: Lesson, test_MD: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[str]]:
        """Class scores of test tiles, higher is likelier, and what a reader of them must know.

        They are (M, C), or (E, M, C) of a classifier that was made E times from other training tiles.
        """


@runtime_checkable
class Retrieval(Protocol):
    """A way from embeddings to tiles that are alike."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values that each test tile has."""

    def retrieve(self, lesson: Lesson, exam: Exam) -> Retrieved:
        """How good the training tiles are that each test tile finds, by the protocol's own metrics."""


class TileTask:
    """Scores embeddings of labelled tiles (see `conf/task/protocol/tiles.yaml` for what each value means)."""

    labels_are_classes = True

    def __init__(
        self,
        *,
        protocols: Mapping[str, TileProtocol | Retrieval],
        primary: tuple[str, str] | None,
        test_share: float,
        n_bootstrap: int,
        seed: int,
    ) -> None:
        self.primary = _primary(protocols, primary)
        check_sampling(test_share=test_share, n_bootstrap=n_bootstrap)
        self.protocols = protocols
        self.test_share = test_share
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def evaluate(self, embeddings: EmbeddingSet, *, subject: str, accelerator: str = "auto") -> TaskResult:
        """Scores with intervals, predictions and confusion matrices under every protocol.

        Data without a label, or of one class alone, give a result without scores, and a note that says so.

        Raises:
            ValueError: the test has a class that train lacks, the split leaks, or an embedding is not finite.
        """
        labelled = embeddings.labelled()
        check_finite(labelled.features)
        reason = why_nothing(labelled)
        if reason:
            return without_scores(reason, primary=self.primary)
        split = self.split(labelled)
        classes = classes_of(labelled.label, split)
        lesson, exam = _lesson_and_exam(labelled, split, classes)
        lesson = replace(lesson, accelerator=accelerator)
        tiles = table_of(labelled.subset(split.test)).assign(subject=subject)
        found = {
            name: self._outcome(name, protocol, lesson=lesson, exam=exam, classes=classes, subject=subject)
            for name, protocol in self.protocols.items()
        }
        return TaskResult(
            scores=[score for one in found.values() for score in one.scores],
            predictions=pd.concat(
                [tiles.assign(protocol=name, **one.columns) for name, one in found.items()], ignore_index=True
            ),
            confusion={name: one.confusion for name, one in found.items() if one.confusion},
            classes=classes,
            notes=[
                *split.notes,
                *(note for one in found.values() for note in one.notes),
                *cautions(right_of(exam, classes)),
            ],
            counts=counts_of(split),
            primary=self.primary,
        )

    def check(self, tiles: EmbeddingSet) -> None:
        """Stop at labels and splits that `evaluate` would refuse.

        Raises:
            ValueError: as there.
        """
        labelled = tiles.labelled()
        if not why_nothing(labelled):
            classes_of(labelled.label, self.split(labelled))

    def split(self, labelled: EmbeddingSet) -> Split:
        """Who learns and who is tested, of tiles that all have a label; features don't matter.

        Raises:
            ValueError: a patient is in both parts of a given split, or no test can be drawn.
        """
        return split_tiles(labelled, test_share=self.test_share, seed=self.seed)

    def _outcome(
        self,
        name: str,
        protocol: TileProtocol | Retrieval,
        *,
        lesson: Lesson,
        exam: Exam,
        classes: list[str],
        subject: str,
    ) -> "_Outcome":
        asked = Asked(subject=subject, protocol=name, n_bootstrap=self.n_bootstrap, seed=self.seed)
        if isinstance(protocol, Retrieval):
            got = protocol.retrieve(lesson, exam)
            scores = mean_scores(got.values, got.chances, exam.group_M, asked=asked)
            columns = {"predicted": np.array(classes)[got.nearest_M], **got.values}
            return _Outcome(scores=scores, columns=columns, confusion=[], notes=[])
        score_EMC, said = protocol.classify(lesson, exam.features_MD)
        episodes = [
            Predictions(score_MC=score_MC, truth_M=exam.class_M, group_M=exam.group_M, classes=classes)
            for score_MC in (score_EMC if score_EMC.ndim == 3 else score_EMC[None])
        ]
        whole = replace(episodes[0], score_MC=np.mean([one.score_MC for one in episodes], axis=0))
        return _Outcome(
            scores=episode_scores(episodes, asked),
            columns=columns_of(whole),
            confusion=confusion_of(whole),
            notes=[f"{name} {sentence}" for sentence in said],
        )


def _primary(
    protocols: Mapping[str, TileProtocol | Retrieval], asked: tuple[str, str] | None
) -> tuple[str, str]:
    """Protocol and metric that stand for the task: those asked for, or the last one's AUC or first metric."""
    if not protocols:
        raise ValueError("task/protocols=[]: choose one or more of the choices of that group")
    others = [name for name, one in protocols.items() if not isinstance(one, TileProtocol | Retrieval)]
    if others:
        raise ValueError(
            f"{', '.join(others)}: can't tell classes; for labels that are numbers say task=regression, or "
            "protocol: regression in the task's YAML"
        )
    name = asked[0] if asked else list(protocols)[-1]
    chosen = protocols.get(name)
    metrics = chosen.metrics if isinstance(chosen, Retrieval) else METRICS
    metric = asked[1] if asked else ("auc" if "auc" in metrics else metrics[0])
    check_primary((name, metric), protocols=protocols, metrics=metrics)
    return name, metric


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What came of one protocol."""

    scores: list[Score]
    columns: dict[str, NDArray[Any]]  # of the table of predictions, (M,) each
    confusion: list[list[int]]  # empty where there are no classes to confuse
    notes: list[str]


def _lesson_and_exam(tiles: EmbeddingSet, split: Split, classes: list[str]) -> tuple[Lesson, Exam]:
    truth = np.searchsorted(classes, tiles.label)
    lesson = Lesson(
        features_ND=tiles.features[split.train],
        class_N=truth[split.train],
        group_N=split.group[split.train],
        n_classes=len(classes),
    )
    exam = Exam(
        features_MD=tiles.features[split.test],
        class_M=truth[split.test],
        group_M=np.unique(split.group[split.test], return_inverse=True)[1],
    )
    return lesson, exam


def right_of(exam: Exam, classes: list[str]) -> Predictions:
    """What somebody would predict who knows the truth."""
    score_MC = np.eye(len(classes))[exam.class_M]
    return Predictions(score_MC=score_MC, truth_M=exam.class_M, group_M=exam.group_M, classes=classes)


def why_nothing(labelled: EmbeddingSet) -> str:
    """Why labelled tiles have no score; "" if they have one."""
    if not len(labelled):
        return "no tile of this data set has a label"
    classes = np.unique(labelled.label)
    return f"all labelled tiles are of one class, {classes[0]}" if len(classes) == 1 else ""


def classes_of(label: NDArray[np.str_], split: Split) -> list[str]:
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


def columns_of(predictions: Predictions) -> dict[str, NDArray[Any]]:
    """The class that each test tile was given, and the score of each class."""
    classes = np.array(predictions.classes)
    scores = {f"score_{name}": column for name, column in zip(classes, predictions.score_MC.T, strict=True)}
    return {"predicted": classes[predictions.predicted_M], **scores}


def confusion_of(predictions: Predictions) -> list[list[int]]:
    """How many test tiles of each class (row) were given to which (column)."""
    rows: list[list[int]] = predictions.confusion_GCC().sum(axis=0).astype(int).tolist()
    return rows
