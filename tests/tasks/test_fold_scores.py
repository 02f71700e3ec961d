"""Scores over folds: each fold's AUC, their mean and spread, and all predictions together."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.fold_scores import FOLD_MEAN, fold_table, pooled_scores
from histo_ssl.tasks.scores import Predictions

ASKED = Asked(subject="encoder", protocol="mean", n_bootstrap=400, seed=0)


def _fold(rng: np.random.Generator, *, first_group: int, n: int, shift: float = 0.0) -> Predictions:
    truth = np.arange(n) % 2
    score = truth + rng.normal(size=n) + shift
    return Predictions(
        score_MC=np.column_stack([-score, score]),
        truth_M=truth,
        group_M=np.arange(first_group, first_group + n),
        classes=["a", "b"],
    )


@pytest.fixture
def folds() -> list[Predictions]:
    """Three folds of a partition, of 30, 40 and 50 patients."""
    rng = np.random.default_rng(3)
    return [_fold(rng, first_group=start, n=n) for start, n in ((0, 30), (30, 40), (70, 50))]


def _auc(fold: Predictions) -> float:
    return float(roc_auc_score(fold.truth_M, fold.score_MC[:, 1]))


def test_a_folds_row_has_scikit_learns_auc(folds: list[Predictions]) -> None:
    table = fold_table(folds, ["k0", "k1", "k2"])
    assert table["fold"].tolist() == ["k0", "k1", "k2"]
    assert table["n_test"].tolist() == [30, 40, 50]
    assert table["auc"].tolist() == pytest.approx([_auc(fold) for fold in folds])


def test_the_mean_over_folds_has_an_interval_around_it(folds: list[Predictions]) -> None:
    (found,) = [score for score in pooled_scores(folds, ASKED) if score.metric == FOLD_MEAN]
    assert found.value == pytest.approx(np.mean([_auc(fold) for fold in folds]))
    assert found.low < found.value < found.high
    # DeLong's SE of an AUC of .76 with 60 + 60 cases is .044; 1.96 times it on either side.
    assert found.high - found.low == pytest.approx(0.17, abs=0.04)


def test_pooling_ranks_the_cases_of_all_folds_together(folds: list[Predictions]) -> None:
    pooled = next(s for s in pooled_scores(folds, ASKED) if (s.metric, s.label) == ("auc", ""))
    truth = np.concatenate([fold.truth_M for fold in folds])
    score = np.concatenate([fold.score_MC[:, 1] for fold in folds])
    assert pooled.value == pytest.approx(roc_auc_score(truth, score))


def test_models_that_do_not_speak_the_same_language_lose_by_pooling_alone() -> None:
    rng = np.random.default_rng(0)
    folds = [_fold(rng, first_group=40 * f, n=40, shift=5.0 * f) for f in range(4)]
    scores = {(s.metric, s.label): s.value for s in pooled_scores(folds, ASKED)}
    assert scores[FOLD_MEAN, ""] > 0.7
    assert scores["auc", ""] < 0.6


def test_a_case_that_several_folds_test_counts_as_one_patient() -> None:
    rng = np.random.default_rng(1)
    once = _fold(rng, first_group=0, n=60)
    one, four = (pooled_scores([once] * n, ASKED) for n in (1, 4))
    width = [next(s.high - s.low for s in found if s.metric == FOLD_MEAN) for found in (one, four)]
    assert width[0] == pytest.approx(width[1])  # four copies of a patient know no more than one


def test_a_fold_of_one_class_has_no_part_in_the_mean(folds: list[Predictions]) -> None:
    lone = Predictions(
        score_MC=np.array([[0.2, 0.8]]), truth_M=np.array([1]), group_M=np.array([120]), classes=["a", "b"]
    )
    means = [
        next(s.value for s in pooled_scores(found, ASKED) if s.metric == FOLD_MEAN)
        for found in (folds, [*folds, lone])
    ]
    assert means[0] == pytest.approx(means[1])
