"""Labelled tiles x regressions: how well frozen embeddings tell a number, such as the share of tumour cells.

A protocol learns from the training tiles and predicts the test tiles; split, intervals and predictions are
the task's. A label is a number, or several with a semicolon between them: those of a tile's readers.

Letters: N training tiles, M test tiles, J readers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.data.base import BETWEEN_READERS
from histo_ssl.embeddings import EmbeddingSet
from histo_ssl.tasks.base import (
    AS_PUBLISHED,
    NUMBER_METRICS,
    TaskResult,
    check_finite,
    check_primary,
    check_sampling,
    counts_of,
    table_of,
    without_scores,
)
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.number_scores import Numbers, number_cautions, number_scores
from histo_ssl.tasks.splits import TEST, TRAIN, VALID, Split, group_keys, split_tiles

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = 3  # tiles: two to learn a line from, one to test it by


@dataclass(frozen=True, kw_only=True)
class NumberLesson:
    """What a regression may learn from: N training tiles, two numbers among them or more."""

    features_ND: NDArray[np.float32]
    number_N: Floats  # the mean of the tile's readers
    group_N: Ints  # whose tile it is; equal numbers are the same patient (or slide)


@runtime_checkable
class NumberProtocol(Protocol):
    """A way from embeddings to numbers."""

    def predict(self, lesson: NumberLesson, test_MD: NDArray[np.float32]) -> tuple[Floats, list[str]]:
        """Numbers of test tiles (M,), and what a reader of them must know."""


class RegressionTask:
    """Scores embeddings of tiles with numbers (see `conf/task/protocol/regression.yaml` for the values)."""

    labels_are_classes = False

    def __init__(
        self,
        *,
        protocols: Mapping[str, NumberProtocol],
        primary: tuple[str, str] | None,
        clip: Sequence[float] | None,
        also: Sequence[str],
        test_share: float,
        n_strata: int,
        n_bootstrap: int,
        seed: int,
    ) -> None:
        self.primary = _primary(protocols, primary)
        check_sampling(test_share=test_share, n_bootstrap=n_bootstrap)
        if n_strata < 1:
            raise ValueError(f"task.protocol.n_strata={n_strata}: a count of 1 or more is expected")
        self.protocols = protocols
        self.clip = _ends(clip)
        unknown = sorted(set(also) - {AS_PUBLISHED})
        if unknown:
            raise ValueError(f"task.protocol.also={list(also)}: {AS_PUBLISHED}, or nothing, is expected")
        self.also = also
        self.test_share = test_share
        self.n_strata = n_strata
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def evaluate(
        self,
        embeddings: EmbeddingSet,
        *,
        subject: str,
        accelerator: str = "auto",  # noqa: ARG002 (its protocols compute on the CPU)
    ) -> TaskResult:
        """Scores with intervals and predictions of every protocol.

        Data without a label, with too few of them or with one number alone give a result without scores, and
        a note that says so.

        Raises:
            ValueError: a label is no number, all of train have the same, the split leaks, or an embedding is
                not finite.
        """
        labelled = embeddings.labelled()
        check_finite(labelled.features)
        rating_NJ = ratings(labelled.label)
        reason = _why_nothing(rating_NJ)
        if reason:
            return without_scores(reason, primary=self.primary)
        split = self.split(labelled)
        lesson, test = _lesson_and_test(labelled, rating_NJ, split)
        tiles = table_of(labelled.subset(split.test)).assign(subject=subject, truth=test.truth_M)
        result = TaskResult(
            scores=[],
            predictions=pd.DataFrame(),
            confusion={},
            classes=[],
            notes=list(split.notes),
            counts=counts_of(split),
            primary=self.primary,
        )
        tables = []
        for name, protocol in self.protocols.items():
            pred_M, said = self._predicted(protocol, lesson, labelled.features[split.test])
            asked = Asked(subject=subject, protocol=name, n_bootstrap=self.n_bootstrap, seed=self.seed)
            result.scores += number_scores(pred_M, test, lesson.number_N, asked, also=self.also)
            result.notes += [f"{name} {sentence}" for sentence in said]
            tables.append(tiles.assign(protocol=name, predicted=pred_M))
        result.predictions = pd.concat(tables, ignore_index=True)
        result.notes += number_cautions(test)
        return result

    def check(self, tiles: EmbeddingSet) -> None:
        """Stop at labels and splits that `evaluate` would refuse.

        Raises:
            ValueError: as there.
        """
        labelled = tiles.labelled()
        rating_NJ = ratings(labelled.label)
        if not _why_nothing(rating_NJ):
            _lesson_and_test(labelled, rating_NJ, self.split(labelled))

    def split(self, labelled: EmbeddingSet) -> Split:
        """Who learns and who is tested, of tiles that all have a number; strata of them spread alike.

        Raises:
            ValueError: a patient is in both parts of a given split, or no test can be drawn.
        """
        number_N = np.nanmean(ratings(labelled.label), axis=1)
        keys, _ = group_keys(labelled)
        free = labelled.split != VALID
        if TEST not in labelled.split and len(np.unique(keys[free])) == 1:
            raise ValueError(
                "all labelled tiles are of one patient (or slide), and nobody else is left to test by: label "
                f"others, name patients or slides, or give every tile a split ({TRAIN}, {TEST})"
            )
        stratum_N = np.zeros(len(labelled), dtype=np.int64)
        stratum_N[free] = strata(number_N[free], keys[free], n_strata=self.n_strata)
        in_strata = replace(labelled, label=stratum_N.astype(str))
        return split_tiles(in_strata, test_share=self.test_share, seed=self.seed)

    def _predicted(
        self, protocol: NumberProtocol, lesson: NumberLesson, test_MD: NDArray[np.float32]
    ) -> tuple[Floats, list[str]]:
        """Predictions to the digits that embeddings have, so that equal tiles tie; cut where it is asked."""
        pred_M, said = protocol.predict(lesson, test_MD)
        rounded_M = pred_M.astype(np.float32).astype(np.float64)
        return (rounded_M if self.clip is None else np.clip(rounded_M, *self.clip)), said


def ratings(label: NDArray[np.str_]) -> Floats:
    """Numbers (N, J) of each tile's readers: of "0.5" and "0.2;0.4", [[.5, NaN], [.2, .4]].

    Raises:
        ValueError: one is no finite number.
    """
    cells = [text.split(BETWEEN_READERS) for text in label.tolist()]
    numbers = [[_number(cell) for cell in row] for row in cells]
    wrong = [text for text, row in zip(label.tolist(), numbers, strict=True) if not np.isfinite(row).all()]
    if wrong:
        raise ValueError(
            f"{len(wrong):,} of {len(label):,} labels are not finite numbers, {wrong[0]!r} for one, and a "
            "regression needs numbers; correct them (an empty label is left out), or tell classes by "
            "task=labelled"
        )
    n_readers = max(map(len, numbers), default=1)
    padded = [row + [np.nan] * (n_readers - len(row)) for row in numbers]
    return np.array(padded, dtype=np.float64).reshape(len(label), n_readers)


def strata(number_N: Floats, keys: NDArray[np.str_], *, n_strata: int) -> Ints:
    """Which of up to n_strata equally large shares of the ordered numbers each tile (N,) belongs to.

    Of fewer shares where one would lie in a single group, which then could not be divided.
    """
    group_N = np.unique(keys, return_inverse=True)[1]
    for n in range(n_strata, 1, -1):
        edges = np.quantile(number_N, np.arange(1, n) / n)
        stratum_N = np.searchsorted(edges, number_N, side="right")
        if all(len(np.unique(group_N[stratum_N == s])) > 1 for s in np.unique(stratum_N)):
            return stratum_N.astype(np.int64)
    return np.zeros(len(number_N), dtype=np.int64)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _primary(protocols: Mapping[str, NumberProtocol], asked: tuple[str, str] | None) -> tuple[str, str]:
    """Protocol and metric that stand for the task: those asked for, or the last one's first metric."""
    if not protocols:
        raise ValueError("task/protocols=[]: choose one or more of least_squares, ridge")
    others = [name for name, one in protocols.items() if not isinstance(one, NumberProtocol)]
    if others:
        raise ValueError(
            f"{', '.join(others)}: can't predict numbers; say task/protocols=[least_squares,ridge]"
        )
    primary = (asked[0], asked[1]) if asked else (list(protocols)[-1], NUMBER_METRICS[0])
    check_primary(primary, protocols=protocols, metrics=NUMBER_METRICS)
    return primary


