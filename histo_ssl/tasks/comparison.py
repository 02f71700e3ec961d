"""Whether one encoder tells the same patients apart better than another: paired tests of their predictions.

DeLong's test is for one prediction per patient. Where patients have several slides, and for other scores,
of survival too, patients are resampled, the same ones for both encoders.

Both ask how the difference would move with other patients to be tested. What another training, or another
division into folds, would change is in neither: a small p says nothing of seeds.

Letters: R resamples, G patients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.tasks.bootstrap import INTERVAL_PERCENT, group_weights
from histo_ssl.tasks.cases import LABEL, PATIENT, SLIDE
from histo_ssl.tasks.delong import Paired, delong, placements
from histo_ssl.tasks.fold_scores import FOLD_MEAN, mean_auc
from histo_ssl.tasks.lifetimes import EVENT, TIME
from histo_ssl.tasks.scores import Predictions, score_names, values_of
from histo_ssl.tasks.survival_scores import SURVIVAL_METRICS, Risks, c_indices

Floats = NDArray[np.float64]
Metric = Callable[[Floats], Floats]  # weights of the patients (R, G) -> score (R,), NaN where there is none
FOLD, SCORE = "fold", "score_"  # a column of predictions.csv, and how those of the classes begin
KNOWN = [FOLD, SLIDE, PATIENT, LABEL]
RISK, IS_HIGH = "risk", "is_high"
KNOWN_OF_RISKS = [FOLD, SLIDE, PATIENT, TIME, EVENT]
DELONG, BOOTSTRAP = "delong", "bootstrap"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A score of two encoders, and the test of its difference."""

    metric: str  # "auc" of all folds' predictions together, FOLD_MEAN, or one of SURVIVAL_METRICS
    test: str  # DELONG or BOOTSTRAP
    first: float
    second: float
    paired: Paired


def paired_bootstrap(
    first: Metric, second: Metric, *, n_groups: int, n_tiles: int, n_bootstrap: int, seed: int
) -> Paired:
    """The difference of any score of two encoders, by resampling patients, the same ones for both.

    The interval is of percentiles; p is twice the smaller share of resamples on either side of no difference,
    with the test itself counted as one of them (Davison and Hinkley 1997, section 4.2).

    Args:
        first: score of the first encoder as a function of weights of the patients.
        second: of the second.
        n_groups: patients.
        n_tiles: predictions, by which the memory is measured out.
        n_bootstrap: resamples; p is never below 2 / (n_bootstrap + 1).
        seed: of the resamples.

    Returns:
        NaN for interval and p with one patient, or where no resample defines both scores.
    """
    difference = float((first(np.ones((1, n_groups))) - second(np.ones((1, n_groups))))[0])
    blocks = group_weights(n_groups, n=n_bootstrap, seed=seed, n_tiles=n_tiles)
    drawn_R = np.concatenate([first(w_RG) - second(w_RG) for w_RG in blocks])
    drawn_R = drawn_R[~np.isnan(drawn_R)]
    if n_groups < 2 or not len(drawn_R):
        return Paired(difference=difference, low=np.nan, high=np.nan, p=np.nan)
    low, high = np.percentile(drawn_R, INTERVAL_PERCENT).tolist()
    beyond = min((drawn_R <= 0).sum(), (drawn_R >= 0).sum())
    p = min(1.0, float(2 * (1 + beyond) / (1 + len(drawn_R))))
    return Paired(difference=difference, low=low, high=high, p=p)


def compare(first: pd.DataFrame, second: pd.DataFrame, *, n_bootstrap: int, seed: int) -> list[Comparison]:
    """Two encoders by the predictions that models of their bags made in the same folds.

    The AUC of all predictions together is compared by DeLong's test where there are two classes and one
    prediction per patient, else by resampling patients; the mean over folds by resampling.

    Args:
        first: rows of `predictions.csv` of one subject and protocol: slide, patient, label, fold and a column
            score_<class> for each class.
        second: of another.
        n_bootstrap: resamples of the patients.
        seed: of the resamples.

    Raises:
        ValueError: they lack a column, or are not of the same slides, folds, labels and classes.
    """
    first, second = (_sorted(table, KNOWN) for table in (first, second))
    _check_same(first, second, KNOWN)
    folds = [_folds(table) for table in (first, second)]
    pooled = [_predictions(table, table) for table in (first, second)]
    n_groups = pooled[0].n_groups
    sizes = {"n_groups": n_groups, "n_tiles": len(first), "n_bootstrap": n_bootstrap, "seed": seed}
    has_delong = len(pooled[0].classes) == 2 and n_groups == len(first) and _n_fewest(pooled[0]) > 1
    whole = (
        _by_delong(*pooled)
        if has_delong
        else _by_resampling("auc", _auc(pooled[0]), _auc(pooled[1]), **sizes)
    )
    return [whole, _by_resampling(FOLD_MEAN, _mean_over(folds[0]), _mean_over(folds[1]), **sizes)]


