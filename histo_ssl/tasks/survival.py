"""Patients with the time that they lived, ordered by bags of their tiles' embeddings: folds x models of bags.

Letters: n cases (patients, or slides), M tested ones, C outputs of a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histo_ssl.mil.bags import Bags
from histo_ssl.mil.base import BagModelFactory
from histo_ssl.mil.survival import Cox, DiscreteTime, Times, quantile_ends
from histo_ssl.mil.training import Recipe
from histo_ssl.tasks.base import ENCODER, Look, TaskResult, Workplace, check_primary
from histo_ssl.tasks.bootstrap import Asked, few_groups
from histo_ssl.tasks.cases import LABEL, PATIENT, SLIDE, Cases
from histo_ssl.tasks.cohort import Cohort, Parts
from histo_ssl.tasks.crossvalidation import FoldRun, Rows, Trainings, check_models, check_validation
from histo_ssl.tasks.lifetimes import EVENT, TIME, check_patients, events, times
from histo_ssl.tasks.looks import looks_of
from histo_ssl.tasks.scores import COVERAGE
from histo_ssl.tasks.survival_scores import (
    FOLD_MEAN_C,
    SURVIVAL_METRICS,
    Risks,
    c_by_fold,
    curves,
    logrank,
    survival_scores,
)

DIED, CENSORED = "died", "censored"  # strata of the folds
OBJECTIVES = ("cox", "discrete")


@dataclass(frozen=True, kw_only=True)
class SurvivalTask:
    """Scores encoders on survival (see `conf/task/protocol/survival.yaml` for what each value means)."""

    models: Mapping[str, BagModelFactory]
    cohort: Cohort
    recipe: Recipe
    objective: str
    n_intervals: int
    n_maps: int
    primary: tuple[str, str] | None
    n_bootstrap: int
    seed: int

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES or self.n_intervals < 2:
            raise ValueError(
                f"task.protocol.objective={self.objective}, n_intervals={self.n_intervals}: one of "
                f"{', '.join(OBJECTIVES)}, and 2 or more, are expected"
            )
        if not self.models:
            raise ValueError("task/models=[]: choose one or more of the choices of that group")
        check_primary(self.judged_by, protocols=self.models, metrics=SURVIVAL_METRICS)
        if self.objective == "cox" and self.recipe.batch_bags < 2:
            raise ValueError(
                "task.recipe.batch_bags=1: Cox's likelihood compares the bags of a step; take 16 or more, or "
                "task.protocol.objective=discrete"
            )

    @property
    def judged_by(self) -> tuple[str, str]:
        """Model and metric that stand for the task."""
        return (self.primary[0], self.primary[1]) if self.primary else (next(iter(self.models)), FOLD_MEAN_C)

    def check_slides(self, slides: pd.DataFrame) -> None:
        """Stop at labels and folds that `evaluate_bags` would refuse, before an encoder is trained.

        Raises:
            ValueError: as there, or a model can't be built.
        """
        parts, times = self._parts(slides)
        objectives = [self._objective(times, fold) for fold in parts.folds]
        check_models(self.models, n_outputs=max(one.n_outputs for one in objectives))

    def evaluate_bags(
        self, features: Path, slides: pd.DataFrame, *, subject: str, place: Workplace
    ) -> TaskResult:
        """Scores of the cases that folds test, with risks, and curves of high and low risk.

        Args:
            features: folder of a file of embeddings per slide.
            slides: the slide list, text, with n_tiles.
            subject: whose embeddings they are.
            place: where folds are kept, and what trains them.

        Raises:
            ValueError: a time or event can't be read, or differs within a patient; nobody died, a patient is
                on both sides of a fold, or embeddings are missing or broken.
        """
        parts, times = self._parts(slides)
        bags = self.cohort.bags(features, parts)
        trainings = Trainings(
            bags=bags,
            objective=lambda fold: self._objective(times, fold),
            recipe=self.recipe,
            seed=self.seed,
            place=place,
            subject=subject,
        )
        runs = trainings.run(self.models, parts.folds)
        found = {
            name: [self._risks(run, times, parts, bags) for run in of_model]
            for name, of_model in runs.items()
        }
        result = self._result(found, parts, subject=subject)
        if subject == ENCODER:
            name = self.judged_by[0]
            result.looks = _looks(runs[name], found[name], bags, name=name, n=self.n_maps)
        return result

    def _parts(self, slides: pd.DataFrame) -> tuple[Parts, Times]:
        cases = self.cohort.cases(slides)
        died = events(cases.table)
        months = times(cases.table)
        if not died.any():
            raise ValueError(
                f"all {len(died)} patients are censored: nobody died, so that no order of risks can be told; "
                "look at the coding of task.labels.columns.event (1 died) or .censorship (1 censored)"
            )
        strata = np.where(died, DIED, CENSORED)
        known = cases.table.assign(**{TIME: months, EVENT: died, LABEL: strata})
        if self.cohort.unit == PATIENT:
            check_patients(known)
        parts = self.cohort.divided(Cases(table=known, notes=cases.notes))
        check_validation(parts.folds, self.recipe)
        return parts, Times(
            time_N=parts.cases[TIME].to_numpy(dtype=np.float64),
            event_N=parts.cases[EVENT].to_numpy(dtype=bool),
        )

    def _objective(self, times: Times, fold: Rows) -> Cox | DiscreteTime:
        if self.objective == "cox":
            return Cox(times=times)
        return DiscreteTime(times=times, ends=quantile_ends(times, fold.train, n_intervals=self.n_intervals))

    def _risks(self, run: FoldRun, times: Times, parts: Parts, bags: Bags) -> Risks:
        """What a fold's model says of those it tests; high is above the median of those it learned from."""
        objective, test = self._objective(times, run.rows), run.rows.test
        learned = objective.risk(run.model.outputs(bags, run.rows.train))
        risk_M = objective.risk(run.output_MC)
        return Risks(
            risk_M=risk_M,
            time_M=times.time_N[test],
            event_M=times.event_N[test],
            group_M=parts.group_n[test],
            is_high_M=risk_M > np.median(learned),
        )

    def _result(self, found: Mapping[str, list[Risks]], parts: Parts, *, subject: str) -> TaskResult:
        names = [fold.name for fold in parts.folds]
        asked = {
            name: Asked(subject=subject, protocol=name, n_bootstrap=self.n_bootstrap, seed=self.seed)
            for name in found
        }
        folds = {name: dict(zip(names, c_by_fold(one), strict=True)) for name, one in found.items()}
        tables = [
            _table(fold, one, parts.cases).assign(protocol=name, subject=subject)
            for name, of_model in found.items()
            for fold, one in zip(parts.folds, of_model, strict=True)
        ]
        return TaskResult(
            scores=[score for name, one in found.items() for score in survival_scores(one, asked[name])],
            predictions=pd.concat(tables, ignore_index=True),
            confusion={},
            classes=[],
            notes=[*parts.notes, *_notes(found, folds, parts)],
            counts=parts.counts,
            primary=self.judged_by,
            tables={
                "curves": pd.concat([curves(one).assign(protocol=name) for name, one in found.items()]),
            },
            folds=folds,
            label_fraction=self.cohort.label_fraction,
        )


