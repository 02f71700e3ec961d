"""Metrics of many weightings of one test set at once: row r weighs every tile by its own number.

Letters: R weightings, C classes, M test tiles. `n_RCC` are confusion matrices of weights: row = true class,
column = predicted class. A class without a true tile is left out of the means.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def accuracy(n_RCC: Floats) -> Floats:
    """Share (R,) of tiles on the diagonal of confusion matrices; [[3, 1], [1, 3]] gives 0.75."""
    correct_R: Floats = np.trace(n_RCC, axis1=1, axis2=2) / n_RCC.sum(axis=(1, 2))
    return correct_R


def balanced_accuracy(n_RCC: Floats) -> Floats:
    """Mean recall (R,) over the classes that are there; [[4, 0], [1, 1]] gives (1 + 1/2) / 2 = 0.75."""
    return mean_over_defined(_ratio(_diagonal(n_RCC), n_RCC.sum(axis=2)))


def macro_f1(n_RCC: Floats) -> Floats:
    """Mean F1 (R,) over the classes that are there; [[4, 0], [1, 1]] gives (8/9 + 2/3) / 2 = 0.777..."""
    true_RC, predicted_RC = n_RCC.sum(axis=2), n_RCC.sum(axis=1)
    f1_RC = _ratio(2 * _diagonal(n_RCC), true_RC + predicted_RC)
    return mean_over_defined(np.where(true_RC > 0, f1_RC, np.nan))


def auc(score_M: Floats, is_positive_M: Mask, w_RM: Floats) -> Floats:
    """Area under the ROC curve (R,): how often a positive outranks a negative, a tie counting half.

    The Mann-Whitney statistic (Hanley and McNeil 1982) with weights, from running sums over sorted negatives.

    Args:
        score_M: higher should mean positive; any scale.
        is_positive_M: the truth.
        w_RM: weight of each tile, >= 0.

    Returns:
        Scores (.1, .4, .35, .8) of (-, -, +, +) win 3 of 4 pairs: 0.75. NaN where a side has no weight.
    """
    order = np.argsort(score_M[~is_positive_M])
    negatives = score_M[~is_positive_M][order]
    # Column i: weight of the i lowest negatives.
    below = np.zeros((len(w_RM), len(negatives) + 1))
    np.cumsum(w_RM[:, ~is_positive_M][:, order], axis=1, out=below[:, 1:])
    n_lower = np.searchsorted(negatives, score_M[is_positive_M], side="left")
    n_not_higher = np.searchsorted(negatives, score_M[is_positive_M], side="right")
    w_positive = w_RM[:, is_positive_M]
    won_R = (w_positive * (below[:, n_lower] + below[:, n_not_higher])).sum(axis=1) / 2
    return _ratio(won_R, w_positive.sum(axis=1) * below[:, -1])


def mean_over_defined(values_RC: Floats) -> Floats:
    """Mean (R,) over the classes whose value is not NaN; NaN where there is none."""
    is_defined_RC = ~np.isnan(values_RC)
    total_R = np.where(is_defined_RC, values_RC, 0).sum(axis=1)
    return _ratio(total_R, is_defined_RC.sum(axis=1, dtype=float))


def _diagonal(n_RCC: Floats) -> Floats:
    return np.diagonal(n_RCC, axis1=1, axis2=2)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Quotient, NaN where the divisor is 0."""
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return quotient
