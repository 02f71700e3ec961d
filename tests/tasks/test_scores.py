"""Scores come with intervals over patients that say what they claim, or with a sentence why not."""

import math
import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from histo_ssl.tasks.base import Score
from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.scores import Predictions, cautions, scores_of

N_BOOTSTRAP = 1000


def _predictions(
    *, n_groups: int, tiles_per_group: int, group_sd: float, C: int = 3, seed: int = 0
) -> Predictions:
    """Scores that are better for some patients than for others: `group_sd` is how much that varies."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), tiles_per_group)
    truth = rng.integers(C, size=len(group))
    score = rng.normal(size=(len(group), C))
    score[np.arange(len(group)), truth] += 1 + rng.normal(scale=group_sd, size=n_groups)[group]
    return Predictions(score_MC=score, truth_M=truth, group_M=group, classes=[f"c{i}" for i in range(C)])


def _scores(
    predictions: Predictions, *, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP
) -> dict[tuple[str, str], Score]:
    asked = Asked(subject="encoder", protocol="p", n_bootstrap=n_bootstrap, seed=seed)
    found = scores_of(predictions, asked)
    return {(score.metric, score.label): score for score in found}


def _as_tiles(predictions: Predictions) -> Predictions:
    return Predictions(
        score_MC=predictions.score_MC,
        truth_M=predictions.truth_M,
        group_M=np.arange(len(predictions.truth_M)),
        classes=predictions.classes,
    )


def test_values_equal_scikit_learns() -> None:
    predictions = _predictions(n_groups=12, tiles_per_group=20, group_sd=0.5)
    truth, predicted, scores = predictions.truth_M, predictions.predicted_M, _scores(predictions)
    aucs = [roc_auc_score(truth == c, predictions.score_MC[:, c]) for c in range(3)]
    expected = {
        ("accuracy", ""): accuracy_score(truth, predicted),
        ("balanced_accuracy", ""): balanced_accuracy_score(truth, predicted),
        ("macro_f1", ""): f1_score(truth, predicted, average="macro"),
        ("auc", ""): np.mean(aucs),
        **{("auc", f"c{c}"): value for c, value in enumerate(aucs)},
    }
    assert {key: score.value for key, score in scores.items()} == pytest.approx(expected, rel=1e-12)


def test_intervals_equal_a_loop_that_draws_patients() -> None:
    predictions = _predictions(n_groups=15, tiles_per_group=8, group_sd=1)
    is_right, truth = predictions.predicted_M == predictions.truth_M, predictions.truth_M
    rng, tiles_of = np.random.default_rng(7), np.arange(120).reshape(15, 8)
    drawn = []
    for _ in range(2000):
        rows = tiles_of[rng.integers(15, size=15)].ravel()
        recalls = [is_right[rows][truth[rows] == c].mean() for c in range(3)]
        drawn.append((is_right[rows].mean(), np.mean(recalls)))
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    scores = _scores(predictions)
    for i, metric in enumerate(("accuracy", "balanced_accuracy")):
        # Percentiles of 1,000 or 2,000 resamples have a standard error of some 4 % of the width.
        tolerance = 0.15 * (high[i] - low[i])
        assert scores[metric, ""].low == pytest.approx(low[i], abs=tolerance)
        assert scores[metric, ""].high == pytest.approx(high[i], abs=tolerance)


def test_with_many_patients_of_equal_size_accuracy_has_the_interval_of_a_mean() -> None:
    predictions = _predictions(n_groups=400, tiles_per_group=10, group_sd=1)
    by_patient = (predictions.predicted_M == predictions.truth_M).reshape(400, 10).mean(axis=1)
    score = _scores(predictions, n_bootstrap=4000)["accuracy", ""]
    half = 1.96 * by_patient.std() / 20  # standard error of the mean of 400 patients
    assert score.value - score.low == pytest.approx(half, rel=0.1)
    assert score.high - score.value == pytest.approx(half, rel=0.1)


def test_patients_that_differ_widen_the_interval_over_patients_alone() -> None:
    for group_sd, at_least, at_most in ((0, 0.6, 1.6), (1.5, 2.5, 9)):
        predictions = _predictions(n_groups=20, tiles_per_group=50, group_sd=group_sd)
        patients, tiles = _scores(predictions), _scores(_as_tiles(predictions))
        for metric in ("accuracy", "balanced_accuracy", "macro_f1", "auc"):
            by_patient, by_tile = patients[metric, ""], tiles[metric, ""]
            ratio = (by_patient.high - by_patient.low) / (by_tile.high - by_tile.low)
            assert at_least < ratio < at_most, (metric, group_sd)


def test_intervals_over_patients_hold_the_truth_where_intervals_over_tiles_do_not() -> None:
    truth = _predictions(n_groups=20_000, tiles_per_group=10, group_sd=1.5, seed=99)
    expected = accuracy_score(truth.truth_M, truth.predicted_M)
    held = {"patients": 0, "tiles": 0}
    for seed in range(60):
        predictions = _predictions(n_groups=30, tiles_per_group=30, group_sd=1.5, seed=seed)
        for name, unit in (("patients", predictions), ("tiles", _as_tiles(predictions))):
            score = _scores(unit, n_bootstrap=200)["accuracy", ""]
            held[name] += score.low <= expected <= score.high
    # 60 x .94 = 56 with a SD of 2; intervals over tiles have a third of the width and held 25 of 60.
    assert held["patients"] >= 50
    assert held["tiles"] <= 40


def test_equal_seeds_give_equal_intervals_for_every_subject() -> None:
    predictions = _predictions(n_groups=12, tiles_per_group=20, group_sd=0.5)
    assert _scores(predictions, seed=3) == _scores(predictions, seed=3)
    assert _scores(predictions, seed=3) != _scores(predictions, seed=4)


def test_one_patient_gives_scores_without_intervals_and_says_so() -> None:
    predictions = _predictions(n_groups=1, tiles_per_group=30, group_sd=0)
    for score in _scores(predictions).values():
        assert 0 < score.value < 1
        assert math.isnan(score.low)
        assert math.isnan(score.high)
    assert cautions(predictions) == ["all test tiles are of one patient (or slide): there are no intervals"]


def test_few_patients_are_named_as_the_reason_of_narrow_intervals() -> None:
    few, enough = (_predictions(n_groups=n, tiles_per_group=30, group_sd=0) for n in (3, 12))
    assert cautions(few)[0].startswith("intervals rest on 3 patients (or slides) and are too narrow")
    assert cautions(enough) == []


def test_a_class_absent_from_the_test_has_no_score_and_no_part_in_the_means() -> None:
    some = _predictions(n_groups=12, tiles_per_group=20, group_sd=0.5)
    with_absent = Predictions(
        score_MC=np.column_stack([some.score_MC, np.full(len(some.truth_M), -9.0)]),
        truth_M=some.truth_M,
        group_M=some.group_M,
        classes=[*some.classes, "fat"],
    )
    scores, expected = _scores(with_absent), _scores(some)
    assert math.isnan(scores["auc", "fat"].value)
    assert {key: scores[key] for key in expected} == expected
    assert cautions(with_absent) == ["no test tile is of class fat: it has no score and no part in any mean"]


def test_a_class_of_one_patient_has_an_auc_without_interval() -> None:
    some = _predictions(n_groups=12, tiles_per_group=20, group_sd=0.5)
    truth = np.where(some.truth_M == 2, 0, some.truth_M)
    truth[:5] = 2  # tiles of the first patient
    one = Predictions(score_MC=some.score_MC, truth_M=truth, group_M=some.group_M, classes=some.classes)
    scores = _scores(one)
    assert not math.isnan(scores["auc", "c2"].value)
    assert math.isnan(scores["auc", "c2"].low)
    assert scores["auc", "c1"].low < scores["auc", "c1"].value < scores["auc", "c1"].high
    assert cautions(one) == ["too few test patients (or slides) for an interval of the AUC of: c2"]


def test_chance_is_the_best_guess_that_looks_at_no_tile() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.6, 0.3, 0.1])
    truth = np.repeat(np.arange(3), (share * 100_000).astype(int))
    chances = {}
    for name, guess in (
        ("constant", np.zeros(len(truth), int)),
        ("shares", rng.choice(3, len(truth), p=share)),
    ):
        blind = Predictions(
            score_MC=np.eye(3)[guess], truth_M=truth, group_M=np.zeros_like(truth), classes=["a", "b", "c"]
        )
        scores = _scores(blind, n_bootstrap=1)
        chances[name] = {
            metric: scores[metric, ""] for metric in ("accuracy", "balanced_accuracy", "macro_f1", "auc")
        }
    expected = {"accuracy": 0.6, "balanced_accuracy": 1 / 3, "macro_f1": 1 / 3, "auc": 0.5}
    for metric, chance in expected.items():
        assert chances["constant"][metric].chance == pytest.approx(chance)
        # The best of the two guesses reaches it; sampling error at 100,000 tiles is below .005.
        assert max(guess[metric].value for guess in chances.values()) == pytest.approx(chance, abs=0.005)


def test_a_thousand_resamples_of_five_thousand_tiles_take_seconds() -> None:
    predictions = _predictions(n_groups=60, tiles_per_group=80, group_sd=0.5, C=9)
    started = time.perf_counter()
    _scores(predictions)
    assert time.perf_counter() - started < 15  # measured 1 to 2 s; a loop over scikit-learn takes minutes
