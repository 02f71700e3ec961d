"""Top mass by hand; divergence and likeness of heads against scipy's and numpy's."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from histo_ssl.heads.maps import divergence, likeness, narrowness, top_mass

FOUR = np.array([[0.05, 0.5], [0.3, 0.15]])


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.4, [[0, 1], [0, 0]]),
        (0.5, [[0, 1], [0, 0]]),  # reached exactly: no patch more
        (0.6, [[0, 1], [1, 0]]),
        (0.8, [[0, 1], [1, 0]]),
        (0.81, [[0, 1], [1, 1]]),
        (1.0, [[1, 1], [1, 1]]),
    ],
)
def test_the_fewest_patches_hold_the_share(share: float, kept: list[list[int]]) -> None:
    assert top_mass(FOUR, share=share).tolist() == np.array(kept, dtype=bool).tolist()
    assert top_mass(7 * FOUR, share=share).tolist() == np.array(kept, dtype=bool).tolist()


def test_of_equals_the_first_are_taken() -> None:
    assert top_mass(np.ones((2, 2)), share=0.5).tolist() == [[True, True], [False, False]]


def test_narrowness_is_what_entropy_lacks_to_that_of_an_even_map() -> None:
    even, half, one = np.full(8, 0.1), np.repeat([1.0, 0.0], 4), np.eye(8)[3]
    assert narrowness(np.stack([even, half, one])[None])[0] == pytest.approx([0, 1, 3], abs=1e-12)
    maps = np.random.default_rng(0).random((5, 3, 16))
    expected = 4 - entropy(maps, axis=-1, base=2)
    assert narrowness(maps) == pytest.approx(expected, abs=1e-12)


def test_divergence_is_scipys_mean_over_pairs() -> None:
    maps = np.random.default_rng(0).random((3, 4, 10))
    expected = [
        np.mean([jensenshannon(a, b, base=2) ** 2 for a, b in itertools.combinations(of_tile, 2)])
        for of_tile in maps
    ]
    np.testing.assert_allclose(divergence(maps), expected, rtol=1e-12)


def test_heads_that_share_no_patch_differ_by_one_bit_and_equals_by_none() -> None:
    apart, same = np.eye(3)[None], np.ones((1, 3, 5))
    assert divergence(apart).tolist() == pytest.approx([1.0])
    assert divergence(same).tolist() == pytest.approx([0.0])


def test_likeness_is_numpys_correlation_over_pairs() -> None:
    maps = np.random.default_rng(1).random((2, 4, 9))
    expected = [np.corrcoef(of_tile)[np.triu_indices(4, 1)].mean() for of_tile in maps]
    np.testing.assert_allclose(likeness(maps), expected, rtol=1e-12)


def test_a_single_head_has_nobody_to_differ_from() -> None:
    maps = np.random.default_rng(2).random((2, 1, 9))
    assert np.isnan([*divergence(maps), *likeness(maps)]).all()
