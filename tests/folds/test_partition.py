"""A partition by patient: nobody on two sides, everybody tested once, classes alike, in any order of rows."""

import itertools

import numpy as np
import pandas as pd
import pytest

from histo_ssl.folds.base import Fold
from histo_ssl.folds.fractions import with_fraction
from histo_ssl.folds.partition import Partition


def _cases(seed: int, *, n_patients: int = 60) -> pd.DataFrame:
    """Patients of one to three slides, a fifth of them of the rarer class."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"p{p:02d}s{s}", f"p{p:02d}", f"site{p % 7}", "ILC" if p % 5 == 0 else "IDC")
        for p in range(n_patients)
        for s in range(rng.integers(1, 4))
    ]
    return pd.DataFrame(rows, columns=["slide", "patient", "site", "label"])


def _split(cases: pd.DataFrame, *, n_folds: int = 5, n_repeats: int = 1, seed: int = 0) -> list[Fold]:
    folds = Partition(n_folds=n_folds, n_repeats=n_repeats, valid_share=0.2, seed=seed)
    return folds.split(cases)[0]


@pytest.mark.parametrize("seed", range(5))
def test_every_slide_is_tested_once_and_no_patient_is_on_two_sides(seed: int) -> None:
    cases = _cases(seed)
    folds = _split(cases, seed=seed)
    assert (np.sum([fold.test for fold in folds], axis=0) == 1).all()
    for fold in folds:
        parts = [set(cases["patient"][part]) for part in (fold.train, fold.valid, fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 60


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_as_common_in_every_part_to_within_one_patient(seed: int) -> None:
    cases = _cases(seed)
    is_rare = (cases["label"] == "ILC").to_numpy()
    for fold in _split(cases, seed=seed):
        for mask, share in ((fold.test, 0.2), (fold.valid, 0.16)):
            assert abs((mask & is_rare).sum() - share * is_rare.sum()) <= 3  # a patient has up to 3 slides
            assert abs((mask & ~is_rare).sum() - share * (~is_rare).sum()) <= 3


def test_the_order_of_rows_changes_nothing() -> None:
    cases = _cases(0)
    shuffled = cases.sample(frac=1, random_state=1)
    for one, other in zip(_split(cases), _split(shuffled.reset_index(drop=True)), strict=True):
        for part in ("train", "valid", "test"):
            a, b = cases["slide"][getattr(one, part)], shuffled["slide"][getattr(other, part)]
            assert set(a) == set(b)


def test_repeats_divide_anew_and_are_partitions_each() -> None:
    cases = _cases(0)
    folds = _split(cases, n_repeats=3)
    assert [fold.name for fold in folds][4:6] == ["r0k4", "r1k0"]
    for repeat in range(3):
        assert (np.sum([fold.test for fold in folds[5 * repeat : 5 * repeat + 5]], axis=0) == 1).all()
    assert not np.array_equal(folds[0].test, folds[5].test)


def test_a_class_with_fewer_patients_than_folds_is_named() -> None:
    with pytest.raises(ValueError, match=r"class ILC has 2 patients for 5 folds: say task\.folds\.n_folds=2"):
        _split(_cases(0, n_patients=10))


def test_a_smaller_share_is_a_part_of_a_larger_one_and_keeps_the_test() -> None:
    cases = _cases(3)
    is_rare = (cases["label"] == "ILC").to_numpy()
    for fold in _split(cases):
        parts = [with_fraction(fold, cases, fraction=fraction, seed=0) for fraction in (0.25, 0.5, 0.75, 1.0)]
        n_patients = [cases["patient"][part.train].nunique() for part in parts]
        n_rare = [cases["patient"][part.train & is_rare].nunique() for part in parts]
        assert n_patients == pytest.approx([n_patients[-1] * f for f in (0.25, 0.5, 0.75, 1.0)], abs=1)
        assert n_rare == pytest.approx([n_rare[-1] * f for f in (0.25, 0.5, 0.75, 1.0)], abs=0.51)
        for small, large in itertools.pairwise(parts):
            assert not (small.train & ~large.train).any()
        for part in parts:
            assert np.array_equal(part.test, fold.test)
            assert np.array_equal(part.valid, fold.valid)
        assert np.array_equal(parts[-1].train, fold.train)


@pytest.mark.parametrize("fraction", [0.0, 1.5, -0.1])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    cases = _cases(0)
    with pytest.raises(ValueError, match="a share above 0 and up to 1"):
        with_fraction(_split(cases)[0], cases, fraction=fraction, seed=0)
