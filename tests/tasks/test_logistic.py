"""Logistic regression learns from train alone, chooses by patients, and says what it could not do."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from histo_ssl.tasks.logistic import Logistic, folds_of
from histo_ssl.tasks.tiles import Lesson

GRID = [1e-4, 1e-2, 1.0, 100.0]


def protocol(**changes: Any) -> Logistic:
    return Logistic(**{"strengths": None, "n_folds": 5, "max_iter": 500, "seed": 0, **changes})


def lesson(features: NDArray[np.floating], classes: list[int], groups: list[int]) -> Lesson:
    return Lesson(
        features_ND=features.astype(np.float32),
        class_N=np.array(classes),
        group_N=np.array(groups),
        n_classes=len(set(classes)),
    )


def noisy(n: int, *, dim: int = 8, seed: int = 0) -> tuple[NDArray[np.float64], list[int]]:
    rng = np.random.default_rng(seed)
    classes = rng.integers(2, size=n)
    features = rng.normal(size=(n, dim))
    features[:, 0] += classes
    return features, classes.tolist()


def test_by_the_rule_it_is_scikit_learns_regression_on_features_standardised_by_train() -> None:
    features, classes = noisy(300)
    features = features * 7.0 + 3.0
    train, test = features[:200].astype(np.float32).astype(float), features[200:].astype(np.float32)
    mean, sd = train.mean(axis=0), train.std(axis=0)
    # UNI: C = D x classes / 100 = 8 x 2 / 100
    reference = LogisticRegression(C=0.16, max_iter=500).fit((train - mean) / sd, classes[:200])
    probability, notes = protocol().classify(lesson(train, classes[:200], list(range(200))), test)
    np.testing.assert_allclose(probability, reference.predict_proba((test - mean) / sd), atol=1e-6)
    assert notes == []


def test_a_test_tile_has_no_say_in_another_ones_score() -> None:
    features, classes = noisy(100)
    taught = lesson(features[:80], classes[:80], list(range(80)))
    alone = protocol().classify(taught, features[80:81].astype(np.float32))[0]
    together = protocol().classify(taught, features[80:].astype(np.float32) * [[1.0]] + [[0.0]])[0]
    np.testing.assert_allclose(alone[0], together[0], atol=1e-12)


def test_the_strength_is_chosen_across_patients_not_across_their_tiles() -> None:
    # Each patient has a direction of its own that tells its class: strong weights win within patients alone.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    classes = groups % 2
    features = rng.normal(size=(200, 24)) * 0.3
    features[np.arange(200), 4 + groups] += 5.0
    features[:, 0] += classes * 0.3
    by_patient = protocol(strengths=GRID)
    strength, _ = by_patient._strength(lesson(features, classes.tolist(), groups.tolist()))
    leaking, _ = by_patient._strength(lesson(features, classes.tolist(), list(range(200))))
    assert strength < leaking


def test_a_class_of_one_patient_leaves_nothing_to_choose_by_and_says_so() -> None:
    features, classes = noisy(40)
    groups = [c * 100 for c in classes]
    probability, notes = protocol(strengths=GRID).classify(
        lesson(features, classes, groups), features[:3].astype(np.float32)
    )
    assert probability.shape == (3, 2)
    assert notes == ["has a class of one patient (or slide) in train: C follows UNI's rule, unchosen"]


def test_folds_that_lack_a_class_have_no_say_in_the_strength() -> None:
    # with these patients and this seed a fold is tested without one
    rng = np.random.default_rng(2)
    groups = rng.integers(6, size=60)
    classes = np.where(rng.random(60) < 0.5, groups % 3, rng.integers(3, size=60))
    features = rng.normal(size=(60, 5))
    features[:, 0] += 3 * classes
    taught = lesson(features, classes.tolist(), groups.tolist())
    folds, why = folds_of(taught, n_folds=5, seed=0)
    x = taught.features_ND.astype(float)

    def loss(strength: float) -> float:
        by_fold = []
        for learn, aside in folds:
            mean, sd = x[learn].mean(axis=0), x[learn].std(axis=0)
            model = LogisticRegression(C=strength, max_iter=500).fit((x[learn] - mean) / sd, classes[learn])
            right = model.predict_proba((x[aside] - mean) / sd)[np.arange(len(aside)), classes[aside]]
            by_fold.append(-np.log(right).mean())
        return float(np.mean(by_fold))

    strength, notes = protocol(strengths=GRID)._strength(taught)
    assert (strength, why, notes) == (min(GRID, key=loss), "", [])
    assert any(len(set(classes[aside])) < 3 for _, aside in folds)


def test_without_a_fold_that_leaves_each_class_to_learn_from_nothing_is_chosen() -> None:
    # Each two of four patients share a class that nobody else has: two set aside take one with them.
    pairs = list(itertools.combinations(range(4), 2))
    groups = [patient for pair in pairs for patient in pair]
    classes = [c for c in range(len(pairs)) for _ in range(2)]
    features, _ = noisy(len(groups))
    _, notes = protocol(strengths=GRID)._strength(lesson(features, classes, groups))
    assert notes == [
        "has no patients (or slides) that can be set aside and leave others of each class: C follows UNI's "
        "rule, unchosen"
    ]


def test_what_did_not_converge_is_said() -> None:
    features, classes = noisy(60)
    _, notes = protocol(max_iter=1).classify(
        lesson(features, classes, list(range(60))), features[:1].astype(np.float32)
    )
    assert notes == ["had not converged after 1 iterations"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strengths": []}, "strengths=.*: numbers above 0 are expected, or null"),
        ({"strengths": [0.0, 1.0]}, "strengths=.*: numbers above 0 are expected, or null"),
        ({"n_folds": 1}, "n_folds=1, max_iter=500: 2 folds and 1 iteration, or more"),
    ],
)
def test_senseless_values_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        protocol(**changes)
