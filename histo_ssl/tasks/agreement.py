"""How far predicted numbers agree with a reference, of many weightings of one test set at once.

Row r weighs every tile by its own number, as in `tasks/metrics.py`; a weight of 2 is the same tile twice, and
the two make no pair of different references. What the weights of a row don't define is NaN.

Letters: R weightings, M test tiles, J raters.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROUNDING = 1e-14  # of a difference of means, as a share of the largest number


def mean_squared_error(ref_M: Floats, pred_M: Floats, w_RM: Floats) -> Floats:
    """Mean squared difference (R,), in the square of the labels' unit; 0 is the best."""
    return _mean(np.square(pred_M - ref_M), w_RM)


def mean_absolute_error(ref_M: Floats, pred_M: Floats, w_RM: Floats) -> Floats:
    """Mean absolute difference (R,), in the labels' unit; 0 is the best."""
    return _mean(np.abs(pred_M - ref_M), w_RM)


def prediction_probability(ref_M: Floats, pred_M: Floats, w_RM: Floats) -> Floats:
    """P_K (R,): how often, of two tiles of different reference, the higher one is predicted higher.

    (C + T/2) / (C + D + T) over the pairs whose reference differs (Smith, Dutton and Smith 1996): C predicted
    in that order, D in the other, T alike. It is (Somers' d(pred | ref) + 1) / 2.

    Returns:
        0-1: 1 in perfect order, 0 in reversed order, 1/2 for predictions that know nothing.
    """
    return (_ratio(pair_balance(ref_M, pred_M, w_RM), _differing(ref_M, w_RM)) + 1) / 2


def kendall_tau_b(ref_M: Floats, pred_M: Floats, w_RM: Floats) -> Floats:
    """Kendall's tau-b (R,), -1 to 1: (C - D) over the geometric mean of the pairs that differ in each."""
    bottom_R = np.sqrt(_differing(ref_M, w_RM) * _differing(pred_M, w_RM))
    return _ratio(pair_balance(ref_M, pred_M, w_RM), bottom_R)


def concordance_as_published(ref_M: Floats, pred_M: Floats, w_RM: Floats) -> Floats:
    """The concordance (R,) that arXiv:2203.00585 prints for BreastPathQ, to hold its figures against P_K.

    A discordant pair is counted as concordant, too, and remains discordant: with C + D in the place of C,
    (C + T/2) / (C + D + T) becomes (C + D + T/2) / (C + 2D + T). So perfect order has 1, reversed order 1/2,
    and no order at all, C = D, 2/3. Without ties in the prediction T = 0 and P_K = C / (C + D), so it is
    1 / (2 - P_K), and P_K = 2 - 1 / value. Where T > 0, which the figures in print leave open, it is
    taken to count half above and once below the line, as in P_K.
    """
    differing_R = _differing(ref_M, w_RM)  # C + D + T
    tied_in_both = np.unique(np.column_stack([ref_M, pred_M]), axis=0, return_inverse=True)[1].ravel()
    tied_R = _differing(tied_in_both, w_RM) - _differing(pred_M, w_RM)
    discordant_R = (differing_R - tied_R - pair_balance(ref_M, pred_M, w_RM)) / 2
    return _ratio(differing_R - tied_R / 2, differing_R + discordant_R)


def spearman(ref_M: Floats, pred_M: Floats, w_RM: Floats) -> Floats:
    """Spearman's rho (R,), -1 to 1: the correlation of the ranks, equal numbers sharing their mean rank."""
    x_RM, y_RM = _ranks(ref_M, w_RM), _ranks(pred_M, w_RM)
    x_RM, y_RM = (a_RM - _mean(a_RM, w_RM)[:, None] for a_RM in (x_RM, y_RM))
    xx_R, yy_R, xy_R = (_mean(product, w_RM) for product in (x_RM**2, y_RM**2, x_RM * y_RM))
    return _ratio(xy_R, np.sqrt(xx_R * yy_R))


def icc_2_1(rating_MJ: Floats, w_RM: Floats) -> Floats:
    """Intraclass correlation ICC(2,1) (R,) of single ratings: absolute agreement of raters drawn at random.

    (BMS - EMS) / (BMS + (J - 1) EMS + J (JMS - EMS) / M), Shrout and Fleiss 1979. A rater who is always .1
    higher agrees less; 1 where all ratings of a tile are equal.

    Args:
        rating_MJ: one column per rater.
        w_RM: weight of each tile.
    """
    between_R, raters_R, error_R = _mean_squares(rating_MJ, w_RM)
    n_raters = rating_MJ.shape[1]
    drift_R = _ratio(n_raters * (raters_R - error_R), w_RM.sum(axis=1))
    return _ratio(between_R - error_R, between_R + (n_raters - 1) * error_R + drift_R)