def compare_risks(
    first: pd.DataFrame, second: pd.DataFrame, *, n_bootstrap: int, seed: int
) -> list[Comparison]:
    """Two encoders by the risks that models of their bags gave the same patients in the same folds.

    Harrell's C over all pairs of patients of one fold, and the mean of the folds' C, by resampling patients.

    Args:
        first: rows of `predictions.csv` of one subject and protocol: slide, patient, time, event, fold, risk
            and is_high.
        second: of another.
        n_bootstrap: resamples of the patients.
        seed: of the resamples.

    Raises:
        ValueError: they lack a column, or are not of the same slides, folds, times and events.
    """
    first, second = (_sorted(table, KNOWN_OF_RISKS) for table in (first, second))
    _check_same(first, second, KNOWN_OF_RISKS)
    folds = [_risks(table) for table in (first, second)]
    sizes = {
        "n_groups": first[PATIENT].nunique(),
        "n_tiles": len(first),
        **{"n_bootstrap": n_bootstrap, "seed": seed},
    }
    return [
        _by_resampling(metric, _c_index(folds[0], place), _c_index(folds[1], place), **sizes)
        for place, metric in enumerate(SURVIVAL_METRICS)
    ]


def _by_resampling(
    metric: str, of_first: Metric, of_second: Metric, *, n_groups: int, **sizes: int
) -> Comparison:
    whole = np.ones((1, n_groups))
    return Comparison(
        metric=metric,
        test=BOOTSTRAP,
        first=float(of_first(whole)[0]),
        second=float(of_second(whole)[0]),
        paired=paired_bootstrap(of_first, of_second, n_groups=n_groups, **sizes),
    )


def _sorted(table: pd.DataFrame, known: Sequence[str]) -> pd.DataFrame:
    missing = [name for name in known if name not in table]
    if missing:
        raise ValueError(
            f"predictions without {', '.join(missing)}: those of a task on slides have {', '.join(known)}"
        )
    return table.sort_values([FOLD, SLIDE]).reset_index(drop=True)


def _check_same(first: pd.DataFrame, second: pd.DataFrame, known: Sequence[str]) -> None:
    """Refuse tables, sorted, that are not of the same tests."""
    scores = [{name for name in table.columns if name.startswith(SCORE)} for table in (first, second)]
    is_same = (
        len(first) == len(second) and scores[0] == scores[1] and first[[*known]].equals(second[[*known]])
    )
    if not is_same or first[[FOLD, SLIDE]].duplicated().any():
        rows = [set(zip(table[FOLD], table[SLIDE], strict=True)) for table in (first, second)]
        alone = sorted(rows[0] ^ rows[1])
        such = f" (such as slide {alone[0][1]} in fold {alone[0][0]}, which one has alone)" if alone else ""
        raise ValueError(
            f"predictions of {len(first)} and {len(second)} slides can't be compared in pairs{such}: one "
            "protocol, the same slides, labels and folds are expected"
        )


def _by_delong(first: Predictions, second: Predictions) -> Comparison:
    score_KM = np.stack([first.score_MC[:, 1], second.score_MC[:, 1]])
    auc_K = placements(first.truth_M, score_KM)[0].mean(axis=1)
    paired = delong(first.truth_M, score_KM[0], score_KM[1])
    return Comparison(metric="auc", test=DELONG, first=auc_K[0], second=auc_K[1], paired=paired)


def _n_fewest(predictions: Predictions) -> int:
    """Cases of the rarest class."""
    return int(np.bincount(predictions.truth_M, minlength=len(predictions.classes)).min())


def _auc(predictions: Predictions) -> Metric:
    place = score_names(predictions).index(("auc", ""))
    return lambda w_RG: values_of(predictions, w_RG)[:, place]


def _mean_over(folds: Sequence[Predictions]) -> Metric:
    return lambda w_RG: mean_auc(folds, w_RG)


def _folds(table: pd.DataFrame) -> list[Predictions]:
    return [_predictions(rows, table) for _, rows in table.groupby(FOLD)]


def _predictions(rows: pd.DataFrame, table: pd.DataFrame) -> Predictions:
    """Some rows of a table, with the patients numbered as in all of it."""
    names = sorted(name for name in table.columns if name.startswith(SCORE))
    classes = [name.removeprefix(SCORE) for name in names]
    patients = np.unique(table[PATIENT].to_numpy(dtype=str))
    return Predictions(
        score_MC=rows[names].to_numpy(dtype=np.float64),
        truth_M=np.array([classes.index(label) for label in rows[LABEL]], dtype=np.int64),
        group_M=np.searchsorted(patients, rows[PATIENT].to_numpy(dtype=str)),
        classes=classes,
    )


def _c_index(folds: Sequence[Risks], place: int) -> Metric:
    return lambda w_RG: c_indices(folds, w_RG)[:, place]


def _risks(table: pd.DataFrame) -> list[Risks]:
    """What the model of each fold said, with the patients numbered as in all of the table."""
    patients = np.unique(table[PATIENT].to_numpy(dtype=str))
    return [
        Risks(
            risk_M=rows[RISK].to_numpy(dtype=np.float64),
            time_M=rows[TIME].to_numpy(dtype=np.float64),
            event_M=rows[EVENT].to_numpy(dtype=bool),
            group_M=np.searchsorted(patients, rows[PATIENT].to_numpy(dtype=str)),
            is_high_M=rows[IS_HIGH].to_numpy(dtype=bool),
        )
        for _, rows in table.groupby(FOLD)
    ]
