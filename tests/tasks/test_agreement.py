"""Agreement of numbers, against loops over pairs, scipy, and the worked example of the paper."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from histo_ssl.tasks.agreement import (
    concordance_as_published,
    icc_2_1,
    icc_3_1,
    kendall_tau_b,
    mean_absolute_error,
    mean_squared_error,
    pair_balance,
    prediction_probability,
    spearman,
)

Floats = NDArray[np.float64]
Measure = Callable[[Floats, Floats, Floats], Floats]
# Shrout and Fleiss 1979, table 2: six subjects (rows), rated by four judges.
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float
)
TIED = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=25)


def ones(n: int) -> Floats:
    return np.ones((1, n))


def drawn(n: int, *, n_values: int, seed: int = 0) -> tuple[Floats, Floats]:
    """A reference and a prediction that knows some of it, with ties in both."""
    rng = np.random.default_rng(seed)
    ref = rng.integers(n_values, size=n)
    return ref.astype(float), np.round(ref + rng.normal(0, n_values / 3, size=n))


def pairs_by_loop(ref: Floats, pred: Floats) -> tuple[int, int, int]:
    """Concordant, discordant, and those that are tied in the prediction alone."""
    concordant = discordant = tied = 0
    for i in range(len(ref)):
        for j in range(i):
            if ref[i] == ref[j]:
                continue
            if pred[i] == pred[j]:
                tied += 1
            elif (ref[i] < ref[j]) == (pred[i] < pred[j]):
                concordant += 1
            else:
                discordant += 1
    return concordant, discordant, tied


@given(TIED)
def test_pairs_are_those_that_two_loops_count(rows: list[tuple[int, int]]) -> None:
    ref, pred = np.array(rows, dtype=float).T
    c, d, t = pairs_by_loop(ref, pred)
    assert pair_balance(ref, pred, ones(len(ref)))[0] == c - d
    expected = [(c + t / 2) / (c + d + t), (c + d + t / 2) / (c + 2 * d + t)] if c + d + t else [np.nan] * 2
    found = [f(ref, pred, ones(len(ref)))[0] for f in (prediction_probability, concordance_as_published)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("n", "n_values"), [(7, 3), (185, 21), (150, 5000)])
def test_rank_statistics_are_scipys(n: int, n_values: int) -> None:
    ref, pred = drawn(n, n_values=n_values)
    w = ones(n)
    somers = stats.somersd(ref, pred).statistic
    assert prediction_probability(ref, pred, w)[0] == pytest.approx((somers + 1) / 2, abs=1e-12)
    assert kendall_tau_b(ref, pred, w)[0] == pytest.approx(stats.kendalltau(ref, pred).statistic, abs=1e-12)
    assert spearman(ref, pred, w)[0] == pytest.approx(stats.spearmanr(ref, pred).statistic, abs=1e-12)


@pytest.mark.parametrize(
    "measure",
    [
        prediction_probability,
        kendall_tau_b,
        spearman,
        mean_squared_error,
        mean_absolute_error,
        concordance_as_published,
        lambda ref, pred, w: icc_2_1(np.column_stack([ref, pred]), w),
        lambda ref, pred, w: icc_3_1(np.column_stack([ref, pred]), w),
    ],
)
def test_a_weight_is_how_often_a_tile_is_there(measure: Measure) -> None:
    ref, pred = drawn(40, n_values=6)
    w_RM = np.random.default_rng(1).integers(0, 4, size=(3, 40)).astype(float)
    repeated = [measure(ref.repeat(n), pred.repeat(n), ones(n.sum()))[0] for n in w_RM.astype(int)]
    np.testing.assert_allclose(measure(ref, pred, w_RM), repeated, rtol=1e-12)
    assert len(set(repeated)) == 3


def test_errors_are_means_of_differences() -> None:
    ref, pred = np.array([0.0, 1.0, 0.5]), np.array([0.5, 1.0, -0.5])
    assert mean_squared_error(ref, pred, ones(3))[0] == pytest.approx((0.25 + 0 + 1) / 3)
    assert mean_absolute_error(ref, pred, ones(3))[0] == pytest.approx((0.5 + 0 + 1) / 3)


def test_the_intraclass_correlations_are_those_of_the_worked_example() -> None:
    # Shrout and Fleiss 1979, table 4: .29 and .71.
    assert icc_2_1(SHROUT_FLEISS, ones(6))[0] == pytest.approx(0.29, abs=0.005)
    assert icc_3_1(SHROUT_FLEISS, ones(6))[0] == pytest.approx(0.71, abs=0.005)
    # From the mean squares of its table 3: BMS 11.24, JMS 32.49, EMS 1.02.
    assert icc_2_1(SHROUT_FLEISS, ones(6))[0] == pytest.approx(
        (11.24 - 1.02) / (11.24 + 3 * 1.02 + 4 * (32.49 - 1.02) / 6), abs=5e-4
    )


def test_a_rater_who_is_always_higher_is_consistent_but_disagrees() -> None:
    ref = np.random.default_rng(0).normal(size=50)
    shifted = np.column_stack([ref, ref + 2])
    assert icc_3_1(shifted, ones(50))[0] == pytest.approx(1, abs=1e-12)
    # BMS = 2 var, EMS = 0, JMS = 50 x 2^2 / 2
    variance = ref.var(ddof=1)
    assert icc_2_1(shifted, ones(50))[0] == pytest.approx(2 * variance / (2 * variance + 2 * 100 / 50))


@pytest.mark.parametrize("direction", [1, -1])
def test_perfect_and_reversed_order_are_the_ends_of_the_scales(direction: int) -> None:
    ref = np.random.default_rng(0).normal(size=60)
    ends = {1: (1, 1, 1, 1), -1: (0, -1, -1, 0.5)}[direction]
    measures = (prediction_probability, kendall_tau_b, spearman, concordance_as_published)
    found = [measure(ref, direction * ref**3, ones(60))[0] for measure in measures]
    np.testing.assert_allclose(found, ends, atol=1e-12)


def test_an_order_that_knows_nothing_is_published_as_two_thirds() -> None:
    ref, pred = np.random.default_rng(0).normal(size=(2, 4000))
    # Standard error of P_K without any order: 1/3 / sqrt(4000) = .005, and d value / d P_K = 4/9.
    assert prediction_probability(ref, pred, ones(4000))[0] == pytest.approx(1 / 2, abs=0.015)
    assert concordance_as_published(ref, pred, ones(4000))[0] == pytest.approx(2 / 3, abs=0.007)


@pytest.mark.parametrize(("true", "published"), [(0.792, 0.828), (0.731, 0.788), (0.829, 0.854)])
def test_the_studys_figures_follow_from_the_true_ones(true: float, published: float) -> None:
    assert 1 / (2 - true) == pytest.approx(published, abs=6e-4)
    # Predictions of that P_K: of 401 tiles, the first k in reversed order, which makes k (k - 1) / 2 of D.
    n = 401
    k = round(0.5 + np.sqrt(0.25 + (1 - true) * n * (n - 1)))
    ref = np.arange(n, dtype=float)
    pred = np.concatenate([ref[:k][::-1], ref[k:]])
    found = prediction_probability(ref, pred, ones(n))[0]
    assert found == pytest.approx(true, abs=0.002)
    value = concordance_as_published(ref, pred, ones(n))[0]
    assert value == pytest.approx(published, abs=0.002)
    assert found == pytest.approx(2 - 1 / value, abs=1e-12)


def test_what_one_number_alone_leaves_undefined_is_nan() -> None:
    same, other = np.full(5, 0.3), np.arange(5.0)
    assert np.isnan(prediction_probability(same, other, ones(5))[0])
    assert prediction_probability(other, same, ones(5))[0] == 0.5  # all pairs are ties
    for pair in ((same, other), (other, same)):
        assert np.isnan(kendall_tau_b(*pair, ones(5))[0])
        assert np.isnan(spearman(*pair, ones(5))[0])
    assert np.isnan(icc_2_1(np.array([[1.0, 2.0]]), ones(1))[0])
    assert np.isnan(icc_3_1(np.array([[1.0, 2.0]]), ones(1))[0])


@pytest.mark.parametrize("ref", [0.1, 0.3, 0.7, 1e4 + 0.1])
@pytest.mark.parametrize("pred", [0.1, 0.2, 0.7])
def test_numbers_that_differ_by_rounding_alone_have_no_correlation(ref: float, pred: float) -> None:
    # The mean of seven times 0.1 is not 0.1: such remainders once made an ICC(3,1) of 1, or of -1.
    rating_MJ = np.tile([ref, pred], (7, 1))
    w_1M = np.ones((1, 7))
    assert np.isnan(icc_3_1(rating_MJ, w_1M)[0])
    assert np.isnan(icc_2_1(rating_MJ, w_1M)[0]) or abs(icc_2_1(rating_MJ, w_1M)[0]) < 1e-9


def test_small_differences_of_large_numbers_keep_their_correlation() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(size=(50, 2)) + rng.normal(size=(50, 1))
    for icc in (icc_2_1, icc_3_1):
        value, moved = (icc(rating_MJ, np.ones((1, 50)))[0] for rating_MJ in (small, small + 1e6))
        assert moved == pytest.approx(value, abs=1e-8)
        assert 0.2 < value < 0.8
