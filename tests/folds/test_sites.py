"""Folds that keep sites apart, and repeated random splits: who is where, and how even classes are."""

import itertools
import time

import numpy as np
import pandas as pd
import pytest

from histo_ssl.folds.base import Folding
from histo_ssl.folds.monte_carlo import MonteCarlo
from histo_ssl.folds.partition import Partition, deal
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


def test_a_slide_without_a_site_is_where_its_patient_is() -> None:
    cases = _cases(0)
    is_second = cases["slide"].str.endswith("s1")
    folds, notes = Sites(n_folds=3, valid_share=0.2, seed=0).split(cases)
    partly = cases.assign(site=cases["site"].where(~is_second, ""))
    same, as_noted = Sites(n_folds=3, valid_share=0.2, seed=0).split(partly)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(folds, same, strict=True))
    assert notes == as_noted
    _, notes = Sites(n_folds=3, valid_share=0.2, seed=0).split(
        cases.assign(site=cases["site"].where(cases["patient"] >= "p002", ""))
    )
    assert "2 patients (p000, p001) have no site: each stands for one" in notes


def test_a_patient_at_two_sites_is_named() -> None:
    cases = _cases(0)
    cases.loc[cases["slide"].isin(["p001s1", "p003s1"]), "site"] = "elsewhere"
    with pytest.raises(ValueError, match=r"2 patients \(p001, p003\) have slides of two sites or more"):
        Sites(n_folds=3, valid_share=0.2, seed=0).split(cases)


def test_no_site_at_all_takes_no_longer_than_a_moment() -> None:
    rows = [(f"p{p:04d}", f"p{p:04d}", "", "ILC" if p % 6 == 0 else "IDC") for p in range(900)]
    cases = pd.DataFrame(rows, columns=["slide", "patient", "site", "label"])
    started = time.process_time()
    folds, _ = Sites(n_folds=10, valid_share=0.2, seed=0).split(cases)
    assert time.process_time() - started < 10  # measured: 0.6 s; 66 s with each swap tried by itself
    assert [int(fold.test.sum()) for fold in folds] == [90] * 10


@pytest.mark.parametrize(
    ("folding", "message"),
    [
        (Sites(n_folds=1, valid_share=0.2, seed=0), r"n_folds=1: 2 or more"),
        (Sites(n_folds=3, valid_share=1.0, seed=0), r"valid_share=1\.0: 0 or more, and less than 1"),
        (Partition(n_folds=1, n_repeats=1, valid_share=0.2, seed=0), "n_folds=1, n_repeats=1: 2 or more"),
        (Partition(n_folds=5, n_repeats=0, valid_share=0.2, seed=0), "n_folds=5, n_repeats=0: 2 or more"),
        (Partition(n_folds=5, n_repeats=1, valid_share=-0.1, seed=0), r"valid_share=-0\.1: 0 or more"),
        (MonteCarlo(n_splits=0, test_share=0.1, valid_share=0.1, seed=0), "n_splits=0: 1 or more"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(folding: Folding, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folding.split(_cases(0))


def test_random_splits_test_a_class_of_few_patients_before_they_validate_on_it() -> None:
    rows = [(f"s{i:02d}", f"p{i:02d}", "", "rare" if i < 6 else "common") for i in range(60)]
    cases = pd.DataFrame(rows, columns=["slide", "patient", "site", "label"])
    folds, _ = MonteCarlo(n_splits=10, test_share=0.1, valid_share=0.1, seed=0).split(cases)
    assert [int(fold.test[:6].sum()) for fold in folds] == [1] * 10
    assert [int(fold.test.sum()) for fold in folds] == [6] * 10
    assert all(5 <= fold.valid.sum() <= 6 for fold in folds)  # a tenth of each class, to within a patient
    assert len({fold.test.tobytes() for fold in folds}) == 10


def test_classes_that_are_not_tested_are_told() -> None:
    rows = [(f"s{i:02d}", f"p{i:02d}", "", "rare" if i < 2 else "common") for i in range(60)]
    cases = pd.DataFrame(rows, columns=["slide", "patient", "site", "label"])
    _, notes = MonteCarlo(n_splits=4, test_share=0.1, valid_share=0.1, seed=0).split(cases)
    assert "4 of 4 folds (s0, s1, s2, ...) test no slide of class rare" in notes
    assert "4 of 4 folds (s0, s1, s2, ...) choose their epoch by no slide of class rare" in notes


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
