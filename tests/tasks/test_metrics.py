"""Metrics under many weightings equal scikit-learn's and torchmetrics' under each of them."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score
from torchmetrics.functional.classification import multiclass_auroc

from histo_ssl.tasks.metrics import accuracy, auc, balanced_accuracy, macro_f1, mean_over_defined

RNG = np.random.default_rng(0)
M, C = 120, 4
TRUTH, PREDICTED = RNG.integers(C, size=M), RNG.integers(C, size=M)
PREDICTED[: M // 2] = TRUTH[: M // 2]
WEIGHT = RNG.integers(0, 4, size=(5, M)).astype(float)


def _confusions(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.stack([confusion_matrix(truth, predicted, labels=range(C), sample_weight=w) for w in WEIGHT])


def test_accuracies_and_f1_equal_scikit_learns() -> None:
    n_RCC = _confusions(TRUTH, PREDICTED)
    for function, reference, more in (
        (accuracy, accuracy_score, {}),
        (balanced_accuracy, balanced_accuracy_score, {}),
        (macro_f1, f1_score, {"average": "macro"}),
    ):
        expected = [reference(TRUTH, PREDICTED, sample_weight=w, **more) for w in WEIGHT]
        np.testing.assert_allclose(function(n_RCC), expected, rtol=1e-12)


def test_a_class_without_true_tiles_is_left_out_of_the_means() -> None:
    truth = np.where(TRUTH == 3, 0, TRUTH)
    n_RCC = _confusions(truth, PREDICTED)
    assert (n_RCC[:, :, 3] > 0).any()  # though some tiles are taken for it
    expected = [
        f1_score(truth, PREDICTED, labels=[0, 1, 2], average="macro", sample_weight=w) for w in WEIGHT
    ]
    np.testing.assert_allclose(macro_f1(n_RCC), expected, rtol=1e-12)
    recalls = np.diagonal(n_RCC, axis1=1, axis2=2)[:, :3] / n_RCC.sum(axis=2)[:, :3]
    np.testing.assert_allclose(balanced_accuracy(n_RCC), recalls.mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("n_values", [2, 6, 10**6])  # 6: what 5 uniform votes can be
def test_auc_equals_scikit_learns_and_torchmetrics_with_ties_and_without(n_values: int) -> None:
    score_M = np.random.default_rng(1).integers(n_values, size=M) / n_values
    found = auc(score_M, TRUTH == 0, WEIGHT)
    np.testing.assert_allclose(
        found, [roc_auc_score(TRUTH == 0, score_M, sample_weight=w) for w in WEIGHT], rtol=1e-12
    )
    others = np.random.default_rng(2).random((M, C))
    others[:, 0] = score_M
    logits = torch.from_numpy(others)
    one_vs_rest = multiclass_auroc(
        logits / logits.sum(1, keepdim=True), torch.from_numpy(TRUTH), C, average=None
    )
    mine = auc((logits / logits.sum(1, keepdim=True))[:, 0].numpy(), TRUTH == 0, np.ones((1, M)))
    assert mine[0] == pytest.approx(float(one_vs_rest[0]), abs=1e-6)  # torchmetrics counts in float32


def test_auc_of_four_tiles_counts_their_pairs() -> None:
    score, is_positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    weights = np.array([[1.0, 1, 1, 1], [1, 3, 1, 1], [0, 1, 1, 0]])
    # Only the pair (.4, .35) is lost: 3 of 4; then 1 + 1 + 3 of 8; then 0 of 1.
    np.testing.assert_allclose(auc(score, is_positive, weights), [3 / 4, 5 / 8, 0])


def test_auc_without_one_side_is_nan() -> None:
    score = np.array([0.1, 0.4, 0.3])
    for is_positive in ([True] * 3, [False] * 3):
        assert math.isnan(auc(score, np.array(is_positive), np.ones((1, 3)))[0])
    assert math.isnan(auc(score, np.array([True, False, False]), np.array([[0.0, 1, 1]]))[0])


def test_means_skip_what_is_not_defined() -> None:
    means = mean_over_defined(np.array([[0.5, np.nan, 1.0], [np.nan] * 3]))
    assert means[0] == 0.75
    assert math.isnan(means[1])
