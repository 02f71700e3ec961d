"""Folds that keep sites apart, and repeated random splits: who is where, and how even classes are."""

import itertools

import numpy as np
import pandas as pd
import pytest

from histo_ssl.folds.monte_carlo import MonteCarlo
from histo_ssl.folds.partition import deal
from histo_ssl.folds.sites import Sites, improved


def _cases(seed: int, *, n_sites: int = 12) -> pd.DataFrame:
    """150 slides of 100 patients at sites of very different sizes."""
    rng = np.random.default_rng(seed)
    site = rng.choice(n_sites, size=100, p=(weights := 1 / np.arange(1, n_sites + 1)) / weights.sum())
    rows = [
        (f"p{p:03d}s{s}", f"p{p:03d}", f"site{site[p]:02d}", "ILC" if p % 4 == 0 else "IDC")
        for p in range(100)
        for s in range(1 + p % 2)
    ]
    return pd.DataFrame(rows, columns=["slide", "patient", "site", "label"])


@pytest.mark.parametrize("seed", range(5))
def test_no_site_is_on_two_sides_and_every_slide_is_tested_once(seed: int) -> None:
    cases = _cases(seed)
    folds, notes = Sites(n_folds=3, valid_share=0.2, seed=seed).split(cases)
    assert (np.sum([fold.test for fold in folds], axis=0) == 1).all()
    for fold in folds:
        sites = [set(cases["site"][part]) for part in (fold.train, fold.valid, fold.test)]
        assert all(a.isdisjoint(b) for a, b in itertools.combinations(sites, 2))
        assert fold.train.any()
        assert fold.valid.any()
    assert notes[-1].startswith(f"folds keep {cases['site'].nunique()} sites apart")
    assert not any("also learned from" in note for note in notes)


def test_moves_and_swaps_find_the_even_division_that_dealing_misses() -> None:
    n_SC = np.array([[5.0], [5.0], [4.0], [3.0], [3.0]])  # 5 + 5 = 4 + 3 + 3, which the largest first misses
    even = np.array([0.5, 0.5])
    dealt = deal(n_SC, share_F=even, seed=[0])
    found = improved(dealt, n_SC, share_F=even)
    assert [n_SC[found == part].sum() for part in (0, 1)] == [10, 10]
    assert sorted(n_SC[dealt == part].sum() for part in (0, 1)) != [10, 10]


def test_a_class_at_fewer_sites_than_folds_is_named() -> None:
    cases = _cases(0).assign(site=lambda table: np.where(table["label"] == "ILC", "one", table["site"]))
    with pytest.raises(ValueError, match="class ILC is at 1 sites, fewer than the 3 folds"):
        Sites(n_folds=3, valid_share=0.2, seed=0).split(cases)


def test_patients_without_a_site_stand_for_one() -> None:
    cases = _cases(0).assign(site="")
    folds, _ = Sites(n_folds=4, valid_share=0.2, seed=0).split(cases)
    assert (np.sum([fold.test for fold in folds], axis=0) == 1).all()


def test_random_splits_share_no_patient_and_say_how_many_are_ever_tested() -> None:
    cases = _cases(1)
    folds, notes = MonteCarlo(n_splits=6, test_share=0.1, valid_share=0.1, seed=0).split(cases)
    assert [fold.name for fold in folds] == [f"s{k}" for k in range(6)]
    is_rare = (cases["label"] == "ILC").to_numpy()
    for fold in folds:
        parts = [set(cases["patient"][part]) for part in (fold.train, fold.valid, fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert abs((fold.test & is_rare).sum() - 0.1 * is_rare.sum()) <= 2
    ever = int(np.any([fold.test for fold in folds], axis=0).sum())
    assert notes[0].startswith(f"{ever} of 150 slides are ever tested")


def test_shares_that_leave_nothing_to_learn_from_are_refused() -> None:
    with pytest.raises(ValueError, match="shares that leave something to learn from"):
        MonteCarlo(n_splits=2, test_share=0.6, valid_share=0.4, seed=0).split(_cases(0))
