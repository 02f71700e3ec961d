"""Scores of predicted risks: Harrell's C within folds, and how groups of high and low risk live on.

Risks of models of different folds have no common scale, so that only patients of one fold are compared.

Letters: F folds, M tested patients of a fold, G patients, R resamples.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from histo_ssl.mil.survival import concordance
from histo_ssl.tasks.base import Score
from histo_ssl.tasks.bootstrap import Asked, Estimated, group_weights, with_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

C_INDEX, FOLD_MEAN_C = "c_index", "fold_mean_c_index"  # metrics
SURVIVAL_METRICS = (C_INDEX, FOLD_MEAN_C)
HIGH, LOW = "high risk", "low risk"


@dataclass(frozen=True, kw_only=True)
class Risks:
    """What a fold's model says of the patients that it is tested on."""

    risk_M: Floats  # the higher, the sooner; comparable within the fold
    time_M: Floats
    event_M: Mask
    group_M: Ints  # number of the patient, the same in every fold
    is_high_M: Mask  # above the median risk of those that the fold learns from

    @cached_property
    def pairs_MM(self) -> tuple[Floats, Floats]:
        """Of each pair whether it is right (half where risks are equal), and whether it can be told."""
        right_MM, known_MM = concordance(self.risk_M, self.time_M, self.event_M)
        return right_MM, known_MM.astype(np.float64)


def survival_scores(folds: Sequence[Risks], asked: Asked) -> list[Score]:
    """C over all pairs of patients of one fold, and the mean of the folds' C, with intervals."""
    n_groups = 1 + max(int(one.group_M.max()) for one in folds)
    n_tiles = sum(len(one.risk_M) for one in folds)
    blocks = group_weights(n_groups, n=asked.n_bootstrap, seed=asked.seed, n_tiles=n_tiles)
    one_R2 = c_indices(folds, np.ones((1, n_groups)))
    drawn_R2 = np.concatenate([c_indices(folds, w_RG) for w_RG in blocks])
    return [
        with_interval(
            Estimated(
                metric=metric,
                label="",
                value=value,
                drawn_R=drawn_R,
                varies=n_groups > 1,
                chance=0.5,
            ),
            asked,
        )
        for metric, value, drawn_R in zip(SURVIVAL_METRICS, one_R2[0], drawn_R2.T, strict=True)
    ]


def c_by_fold(folds: Sequence[Risks]) -> list[float]:
    """Harrell's C of each fold, NaN where no pair can be told."""
    return [float(_sums(one, np.ones((1, len(one.risk_M))))[0, 0]) for one in folds]


def logrank(folds: Sequence[Risks]) -> float:
    """P value of the log-rank test between high and low risk over all folds' patients; NaN without both.

    A patient that several folds test is there as often, which makes p too small: of a partition alone it is
    what it says.
    """
    (high, died_high), (low, died_low) = (_seen(folds, is_high=is_high) for is_high in (True, False))
    if not len(high) or not len(low):
        return float("nan")
    one, other = (stats.CensoredData.right_censored(t, ~e) for t, e in ((high, died_high), (low, died_low)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no event at all: 0 / 0
        return float(stats.logrank(one, other).pvalue)


def curves(folds: Sequence[Risks]) -> pd.DataFrame:
    """Kaplan-Meier curves of high and low risk: group, time, at_risk, survival, low, high (95 %, log-log)."""
    return pd.DataFrame(
        [row for is_high in (True, False) for row in _curve(folds, is_high=is_high)],
        columns=["group", "time", "at_risk", "survival", "low", "high"],
    )


def c_indices(folds: Sequence[Risks], w_RG: Floats) -> Floats:
    """C of all pairs of one fold, and the folds' mean (R, 2), under each weighting of the patients.

    Args:
        folds: of each fold.
        w_RG: weight of each patient, by the number in `group_M`.
    """
    n_R2 = np.zeros((len(w_RG), 2))
    by_fold = []
    for one in folds:
        found_R3 = _sums(one, w_RG[:, one.group_M])
        by_fold.append(found_R3[:, 0])
        n_R2 += found_R3[:, 1:]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a resample that no fold defines
        return np.column_stack([n_R2[:, 0] / n_R2[:, 1], np.nanmean(by_fold, axis=0)])


def _sums(one: Risks, w_RM: Floats) -> Floats:
    """C, and the weights (R, 3) of right pairs and of all that can be told."""
    right_MM, known_MM = one.pairs_MM
    right_R = ((w_RM @ right_MM) * w_RM).sum(axis=1)
    known_R = ((w_RM @ known_MM) * w_RM).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.column_stack([right_R / known_R, right_R, known_R])


def _seen(folds: Sequence[Risks], *, is_high: bool) -> tuple[Floats, Mask]:
    """Times and events of all folds' patients of one group."""
    chosen = [one.is_high_M == is_high for one in folds]
    times = np.concatenate([one.time_M[mask] for one, mask in zip(folds, chosen, strict=True)])
    return times, np.concatenate([one.event_M[mask] for one, mask in zip(folds, chosen, strict=True)])


def _curve(folds: Sequence[Risks], *, is_high: bool) -> Iterator[tuple[str, float, int, float, float, float]]:
    times, events = _seen(folds, is_high=is_high)
    if not len(times):
        return
    found = stats.ecdf(stats.CensoredData.right_censored(times, ~events)).sf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no interval where nobody has died yet
        bounds = found.confidence_interval(method="log-log")
    low, high = (np.asarray(getattr(bounds, end).probabilities) for end in ("low", "high"))
    for row in zip(found.quantiles, found.probabilities, low, high, strict=True):
        time, survival, least, most = map(float, row)
        yield HIGH if is_high else LOW, time, int((times >= time).sum()), survival, least, most
