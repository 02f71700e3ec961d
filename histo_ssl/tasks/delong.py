"""DeLong's test of two AUCs of the same cases, and the covariance behind it.

DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837), from ranks as in Sun and Xu 2014 (IEEE Signal
Processing Letters 21:1389). Cases are taken to be independent: one per patient.

Letters: M cases, P and N of them positive and negative, K encoders.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from histo_ssl.tasks.bootstrap import INTERVAL_PERCENT

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_] | NDArray[np.int64]
Z_95 = float(norm.ppf(INTERVAL_PERCENT[1] / 100))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A score's difference between two encoders on the same patients, the first less the second."""

    difference: float
    low: float  # 95 % interval, NaN where the cases can't tell
    high: float
    p: float  # two-sided, of no difference


def delong(truth_M: Truth, score_a_M: Floats, score_b_M: Floats) -> Paired:
    """DeLong's test of the AUC of `score_a_M` less that of `score_b_M`.

    Args:
        truth_M: 1 (or True) for positive cases, one per patient.
        score_a_M: higher should mean positive; any scale, since ranks alone count.
        score_b_M: of the same cases.

    Returns:
        p = 1 and an interval of no width where both rank the cases alike. An interval and p of NaN where the
        AUCs differ and no case says by how much they might vary (one is 1, the other 0).

    Raises:
        ValueError: lengths differ, a score is not finite, or a class has fewer than two cases.
    """
    score_KM = _scores(score_a_M, score_b_M)
    below_KP, above_KN = _counts(truth_M, score_KM)
    n_positive, n_negative = below_KP.shape[1], above_KN.shape[1]
    # Of differences of counts, which are exact, so that the variance is 0 where they are equal.
    variance_P = (below_KP[0] - below_KP[1]).var(ddof=1) / n_positive
    variance_N = (above_KN[0] - above_KN[1]).var(ddof=1) / n_negative
    difference = float((below_KP[0] - below_KP[1]).mean()) / n_negative
    variance = float(variance_P / n_negative**2 + variance_N / n_positive**2)
    if variance == 0:
        spread, p = (0.0, 1.0) if difference == 0 else (np.nan, np.nan)
    else:
        spread = Z_95 * float(np.sqrt(variance))
        p = float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
    low, high = np.clip([difference - spread, difference + spread], -1, 1).tolist()
    return Paired(difference=difference, low=low, high=high, p=p)


def auc_covariance(truth_M: Truth, score_KM: Floats) -> tuple[Floats, Floats]:
    """AUCs (K,) of several encoders on the same cases, and their covariance (K, K): S10 / P + S01 / N.

    Args:
        truth_M: as of `delong`.
        score_KM: a row per encoder.

    Raises:
        ValueError: as of `delong`.
    """
    positive_KP, negative_KN = placements(truth_M, score_KM)
    n_positive, n_negative = positive_KP.shape[1], negative_KN.shape[1]
    covariance_KK = np.cov(positive_KP) / n_positive + np.cov(negative_KN) / n_negative
    return positive_KP.mean(axis=1), np.atleast_2d(covariance_KK)


def placements(truth_M: Truth, score_KM: Floats) -> tuple[Floats, Floats]:
    """DeLong's structural components V10 (K, P) and V01 (K, N), whose means are both the AUC.

    Args:
        truth_M: as of `delong`.
        score_KM: a row per encoder.

    Returns:
        Of each positive the share of negatives below it, of each negative that of positives above it; a tie
        counts half. Scores (.1, .4, .35, .8) of (-, -, +, +) give (1/2, 1) and (1, 1/2).

    Raises:
        ValueError: as of `delong`.
    """
    below_KP, above_KN = _counts(truth_M, score_KM)
    return below_KP / above_KN.shape[1], above_KN / below_KP.shape[1]


def _scores(score_a_M: Floats, score_b_M: Floats) -> Floats:
    if len(score_a_M) != len(score_b_M):
        raise ValueError(
            f"{len(score_a_M)} scores of one encoder, {len(score_b_M)} of the other: scores of the same "
            "cases are expected"
        )
    return np.stack([score_a_M, score_b_M]).astype(np.float64)


def _counts(truth_M: Truth, score_KM: Floats) -> tuple[Floats, Floats]:
    """How many negatives are below each positive (K, P), how many positives above each negative (K, N)."""
    is_positive_M = np.asarray(truth_M, dtype=bool)
    n_positive = int(is_positive_M.sum())
    if is_positive_M.shape != score_KM.shape[1:] or not np.isfinite(score_KM).all():
        raise ValueError(
            f"scores {score_KM.shape} of {len(is_positive_M)} cases: a finite score for each case is expected"
        )
    if not 2 <= n_positive <= len(is_positive_M) - 2:
        raise ValueError(
            f"{n_positive} of {len(is_positive_M)} cases are positive: DeLong's variance needs two or more "
            "of each class"
        )
    rank_KM = rankdata(score_KM, axis=1)
    positive_KM, negative_KM = score_KM[:, is_positive_M], score_KM[:, ~is_positive_M]
    # The rank among all less the rank in one's own side counts those of the other side below.
    below_KP = rank_KM[:, is_positive_M] - rankdata(positive_KM, axis=1)
    below_KN = rank_KM[:, ~is_positive_M] - rankdata(negative_KM, axis=1)
    return below_KP, n_positive - below_KN
