"""Attention against phenotypes within tiles: scikit-learn's and scipy's numbers, intervals over patients."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from histo_ssl.tasks.bootstrap import Asked
from histo_ssl.tasks.head_scores import (
    Named,
    Trait,
    best_head,
    mean_over_tiles,
    measures,
    score_of,
    within_auc,
    within_correlation,
)

ASKED = Asked(subject="encoder", protocol="best_head", n_bootstrap=500, seed=0)
NAMED = Named(metric="auc", label="nuclei", chance=0.5)


def _maps(n_tiles: int, n_heads: int, n_patches: int = 16) -> np.ndarray:
    maps = np.random.default_rng(0).integers(1, 9, (n_tiles, n_heads, n_patches)).astype(float)  # with ties
    return maps / maps.sum(axis=-1, keepdims=True)


def test_the_example_of_the_docstring() -> None:
    found = within_auc(np.array([[[0.1, 0.4, 0.35, 0.8]]]), np.array([[False, False, True, True]]))
    assert found.tolist() == [[0.75]]


def test_aucs_are_scikit_learns_tile_by_tile() -> None:
    maps, is_in = _maps(5, 3), np.random.default_rng(1).random((5, 16)) < 0.3
    expected = [
        [roc_auc_score(truth, head) for head in tile] for tile, truth in zip(maps, is_in, strict=True)
    ]
    np.testing.assert_allclose(within_auc(maps, is_in), expected, rtol=1e-12)


def test_correlations_are_scipys_tile_by_tile() -> None:
    maps, share = _maps(5, 3), np.random.default_rng(1).random((5, 16)).round(1)
    expected = [[spearmanr(truth, head)[0] for head in tile] for tile, truth in zip(maps, share, strict=True)]
    np.testing.assert_allclose(within_correlation(maps, share), expected, rtol=1e-12)


def test_tiles_that_tell_nothing_are_left_out() -> None:
    share = np.array([[0.0] * 4, [1.0] * 4, [np.nan] * 4, [0.0, 0.0, 1.0, 1.0]])
    maps = np.tile([0.1, 0.2, 0.3, 0.4], (4, 1, 1))
    found = measures(maps, Trait(name="x", share_ML=share, least=0.5))
    assert np.isnan(found["auc"][:3]).all()
    assert np.isnan(found["correlation"][:3]).all()
    assert found["auc"][3].tolist() == [1.0]
    assert mean_over_tiles(found["auc"]).tolist() == [1.0]


def test_amounts_have_a_correlation_only() -> None:
    share = np.random.default_rng(0).random((4, 16))
    assert list(measures(_maps(4, 2), Trait(name="x", share_ML=share, least=None))) == ["correlation"]


def test_planted_attention_scores_one_and_random_attention_half() -> None:
    rng = np.random.default_rng(0)
    share = rng.random((400, 16))
    maps = np.stack([share + 1, rng.random((400, 16)), 2 - share], axis=1)
    found = measures(maps, Trait(name="x", share_ML=share, least=0.5))
    planted, random, opposite = mean_over_tiles(found["auc"])
    assert (planted, opposite) == (1.0, 0.0)
    # the SD of an AUC of 8 against 8 patches is about .15, its mean's over 400 tiles .008
    assert random == pytest.approx(0.5, abs=0.03)
    assert mean_over_tiles(found["correlation"])[0] == pytest.approx(1.0)
    assert best_head(found["auc"]) == 0


def test_no_head_is_best_where_none_is_measured() -> None:
    assert best_head(np.full((3, 2), np.nan)) is None


def test_a_score_is_the_mean_over_tiles_with_an_interval_over_patients() -> None:
    value = np.array([0.9, 0.7, np.nan, 0.5, 0.3])
    score = score_of(value, np.array([7, 7, 7, 9, 9]), NAMED, asked=ASKED)
    assert score.value == pytest.approx(0.6)
    # two patients of two tiles each: (.9 + .7) / 2 twice, (.5 + .3) / 2 twice, or both
    assert (score.low, score.high) == (pytest.approx(0.4), pytest.approx(0.8))
    assert (score.metric, score.label, score.chance) == ("auc", "nuclei", 0.5)


def test_one_patient_gives_no_interval() -> None:
    score = score_of(np.array([0.9, 0.7]), np.zeros(2, int), NAMED, asked=ASKED)
    assert score.value == pytest.approx(0.8)
    assert np.isnan([score.low, score.high]).all()
