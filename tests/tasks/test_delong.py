"""DeLong's test: by hand, by definition, against another implementation, and on data without an effect."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from histo_ssl.tasks.delong import auc_covariance, delong, placements

Floats = NDArray[np.float64]

# Three positives, then two negatives. Of the first encoder V10 = (1, 1/2, 1/2) and V01 = (1, 1/3), of the
# second (1, 1, 0) and (2/3, 2/3). The AUCs are 2/3 both, the differences (0, -1/2, 1/2) and (1/3, -1/3).
TRUTH = np.array([1, 1, 1, 0, 0])
FIRST, SECOND = np.array([5.0, 3.0, 2.0, 1.0, 4.0]), np.array([4.0, 4.0, 1.0, 2.0, 3.0])


def _by_definition(truth_M: NDArray[np.int64], score_KM: Floats) -> tuple[Floats, Floats]:
    """AUCs and covariance from all pairs, as DeLong, DeLong and Clarke-Pearson write them."""
    k = len(score_KM)
    positive, negative = score_KM[:, truth_M == 1], score_KM[:, truth_M == 0]
    m, n = positive.shape[1], negative.shape[1]
    psi = np.zeros((k, m, n))
    for r in range(k):
        for i in range(m):
            for j in range(n):
                x, y = positive[r, i], negative[r, j]
                psi[r, i, j] = 1.0 if y < x else 0.5 if y == x else 0.0
    auc, v10, v01 = psi.mean(axis=(1, 2)), psi.mean(axis=2), psi.mean(axis=1)
    covariance = np.zeros((k, k))
    for r in range(k):
        for s in range(k):
            s10 = sum((v10[r, i] - auc[r]) * (v10[s, i] - auc[s]) for i in range(m)) / (m - 1)
            s01 = sum((v01[r, j] - auc[r]) * (v01[s, j] - auc[s]) for j in range(n)) / (n - 1)
            covariance[r, s] = s10 / m + s01 / n
    return auc, covariance


def _cases(seed: int, *, n: int = 60, decimals: int = 1) -> tuple[NDArray[np.int64], Floats]:
    """A third of the cases positive, two correlated scores of them, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(n) % 3 == 0).astype(np.int64)
    shared = rng.normal(size=n)
    first = truth * 1.2 + shared + rng.normal(size=n)
    second = truth * 0.8 + shared + rng.normal(size=n)
    return truth, np.round(np.stack([first, second]), decimals)


def test_the_components_and_the_test_are_those_worked_out_by_hand() -> None:
    positive, negative = placements(TRUTH, np.stack([FIRST, SECOND]))
    assert positive.tolist() == [[1, 0.5, 0.5], [1, 1, 0]]
    assert negative == pytest.approx(np.array([[1, 1 / 3], [2 / 3, 2 / 3]]))
    found = delong(TRUTH, FIRST, SECOND)
    assert (found.difference, found.p) == (0, 1)
    # Var = (1/4) / 3 + (2/9) / 2.
    assert found.high == pytest.approx(norm.ppf(0.975) * np.sqrt(7 / 36))
    assert found.low == -found.high


