"""Percentiles are ranks within one slide, whatever the scale of its scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import percentileofscore

from histo_ssl.slidemaps.percentiles import percentiles


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], [50]),
        ([3.0, 3.0], [50, 50]),
        ([1.0, 2.0, 9.0, 9.0], [12.5, 37.5, 75, 75]),
        ([4.0, -1.0, 0.5], [250 / 3, 50 / 3, 50]),
        ([], []),
    ],
)
def test_percentiles_by_hand(scores: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(percentiles(np.array(scores)), expected, rtol=1e-12)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40))
def test_they_are_scipys_mean_percentile_of_each_score(scores: list[int]) -> None:
    expected = [percentileofscore(scores, score, kind="mean") for score in scores]
    np.testing.assert_allclose(percentiles(np.array(scores, dtype=float)), expected, atol=1e-9)


def test_a_softmax_over_the_bag_changes_none() -> None:
    raw = np.random.default_rng(0).normal(size=500)
    weights = np.exp(raw) / np.exp(raw).sum()
    np.testing.assert_array_equal(percentiles(raw), percentiles(weights))


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([np.inf, 1.0]), np.zeros((2, 2))])
def test_what_has_no_rank_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one finite number per tile is expected"):
        percentiles(bad)