def _ends(clip: Sequence[float] | None) -> tuple[float, float] | None:
    """Lowest and highest prediction, if they are bounded.

    Raises:
        ValueError: they are not two numbers, the lower one first.
    """
    if clip is None:
        return None
    is_pair = isinstance(clip, list | tuple) and [type(end) in (int, float) for end in clip] == [True, True]
    if not is_pair or clip[0] >= clip[1]:
        raise ValueError(f"task.protocol.clip={clip}: [lowest, highest] is expected, two numbers, or null")
    return clip[0], clip[1]


def _why_nothing(rating_NJ: Floats) -> str:
    """Why labelled tiles have no score; "" if they have one."""
    if not len(rating_NJ):
        return "no tile of this data set has a label"
    if len(rating_NJ) < FEWEST:
        return f"{len(rating_NJ)} labelled tiles, of which a regression needs {FEWEST} or more"
    numbers = np.unique(np.nanmean(rating_NJ, axis=1))
    return f"all labelled tiles have the label {numbers[0]:g}" if len(numbers) == 1 else ""


def _lesson_and_test(tiles: EmbeddingSet, rating_NJ: Floats, split: Split) -> tuple[NumberLesson, Numbers]:
    """What is learned from and what is asked.

    Raises:
        ValueError: all of train have the same number.
    """
    number_N = np.nanmean(rating_NJ, axis=1)[split.train]
    if len(np.unique(number_N)) == 1:
        raise ValueError(
            f"all {len(number_N):,} labelled tiles in train have the label {number_N[0]:g}: there is nothing "
            "to learn; correct the labels or the split"
        )
    lesson = NumberLesson(
        features_ND=tiles.features[split.train], number_N=number_N, group_N=split.group[split.train]
    )
    rating_MJ = rating_NJ[split.test]
    test = Numbers(
        rating_MJ=rating_MJ[:, ~np.isnan(rating_MJ).all(axis=0)],
        group_M=np.unique(split.group[split.test], return_inverse=True)[1],
    )
    return lesson, test