@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_give_what_all_pairs_give(seed: int, decimals: int) -> None:
    truth, score_KM = _cases(seed, decimals=decimals)
    auc, covariance = _by_definition(truth, score_KM)
    found_auc, found_covariance = auc_covariance(truth, score_KM)
    assert found_auc == pytest.approx(auc, abs=1e-12)
    assert found_auc == pytest.approx([roc_auc_score(truth, score) for score in score_KM], abs=1e-12)
    assert found_covariance == pytest.approx(covariance, abs=1e-14)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found = delong(truth, score_KM[0], score_KM[1])
    assert found.difference == pytest.approx(auc[0] - auc[1], abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(norm.ppf(0.975) * np.sqrt(variance))
    assert found.p == pytest.approx(2 * norm.sf(abs(auc[0] - auc[1]) / np.sqrt(variance)))


def test_another_implementation_finds_the_same() -> None:
    truth, score_KM = _cases(7)
    # MLstatkit 0.1.91, `Delong_test` of these scores: AUCs, variance of their difference, two-sided p.
    auc, covariance = auc_covariance(truth, score_KM)
    assert auc == pytest.approx([0.615, 0.560625], abs=1e-12)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert variance == pytest.approx(0.005502097039473683, abs=1e-12)
    assert delong(truth, score_KM[0], score_KM[1]).p == pytest.approx(0.4635263395661815, abs=1e-9)


def test_one_encoder_alone_has_its_variance() -> None:
    truth, score_KM = _cases(0)
    assert auc_covariance(truth, score_KM[:1])[1] == pytest.approx(_by_definition(truth, score_KM[:1])[1])


def test_ranks_alone_count_and_the_order_of_cases_does_not() -> None:
    truth, score_KM = _cases(1)
    found = delong(truth, score_KM[0], score_KM[1])
    assert delong(truth.astype(bool), np.exp(score_KM[0]), 7 * score_KM[1] - 3) == found
    order = np.random.default_rng(0).permutation(len(truth))
    shuffled = delong(truth[order], score_KM[0, order], score_KM[1, order])
    assert (shuffled.difference, shuffled.p) == pytest.approx((found.difference, found.p), abs=1e-12)


def test_swapping_encoders_or_classes_turns_the_difference_round() -> None:
    truth, score_KM = _cases(2)
    found = delong(truth, score_KM[0], score_KM[1])
    swapped = delong(truth, score_KM[1], score_KM[0])
    assert (swapped.difference, swapped.low, swapped.p) == (-found.difference, -found.high, found.p)
    other = delong(1 - truth, -score_KM[0], -score_KM[1])  # the same pairs, counted from the other side
    assert (other.difference, other.high, other.p) == pytest.approx((found.difference, found.high, found.p))


def test_equal_scores_differ_by_nothing_for_certain() -> None:
    truth, score_KM = _cases(3)
    same = delong(truth, score_KM[0], np.exp(score_KM[0]))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("n", [3, 7, 49])
def test_cases_that_all_say_the_same_leave_the_spread_unknown(n: int) -> None:
    truth = np.repeat([0, 1], n)
    found = delong(truth, truth.astype(float), -truth.astype(float))
    assert found.difference == 1
    assert np.isnan([found.low, found.high, found.p]).all()


def test_an_interval_ends_where_differences_do() -> None:
    found = delong(np.array([0, 0, 1, 1]), np.array([0.0, 1, 2, 3]), np.array([2.0, 3, 0, 2.5]))
    assert (found.difference, found.high) == (0.75, 1)


def test_without_an_effect_one_test_in_twenty_finds_one() -> None:
    rng = np.random.default_rng(0)
    n, n_tests = 120, 1500
    truth = (np.arange(n) % 4 == 0).astype(np.int64)
    p = np.empty(n_tests)
    for t in range(n_tests):
        shared = truth + rng.normal(size=n)
        p[t] = delong(truth, shared + rng.normal(size=n), shared + rng.normal(size=n)).p
    # SE of a share of .05 among 1,500 is .0056, of one half .013; three of them on either side.
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.017)
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.039)


def test_the_interval_holds_a_difference_that_is_there() -> None:
    rng = np.random.default_rng(1)
    n, n_tests = 150, 1000
    truth = np.arange(n) % 2
    true = norm.cdf(1.5 / np.sqrt(2)) - norm.cdf(0.75 / np.sqrt(2))  # AUC of shifted normals
    held = 0
    for _ in range(n_tests):
        noise = rng.normal(size=(2, n))
        found = delong(truth, 1.5 * truth + noise[0], 0.75 * truth + 0.6 * noise[0] + 0.8 * noise[1])
        held += found.low < true < found.high
    assert held / n_tests == pytest.approx(0.95, abs=0.021)  # three SE of .0069


@pytest.mark.parametrize(
    ("truth", "first", "second", "sentence"),
    [
        (
            [0, 1, 1, 1],
            [1.0, 2, 3, 4],
            [1.0, 2, 3, 4],
            "3 of 4 cases are positive: DeLong's variance needs two",
        ),
        ([0, 0, 0, 0], [1.0, 2, 3, 4], [1.0, 2, 3, 4], "0 of 4 cases are positive"),
        ([0, 0, 1, 1], [1.0, 2, 3, np.nan], [1.0, 2, 3, 4], "a finite score for each case is expected"),
        ([0, 0, 1], [1.0, 2, 3, 4], [1.0, 2, 3, 4], r"scores \(2, 4\) of 3 cases"),
        ([0, 0, 1, 1], [1.0, 2, 3, 4], [1.0, 2, 3], "4 scores of one encoder, 3 of the other"),
    ],
)
def test_what_no_variance_can_be_had_of_is_refused(
    truth: list[int], first: list[float], second: list[float], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        delong(np.array(truth), np.array(first), np.array(second))
