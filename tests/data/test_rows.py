"""Rows of a list too long to be held: numbers by their place, and shuffles of which any place is known."""

import pickle

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, spearmanr

from histo_ssl.data.rows import Runs
from histo_ssl.data.shuffle import N_SHUFFLED_WHOLE, permuted, shuffled_rows


def test_runs_are_the_numbers_of_all_their_runs() -> None:
    runs = Runs([(5, 7), (7, 7), (9, 12), (20, 21)])
    assert len(runs) == 6
    assert runs[np.arange(6)].tolist() == [5, 6, 9, 10, 11, 20]
    assert runs[np.array([[4, 0]])].tolist() == [[11, 5]]
    assert len(Runs([])) == 0


def test_a_hundred_million_rows_are_a_few_bytes() -> None:
    runs = Runs((start, start + 9000) for start in range(0, 110_000_000, 10_000))
    assert len(runs) == 99_000_000
    assert len(pickle.dumps(runs)) < 2 * 8 * 11_000 + 500
    rng = np.random.default_rng(0)
    places = rng.integers(len(runs), size=1000)
    np.testing.assert_array_equal(runs[places], places // 9000 * 10_000 + places % 9000)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4096, 4097])
@pytest.mark.parametrize("key", [0, -1, 2**63])
def test_a_permutation_has_every_number_once(n: int, key: int) -> None:
    assert sorted(permuted(torch.arange(n), n=n, key=key).tolist()) == list(range(n))


def test_a_place_has_the_same_number_whoever_asks() -> None:
    n = 10**8
    places = torch.tensor([0, 1, n // 2, n - 1])
    together = permuted(places, n=n, key=7)
    alone = [permuted(place[None], n=n, key=7).item() for place in places]
    assert together.tolist() == alone
    assert places.tolist() == [0, 1, n // 2, n - 1]  # as it was
    assert len(set(alone)) == 4
    assert permuted(places, n=n, key=8).tolist() != alone


def test_neighbours_of_the_list_are_strangers_in_the_shuffle() -> None:
    """Of 10^8 numbers, those at 100,000 places in a row and at the same places under the next key; seeded."""
    n, places = 10**8, torch.arange(100_000)
    found, other = (permuted(places, n=n, key=key).numpy() for key in (3, 4))
    assert chisquare(np.histogram(found, bins=100, range=(0, n))[0]).pvalue > 0.001
    for a, b in ((found[1:], found[:-1]), (found, other), (found, places.numpy())):
        # all pairs of tenths are equally likely, and a rank correlation has an SD of 0.003
        pairs = np.histogram2d(a, b, bins=(10, 10))[0]
        assert chisquare(pairs.ravel()).pvalue > 0.001
        assert abs(spearmanr(a, b).statistic) < 0.01


def test_a_batch_of_a_long_list_is_drawn_without_the_rest_of_it() -> None:
    class Every:
        """Places that would be 800 MB; what is asked for is noted."""

        def __len__(self) -> int:
            return 10**8

        def __getitem__(self, places: np.ndarray) -> np.ndarray:
            asked.append(len(places))
            return places

    asked: list[int] = []
    rows = [shuffled_rows(Every(), np.arange(32) + 320, seed=0, epoch=epoch) for epoch in (0, 0, 1)]
    assert asked == [32] * 3
    np.testing.assert_array_equal(rows[0], rows[1])
    assert len(set(rows[0]) | set(rows[2])) == 64  # two of 10^8 coincide once in 10^5 tries
    assert N_SHUFFLED_WHOLE < 10**8
