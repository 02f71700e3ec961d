"""Least squares and ridge against their closed forms; the penalty is chosen by patients."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

from histo_ssl.tasks.regression import NumberLesson
from histo_ssl.tasks.regressors import LeastSquares, RidgeRegression

GRID = [0.01, 1.0, 100.0, 10000.0]
Floats = NDArray[np.float64]


def least_squares() -> LeastSquares:
    return LeastSquares(rank_tolerance=1e-6)


def lesson(features: Floats, number: Floats, group: NDArray[np.int64] | None = None) -> NumberLesson:
    whose = np.arange(len(number)) if group is None else group
    return NumberLesson(features_ND=features.astype(np.float32), number_N=number, group_N=whose)


def noisy(n: int, *, dim: int = 5) -> tuple[Floats, Floats]:
    """Embeddings as float32 has them, and numbers that are a sum of them with noise."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(n, dim)) * 3 + 7).astype(np.float32).astype(np.float64)
    return features, features.sum(axis=1) + rng.normal(size=n)


def test_least_squares_solve_the_normal_equations_with_an_intercept() -> None:
    features, number = noisy(60)
    with_one = np.column_stack([np.ones(60), features])
    weights = np.linalg.solve(with_one[:50].T @ with_one[:50], with_one[:50].T @ number[:50])
    found, notes = least_squares().predict(
        lesson(features[:50], number[:50]), features[50:].astype(np.float32)
    )
    np.testing.assert_allclose(found, with_one[50:] @ weights, rtol=1e-9)
    assert notes == []


def test_of_many_exact_fits_it_is_the_one_of_the_smallest_weights_and_says_so() -> None:
    features, number = noisy(14, dim=30)
    centred = features[:10] - features[:10].mean(axis=0)
    weights = np.linalg.pinv(centred) @ (number[:10] - number[:10].mean())
    expected = (features[10:] - features[:10].mean(axis=0)) @ weights + number[:10].mean()
    found, notes = least_squares().predict(
        lesson(features[:10], number[:10]), features[10:].astype(np.float32)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert notes == [
        "has 30 weights for 10 training tiles and can fit them exactly: ridge is the steadier of the two"
    ]


def test_columns_that_repeat_others_change_no_prediction() -> None:
    features, number = noisy(60)
    doubled = np.column_stack([features, features])
    tests = [x[50:].astype(np.float32) for x in (features, doubled)]
    once, none = least_squares().predict(lesson(features[:50], number[:50]), tests[0])
    twice, notes = least_squares().predict(lesson(doubled[:50], number[:50]), tests[1])
    np.testing.assert_allclose(once, twice, rtol=1e-9)
    assert none == []
    assert notes == ["tells 5 of 10 dimensions apart: of equal fits it takes the smallest weights"]


def test_what_float32_rounds_away_is_no_dimension() -> None:
    # Shares add up to 1 but for rounding, as the colour floor's do: their sum tells nothing.
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(6), size=300).astype(np.float32)
    number = share[:, 0] + rng.normal(scale=0.1, size=300)
    found, notes = least_squares().predict(lesson(share[:200], number[:200]), share[200:])
    reference = LinearRegression().fit(share[:200, :5].astype(float), number[:200])
    np.testing.assert_allclose(found, reference.predict(share[200:, :5].astype(float)), atol=1e-5)
    assert notes == ["tells 5 of 6 dimensions apart: of equal fits it takes the smallest weights"]


@pytest.mark.parametrize("dim", [5, 90])
def test_least_squares_are_scikit_learns(dim: int) -> None:
    features, number = noisy(60, dim=dim)
    reference = LinearRegression().fit(features[:50], number[:50]).predict(features[50:])
    found, _ = least_squares().predict(lesson(features[:50], number[:50]), features[50:].astype(np.float32))
    np.testing.assert_allclose(found, reference, rtol=1e-9)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0])
def test_a_tolerance_that_is_no_share_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="a share, 0 or more and below 1"):
        LeastSquares(rank_tolerance=tolerance)


@pytest.mark.parametrize("alpha", [0.5, 40.0])
def test_ridge_solves_its_equations_on_features_standardised_by_train(alpha: float) -> None:
    features, number = noisy(60)
    mean, sd = features[:50].mean(axis=0), features[:50].std(axis=0)
    x, y = (features[:50] - mean) / sd, number[:50] - number[:50].mean()
    weights = np.linalg.solve(x.T @ x + alpha * np.eye(5), x.T @ y)
    taught = lesson(features[:50], number[:50])
    found, notes = RidgeRegression(alphas=[alpha], n_folds=5).predict(
        taught, features[50:].astype(np.float32)
    )
    expected = (features[50:] - mean) / sd @ weights + number[:50].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert notes == []


def test_the_penalty_has_the_lowest_error_on_patients_that_were_left_out() -> None:
    features, number = noisy(40)
    number = number + 30 * np.random.default_rng(1).normal(size=40)  # so that some penalty helps
    group = np.arange(40) // 8
    errors = {}
    for alpha in GRID:
        only = RidgeRegression(alphas=[alpha], n_folds=5)
        errors[alpha] = np.mean(
            [
                np.mean(
                    (
                        only.predict(
                            lesson(features[group != g], number[group != g]),
                            features[group == g].astype(np.float32),
                        )[0]
                        - number[group == g]
                    )
                    ** 2
                )
                for g in range(5)
            ]
        )
    alpha, _ = RidgeRegression(alphas=GRID, n_folds=5)._alpha(lesson(features, number, group))
    assert alpha == min(errors, key=errors.__getitem__)
    assert alpha not in (GRID[0], GRID[-1])


def test_no_patient_is_on_both_sides_of_a_fold() -> None:
    # Each patient has a direction of its own that tells its number: it helps with that patient alone.
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 10)
    number = rng.normal(size=20)[group]
    features = rng.normal(size=(200, 24)) * 0.3
    features[np.arange(200), 4 + group] += 5.0
    ridge = RidgeRegression(alphas=GRID, n_folds=5)
    by_patient, _ = ridge._alpha(lesson(features, number, group))
    leaking, _ = ridge._alpha(lesson(features, number, rng.permutation(200)))
    assert leaking < by_patient == GRID[-1]


def test_one_patient_leaves_nothing_to_choose_by_and_says_so() -> None:
    features, number = noisy(30)
    taught = lesson(features, number, np.zeros(30, dtype=np.int64))
    _, notes = RidgeRegression(alphas=GRID, n_folds=5).predict(taught, features[:2].astype(np.float32))
    assert notes == ["has one patient (or slide) in train: its alpha is 100, unchosen"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"alphas": []}, r"alphas=\[\]: numbers above 0"),
        ({"alphas": [0.0, 1.0]}, "alphas=.*: numbers above 0"),
        ({"n_folds": 1}, "n_folds=1: 2 or more"),
    ],
)
def test_senseless_values_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RidgeRegression(**({"alphas": GRID, "n_folds": 5} | changes))