def _table(fold: Rows, found: Risks, cases: pd.DataFrame) -> pd.DataFrame:
    """A row for each tested case: who it is, what is known, and its risk."""
    known = cases.iloc[fold.test].reset_index(drop=True)[[SLIDE, PATIENT, TIME, EVENT]]
    return known.assign(fold=fold.name, risk=found.risk_M, is_high=found.is_high_M)


def _notes(
    found: Mapping[str, list[Risks]], folds: Mapping[str, Mapping[str, float]], parts: Parts
) -> list[str]:
    """What the log-rank test says, and what these patients can't tell."""
    notes = [
        f"{name}: risk above the median of the patients learned from against below it, {_logrank(one)}"
        for name, one in found.items()
    ]
    empty = sorted({fold for of in folds.values() for fold, value in of.items() if np.isnan(value)})
    if empty:
        notes.append(
            f"no pair of patients can be told in fold {', '.join(empty)}: it has no part in the scores"
        )
    return notes + few_groups(len(np.unique(parts.group_n)), coverage=COVERAGE)


def _logrank(folds: Sequence[Risks]) -> str:
    p = logrank(folds)
    untold = "no log-rank test: nobody tested died, or all are on one side"
    return untold if np.isnan(p) else f"log-rank p = {p:.2g}"


def _looks(runs: Sequence[FoldRun], found: Sequence[Risks], bags: Bags, *, name: str, n: int) -> list[Look]:
    """The attention of cases of the highest and the lowest risk, of each fold in turn."""
    most = max(len(one.risk_M) for one in found) // 2
    ends = [
        (run, int(run.rows.test[order[place]]), word)
        for turn in range(most)
        for run, order in ((run, np.argsort(one.risk_M)) for run, one in zip(runs, found, strict=True))
        if 2 * turn + 1 < len(order)
        for place, word in ((-1 - turn, "high risk"), (turn, "low risk"))
    ]
    return [
        look
        for run, row, word in ends[:n]
        for look in looks_of(run, bags, row=row, title=f"{name}: {word}", model=name)
    ]
