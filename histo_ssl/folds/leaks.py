"""What a careful reader finds in folds: patients on two sides, sites on both, slides never tested."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from histo_ssl.folds.base import Fold, Mask

N_NAMED = 3  # patients that an error names


def check_leaks(folds: Sequence[Fold], cases: pd.DataFrame, *, allow_leaks: bool) -> list[str]:
    """What a reader of scores from these folds must know, a sentence each.

    Args:
        folds: of the slides in `cases`.
        cases: one row per slide: slide, patient, site ("" unknown), label.
        allow_leaks: count patients that are on two sides, in place of stopping.

    Raises:
        ValueError: a tested patient is also learned from, or chooses the epoch; names some.
    """
    said = _overlaps(folds, len(cases)) + _sites(folds, cases)
    learned = [leaked(fold, cases, into=fold.train) for fold in folds]
    chosen = [leaked(fold, cases, into=fold.valid) & ~mask for fold, mask in zip(folds, learned, strict=True)]
    patients = sorted({str(name) for mask in learned + chosen for name in cases["patient"][mask]})
    if not patients:
        return said
    n_tested, n_learned, n_chosen = (
        int(np.sum(masks)) for masks in ([f.test for f in folds], learned, chosen)
    )
    counted = (
        f"{n_learned} of {n_tested} test slides ({n_learned / n_tested:.1%}) are of patients that the same "
        f"fold learns from, {n_chosen} more of patients that choose its epoch"
    )
    if not allow_leaks:
        raise ValueError(
            f"{counted} ({', '.join(patients[:N_NAMED])}{', ...' if len(patients) > N_NAMED else ''}): this "
            "flatters scores; give all slides of a patient to one side, or say task.folds.allow_leaks=true, "
            "which has them counted in the report"
        )
    return [f"LEAK: {counted}", *said]


def leaked(fold: Fold, cases: pd.DataFrame, *, into: Mask) -> Mask:
    """Which slides (n,) are tested while another of their patient is in the part `into`."""
    mask: Mask = fold.test & cases["patient"].isin(cases["patient"][into]).to_numpy()
    return mask


def _overlaps(folds: Sequence[Fold], n_slides: int) -> list[str]:
    """Whether every slide is tested once; nothing to say then."""
    n_times = np.sum([fold.test for fold in folds], axis=0)
    n_ever, n_twice = int((n_times > 0).sum()), int((n_times > 1).sum())
    if n_ever == n_slides and n_times.min() == n_times.max():
        return []
    return [
        f"{n_ever} of {n_slides} slides are ever tested, {n_twice} of them by several folds, so that folds "
        "are not independent"
    ]


def _sites(folds: Sequence[Fold], cases: pd.DataFrame) -> list[str]:
    """How many test slides come from a site that their fold also learns from."""
    site = cases["site"].to_numpy(dtype=str)
    shared = [fold.test & np.isin(site, site[fold.train]) & (site != "") for fold in folds]
    n_shared, n_tested = int(np.sum(shared)), sum(int(fold.test.sum()) for fold in folds)
    if not n_shared:
        return []
    return [
        f"{n_shared / n_tested:.0%} of the test slides come from a site that is also learned from: "
        "task/folds=sites keeps sites apart"
    ]
