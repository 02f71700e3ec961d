"""What a careful reader finds in folds: patients and sites on two sides, slides and classes never tested.

Letters: n slides, F folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histo_ssl.folds.base import Fold, Ints, Mask
from histo_ssl.folds.names import some


@dataclass(frozen=True, kw_only=True)
class LeakCount:
    """How much of each fold's test its model knew before."""

    folds: list[str]
    n_tested_F: Ints  # test slides
    n_learned_F: Ints  # of them: of a patient that the fold also learns from
    n_chosen_F: Ints  # of them: of a patient that chooses the fold's epoch, and is not learned from
    n_same_site_F: Ints  # of them: from a site that the fold also learns from
    n_valid_F: Ints  # validation slides
    n_shared_F: Ints  # of them: of a patient that the fold also learns from
    n_times_n: Ints  # how many folds test each slide
    n_overlapping: int  # folds that test a slide that another fold tests
    patients: list[str]  # on two sides of a fold

    @property
    def leak(self) -> str:
        """Who is on two sides, in numbers; "" where nobody is."""
        if not self.patients:
            return ""
        n_tested, n_learned = int(self.n_tested_F.sum()), int(self.n_learned_F.sum())
        share_F = self.n_learned_F / self.n_tested_F
        most = int(share_F.argmax())
        worst = f" (most in fold {self.folds[most]}: {share_F[most]:.0%})" if len(self.folds) > 1 else ""
        return (
            f"{n_learned} of {n_tested} test slides ({n_learned / n_tested:.1%}) are of patients that the "
            f"same fold learns from{worst if n_learned else ''}, {self.n_chosen_F.sum()} more of patients "
            f"that choose its epoch; {self.n_shared_F.sum()} of {self.n_valid_F.sum()} validation slides "
            "are of patients learned from"
        )

    @property
    def cautions(self) -> list[str]:
        """What else a reader must know, a sentence each."""
        return [*self._times(), *self._sites()]

    def _times(self) -> list[str]:
        """Whether every slide is tested equally often; nothing to say then."""
        n_ever, n_twice = int((self.n_times_n > 0).sum()), int((self.n_times_n > 1).sum())
        if self.n_times_n.min() == self.n_times_n.max():
            return []
        ever = f"{n_ever} of {len(self.n_times_n)} slides are ever tested"
        if not n_twice:
            return [ever]
        return [
            f"{ever}, {n_twice} of them by several folds ({self.n_overlapping} of {len(self.folds)} folds "
            "overlap), so that folds are not independent"
        ]

    def _sites(self) -> list[str]:
        n_shared = int(self.n_same_site_F.sum())
        if not n_shared:
            return []
        return [
            f"{n_shared / self.n_tested_F.sum():.0%} of the test slides come from a site that is also "
            "learned from: task/folds=sites keeps sites apart"
        ]


def check_leaks(folds: Sequence[Fold], cases: pd.DataFrame, *, allow_leaks: bool) -> list[str]:
    """What a reader of scores from these folds must know, a sentence each.

    Args:
        folds: of the slides in `cases`.
        cases: one row per slide: slide, patient, site ("" unknown), label.
        allow_leaks: count patients that are on two sides, in place of stopping.

    Raises:
        ValueError: a patient is on two sides of a fold, which is told with numbers and names; or a fold has
            nobody to learn from or to test.
    """
    for fold in folds:
        for part, purpose in ((fold.train, "to learn from"), (fold.test, "to test")):
            if not part.any():
                raise ValueError(f"fold {fold.name} has no slide {purpose}; each fold needs some of both")
    count = count_leaks(folds, cases)
    said = [*count.cautions, *_missing_classes(folds, cases)]
    if not count.patients:
        return said
    if not allow_leaks:
        raise ValueError(
            f"{count.leak} ({some(count.patients)}): this flatters scores; give all slides of a patient to "
            "one side, or say task.folds.allow_leaks=true, which has them counted in the report"
        )
    return [f"LEAK: {count.leak}", *said]


def count_leaks(folds: Sequence[Fold], cases: pd.DataFrame) -> LeakCount:
    """What is on two sides of folds (see `check_leaks`)."""
    learned = [leaked(fold, cases, into=fold.train) for fold in folds]
    chosen = [leaked(fold, cases, into=fold.valid) & ~mask for fold, mask in zip(folds, learned, strict=True)]
    shared = [fold.valid & _of_patients(cases, fold.train) for fold in folds]
    site = cases["site"].to_numpy(dtype=str)
    same_site = [fold.test & np.isin(site, site[fold.train]) & (site != "") for fold in folds]
    n_times_n: Ints = np.stack([fold.test for fold in folds]).sum(axis=0)
    return LeakCount(
        folds=[fold.name for fold in folds],
        n_tested_F=_counts([fold.test for fold in folds]),
        n_learned_F=_counts(learned),
        n_chosen_F=_counts(chosen),
        n_same_site_F=_counts(same_site),
        n_valid_F=_counts([fold.valid for fold in folds]),
        n_shared_F=_counts(shared),
        n_times_n=n_times_n,
        n_overlapping=sum(bool((n_times_n[fold.test] > 1).any()) for fold in folds),
        patients=sorted({str(one) for mask in learned + chosen + shared for one in cases["patient"][mask]}),
    )


def leaked(fold: Fold, cases: pd.DataFrame, *, into: Mask) -> Mask:
    """Which slides (n,) are tested while another of their patient is in the part `into`."""
    return fold.test & _of_patients(cases, into)


def _of_patients(cases: pd.DataFrame, part: Mask) -> Mask:
    """Which slides (n,) are of a patient who is in a part."""
    mask: Mask = cases["patient"].isin(cases["patient"][part]).to_numpy()
    return mask


def _counts(masks: Sequence[Mask]) -> Ints:
    return np.array([mask.sum() for mask in masks], dtype=np.int64)


def _missing_classes(folds: Sequence[Fold], cases: pd.DataFrame) -> list[str]:
    """Which classes a fold does not test, or chooses its epoch without."""
    label, said = cases["label"].to_numpy(dtype=str), []
    for name in np.unique(label):
        tests = [fold.name for fold in folds if not (fold.test & (label == name)).any()]
        chooses = [
            fold.name for fold in folds if fold.valid.any() and not (fold.valid & (label == name)).any()
        ]
        for names, does in ((tests, "test"), (chooses, "choose their epoch by")):
            if names:
                said.append(
                    f"{len(names)} of {len(folds)} folds ({some(names)}) {does} no slide of class {name}"
                )
    return said
