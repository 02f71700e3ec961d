"""Who takes part in a cross-validation of slides: cases with their labels, in folds.

Letters: n cases (slides, or patients with all their slides).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.folds.base import Fold, Folding
from histo_ssl.folds.fractions import with_fraction
from histo_ssl.mil.bags import Bags, PatientBags, SlideBags
from histo_ssl.tasks.cases import LABEL, PATIENT, SLIDE, UNITS, Cases, Labels
from histo_ssl.tasks.crossvalidation import Rows

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The cases of a cross-validation, and how its folds divide them."""

    slides: pd.DataFrame  # one row per slide
    cases: pd.DataFrame  # one row per bag
    folds: list[Rows]
    notes: list[str]

    @property
    def group_n(self) -> Ints:
        """Number of the patient of each case."""
        return np.unique(self.cases[PATIENT], return_inverse=True)[1].astype(np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """Bags and patients that any fold learns from, and that any tests."""
        counts: dict[str, int] = {}
        for part in ("train", "test"):
            rows = np.unique(np.concatenate([getattr(fold, part) for fold in self.folds]))
            counts |= {f"n_{part}": len(rows), f"n_{part}_groups": len(np.unique(self.group_n[rows]))}
        return {**counts, "n_folds": len(self.folds)}


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Labelled slides and their division (see `conf/task/slides.yaml` for what each value means)."""

    labels: Labels
    folds: Folding
    unit: str
    label_fraction: float
    only_folds: Sequence[str] | None
    seed: int

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"task.unit={self.unit}: choose one of {', '.join(UNITS)}")

    def cases(self, slides: pd.DataFrame) -> Cases:
        """The slides that have a label and tiles, by the labels' own rules."""
        return self.labels.cases(slides)

    def divided(self, cases: Cases) -> Parts:
        """Cases in folds; slides with one label of each patient where a patient is a case.

        Raises:
            ValueError: a fold can't be drawn or leaks, lacks a class to learn from, or is not there.
        """
        folds, notes = self.folds.split(cases.table)
        table = cases.table
        if self.unit == PATIENT:
            table, folds = _by_patient(table, folds)
        drawn = [with_fraction(fold, table, fraction=self.label_fraction, seed=self.seed) for fold in folds]
        rows = [_rows(fold) for fold in drawn]
        for fold in rows:
            _check_classes(fold, table)
        wanted = self._wanted(rows)
        return Parts(slides=cases.table, cases=table, folds=wanted, notes=[*cases.notes, *notes])

    def bags(self, features: Path, parts: Parts) -> Bags:
        """The bags of the cases, from a folder of a file of embeddings per slide."""
        bags = SlideBags(features, parts.slides[SLIDE].tolist())
        return PatientBags(bags, parts.slides[PATIENT].tolist()) if self.unit == PATIENT else bags

    def _wanted(self, rows: list[Rows]) -> list[Rows]:
        names = [fold.name for fold in rows]
        unknown = sorted(set(self.only_folds or ()) - set(names))
        if unknown:
            raise ValueError(
                f"task.only_folds={list(self.only_folds or ())}: no fold {', '.join(unknown)}; there are "
                f"{', '.join(names)}"
            )
        return [fold for fold in rows if self.only_folds is None or fold.name in self.only_folds]


def _check_classes(fold: Rows, cases: pd.DataFrame) -> None:
    """Refuse a fold whose training has not all classes: its model could never name one."""
    missing = sorted(set(cases[LABEL]) - set(cases[LABEL].iloc[fold.train]))
    if missing:
        raise ValueError(
            f"fold {fold.name}: none of its {len(fold.train)} slides to learn from is of class "
            f"{', '.join(missing)}; take fewer folds, or label more slides"
        )


def _rows(fold: Fold) -> Rows:
    train, valid, test = (np.flatnonzero(part) for part in (fold.train, fold.valid, fold.test))
    return Rows(name=fold.name, train=train, valid=valid, test=test)


def _by_patient(table: pd.DataFrame, folds: Sequence[Fold]) -> tuple[pd.DataFrame, list[Fold]]:
    """A row per patient in place of one per slide, and the folds of these."""
    patients, first, place = np.unique(table[PATIENT], return_index=True, return_inverse=True)
    n_labels = table.groupby(PATIENT)[LABEL].nunique()
    if (n_labels > 1).any():
        raise ValueError(
            f"task.unit=patient: patient {n_labels.idxmax()} has slides of {n_labels.max()} classes; give "
            "each patient one label, or say task.unit=slide"
        )
    merged = [
        Fold(
            name=fold.name,
            train=_any(fold.train, place, len(patients)),
            valid=_any(fold.valid, place, len(patients)),
            test=_any(fold.test, place, len(patients)),
        )
        for fold in folds
    ]
    return table.iloc[first].reset_index(drop=True), merged


def _any(mask: NDArray[np.bool_], place: Ints, n: int) -> NDArray[np.bool_]:
    """Which of n patients have a slide in a part."""
    return np.bincount(place, weights=mask, minlength=n) > 0