def icc_3_1(rating_MJ: Floats, w_RM: Floats) -> Floats:
    """Intraclass correlation ICC(3,1) (R,) of single ratings: consistency of these very raters.

    (BMS - EMS) / (BMS + (J - 1) EMS), Shrout and Fleiss 1979: a rater who is always .1 higher agrees as well.
    """
    between_R, _, error_R = _mean_squares(rating_MJ, w_RM)
    return _ratio(between_R - error_R, between_R + (rating_MJ.shape[1] - 1) * error_R)


def pair_balance(ref_M: Floats, pred_M: Floats, w_RM: Floats) -> Floats:
    """C - D (R,): weight of the pairs that both put in the same order, less that of those they don't.

    Two references differ first at one bit of their ranks, which parts the pairs by bits. For each bit, sorted
    running sums count the pairs whose upper ranks are equal: M log(M)^2 in all, on any number of weightings.

    Returns:
        Of 1, 2, 3 predicted as 1, 3, 2: 2 - 1 = 1.
    """
    ref, pred = (np.unique(values, return_inverse=True)[1].astype(np.int64) for values in (ref_M, pred_M))
    total_R = np.zeros(len(w_RM))
    for bit in range(int(ref.max()).bit_length()):
        key = (ref >> (bit + 1)) * len(pred) + pred
        order = np.argsort(key, kind="stable")
        key, is_upper, w_ordered = key[order], (ref[order] >> bit & 1).astype(bool), w_RM[:, order]
        before = np.zeros((len(w_RM), len(pred) + 1))
        np.cumsum(np.where(is_upper, 0, w_ordered), axis=1, out=before[:, 1:])
        first, last = (key // len(pred) * len(pred) + end for end in (0, len(pred)))
        places = [(first, "left"), (key, "left"), (key, "right"), (last, "left")]
        start, below, not_above, stop = (np.searchsorted(key, k[is_upper], side=side) for k, side in places)  # type: ignore[call-overload]
        balance = before[:, below] - before[:, start] - before[:, stop] + before[:, not_above]
        total_R += (w_ordered[:, is_upper] * balance).sum(axis=1)
    return total_R


def _differing(value_M: NDArray[np.generic], w_RM: Floats) -> Floats:
    """Weight (R,) of the pairs whose values differ."""
    squares_R = np.square(_per_value(value_M, w_RM)[0]).sum(axis=1)
    pairs_R: Floats = (np.square(w_RM.sum(axis=1)) - squares_R) / 2
    return pairs_R


def _ranks(value_M: Floats, w_RM: Floats) -> Floats:
    """Mean rank (R, M) of each tile among all, from 1 on; (7, 9, 7) has (1.5, 3, 1.5)."""
    w_RV, place_M = _per_value(value_M, w_RM)
    rank_RM: Floats = (np.cumsum(w_RV, axis=1) - (w_RV - 1) / 2)[:, place_M]
    return rank_RM


def _per_value(value_M: NDArray[np.generic], w_RM: Floats) -> tuple[Floats, Ints]:
    """Weight (R, V) of each value, ascending, and which value each tile has."""
    place_M = np.unique(value_M, return_inverse=True)[1].astype(np.int64)
    order = np.argsort(place_M, kind="stable")
    starts = np.flatnonzero(np.diff(place_M[order], prepend=-1))
    return np.add.reduceat(w_RM[:, order], starts, axis=1), place_M


def _mean_squares(rating_MJ: Floats, w_RM: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean squares (R,) between tiles, between raters and of the rest, in a two-way analysis of variance.

    What rounding alone could have made of equal numbers is 0: the quotient of two such sums is anything.
    """
    n_R, n_raters = w_RM.sum(axis=1), rating_MJ.shape[1]
    rater_RJ = _ratio(w_RM @ rating_MJ, np.repeat(n_R[:, None], n_raters, axis=1))
    grand_R = rater_RJ.mean(axis=1)
    tile_RM = rating_MJ.mean(axis=1) - grand_R[:, None]
    between_R = n_raters * (w_RM * np.square(tile_RM)).sum(axis=1)
    raters_R = n_R * np.square(rater_RJ - grand_R[:, None]).sum(axis=1)
    error_R = np.zeros(len(w_RM))
    for rating_M, rater_R in zip(rating_MJ.T, rater_RJ.T, strict=True):
        error_R += (w_RM * np.square(rating_M - rater_R[:, None] - tile_RM)).sum(axis=1)
    rounding_R = n_R * n_raters * np.square(ROUNDING * np.abs(rating_MJ).max())
    between_R, error_R = (np.where(x_R > rounding_R, x_R, 0.0) for x_R in (between_R, error_R))
    return (
        _ratio(between_R, n_R - 1),
        raters_R / (n_raters - 1),
        _ratio(error_R, (n_R - 1) * (n_raters - 1)),
    )


def _mean(values: Floats, w_RM: Floats) -> Floats:
    return _ratio((values * w_RM).sum(axis=1), w_RM.sum(axis=1))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Quotient, NaN where the divisor is 0."""
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return quotient
