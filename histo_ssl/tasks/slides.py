"""Slides with one label each, told apart by bags of their tiles' embeddings: folds x models of bags.

A model is trained for every fold and asked of the fold's test slides; the scores come from all folds.

Letters: n cases (slides or patients), M tested ones, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.mil.bags import Bags
from histo_ssl.mil.base import BagModelFactory
from histo_ssl.mil.objectives import Classes
from histo_ssl.mil.training import Recipe
from histo_ssl.tasks.base import ENCODER, METRICS, Look, TaskResult, Workplace, check_primary
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.cases import LABEL
from histo_ssl.tasks.cohort import Cohort, Parts
from histo_ssl.tasks.crossvalidation import FoldRun, Rows, Trainings, check_models, check_validation
from histo_ssl.tasks.fold_scores import FOLD_MEAN, fold_table, pooled_scores
from histo_ssl.tasks.looks import looks
from histo_ssl.tasks.scores import Predictions, cautions

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SlideTask:
    """Scores encoders on slides (see `conf/task/protocol/slides.yaml` for what each value means)."""

    models: Mapping[str, BagModelFactory]
    cohort: Cohort
    recipe: Recipe
    n_maps: int
    primary: tuple[str, str] | None
    n_bootstrap: int
    seed: int

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("task/models=[]: choose one or more of the choices of that group")
        check_primary(self.judged_by, protocols=self.models, metrics=(*METRICS, FOLD_MEAN))

    @property
    def judged_by(self) -> tuple[str, str]:
        """Model and metric that stand for the task."""
        return (self.primary[0], self.primary[1]) if self.primary else (next(iter(self.models)), FOLD_MEAN)

    def check_slides(self, slides: pd.DataFrame) -> None:
        """Stop at labels and folds that `evaluate_bags` would refuse, before an encoder is trained.

        Args:
            slides: the slide list: slide, patient, site, label (text) and n_tiles.

        Raises:
            ValueError: as there, or a model can't be built.
        """
        parts = self._parts(slides)
        check_models(self.models, n_outputs=len(_classes(parts.cases)))

    def evaluate_bags(
        self, features: Path, slides: pd.DataFrame, *, subject: str, place: Workplace
    ) -> TaskResult:
        """Scores of the cases that folds test, with predictions and a table of the folds.

        Args:
            features: folder of a file of embeddings per slide.
            slides: as of `check_slides`.
            subject: whose embeddings they are.
            place: where folds are kept, and what trains them.

        Raises:
            ValueError: no slide has a label, a fold lacks a class, a patient is on both sides of a fold, or
                embeddings are missing or broken.
        """
        parts = self._parts(slides)
        bags = self.cohort.bags(features, parts)
        classes = _classes(parts.cases)
        objective = Classes(
            class_N=np.searchsorted(classes, parts.cases[LABEL]).astype(np.int64), n_outputs=len(classes)
        )
        trainings = Trainings(
            bags=bags,
            objective=lambda rows: objective,  # noqa: ARG005 (every fold learns the same classes)
            recipe=self.recipe,
            seed=self.seed,
            place=place,
            subject=subject,
        )
        runs = trainings.run(self.models, parts.folds)
        result = self._result(runs, parts, classes=classes, subject=subject)
        if subject == ENCODER:  # floors are not shown, only scored
            result.looks = self._looks(runs, parts, bags, classes=classes)
        return result

    def _parts(self, slides: pd.DataFrame) -> Parts:
        cases = self.cohort.cases(slides)
        _classes(cases.table)
        parts = self.cohort.divided(cases)
        check_validation(parts.folds, self.recipe)
        return parts

    def _result(
        self, runs: Mapping[str, list[FoldRun]], parts: Parts, *, classes: list[str], subject: str
    ) -> TaskResult:
        """What the models of all folds amount to."""
        truth = np.searchsorted(classes, parts.cases[LABEL]).astype(np.int64)
        found = {
            name: [_predictions(run, truth, group=parts.group_n, classes=classes) for run in folds]
            for name, folds in runs.items()
        }
        names = [fold.name for fold in parts.folds]
        tables = {name: fold_table(one, names).assign(protocol=name) for name, one in found.items()}
        return TaskResult(
            scores=[
                score
                for name, one in found.items()
                for score in pooled_scores(one, self._asked(name, subject))
            ],
            predictions=pd.concat(
                [
                    _table(fold, one, parts.cases).assign(protocol=name, subject=subject)
                    for name, of_model in found.items()
                    for fold, one in zip(parts.folds, of_model, strict=True)
                ],
                ignore_index=True,
            ),
            confusion={name: _confusion(one) for name, one in found.items()},
            classes=classes,
            notes=[*parts.notes, *cautions(_right(parts, truth, classes))],
            counts=parts.counts,
            primary=self.judged_by,
            tables={"folds": pd.concat(tables.values(), ignore_index=True)},
            folds={
                name: dict(zip(names, table["auc"].tolist(), strict=True)) for name, table in tables.items()
            },
            label_fraction=self.cohort.label_fraction,
        )

    def _looks(
        self, runs: Mapping[str, list[FoldRun]], parts: Parts, bags: Bags, *, classes: list[str]
    ) -> list[Look]:
        """Where the model that stands for the task looked."""
        name = self.judged_by[0]
        truth = np.searchsorted(classes, parts.cases[LABEL]).astype(np.int64)
        found = [_predictions(run, truth, group=parts.group_n, classes=classes) for run in runs[name]]
        return looks(runs[name], found, bags, model=name, n=self.n_maps)

    def _asked(self, name: str, subject: str) -> Asked:
        return Asked(subject=subject, protocol=name, n_bootstrap=self.n_bootstrap, seed=self.seed)


def _classes(cases: pd.DataFrame) -> list[str]:
    """The classes, sorted.

    Raises:
        ValueError: there is only one.
    """
    classes = sorted(set(cases[LABEL]))
    if len(classes) < 2:
        raise ValueError(
            f"all {len(cases)} labelled slides are of class {classes[0]}: telling classes apart needs two or "
            "more"
        )
    return classes


def _predictions(run: FoldRun, truth: Ints, *, group: Ints, classes: list[str]) -> Predictions:
    score_MC = np.exp(run.output_MC - run.output_MC.max(axis=1, keepdims=True))
    return Predictions(
        score_MC=score_MC / score_MC.sum(axis=1, keepdims=True),
        truth_M=truth[run.rows.test],
        group_M=group[run.rows.test],
        classes=classes,
    )


def _table(fold: Rows, found: Predictions, cases: pd.DataFrame) -> pd.DataFrame:
    """A row for each tested case: who it is, its label, and the score of each class."""
    classes = np.array(found.classes)
    scores = {f"score_{name}": column for name, column in zip(classes, found.score_MC.T, strict=True)}
    known = cases.iloc[fold.test].reset_index(drop=True)
    return known.assign(fold=fold.name, predicted=classes[found.predicted_M], **scores)


def _confusion(folds: Sequence[Predictions]) -> list[list[int]]:
    total = sum(one.confusion_GCC().sum(axis=0) for one in folds)
    rows: list[list[int]] = np.asarray(total).astype(int).tolist()
    return rows


def _right(parts: Parts, truth: Ints, classes: list[str]) -> Predictions:
    """What somebody would say of all tested cases who knows the truth."""
    tested = np.unique(np.concatenate([fold.test for fold in parts.folds]))
    group_M = np.unique(parts.group_n[tested], return_inverse=True)[1]
    score_MC = np.eye(len(classes))[truth[tested]]
    return Predictions(score_MC=score_MC, truth_M=truth[tested], group_M=group_M, classes=classes)
