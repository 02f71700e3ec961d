"""Folds that keep sites apart: no fold tests a site that it learns from.

A site stains and scans in its own way, and encoders tell sites (Howard 2021, doi:10.1038/s41467-021-24698-1):
a label that is common at one site can be read off its colours. Howard divides sites by quadratic programming;
here whole sites are dealt, and moved or swapped as long as that brings classes closer to even shares.

Letters: n slides, S sites, C classes, F folds.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histo_ssl.folds.base import Floats, Fold, Ints, Mask
from histo_ssl.folds.leaks import check_leaks
from histo_ssl.folds.partition import deal

UNKNOWN = "site of "  # before the patient where a site is not known


@dataclass(frozen=True, kw_only=True)
class Sites:
    """A partition by site: each slide is tested once, by a model that has seen no slide of its site.

    Args:
        n_folds: F, 2 or more.
        valid_share: of each class's slides outside the test, whole sites, for choosing an epoch, 0-1.
        seed: of the division.
    """

    n_folds: int
    valid_share: float
    seed: int

    def split(self, cases: pd.DataFrame) -> tuple[list[Fold], list[str]]:
        """F folds, named k0 and on, and how even classes came out.

        Raises:
            ValueError: a class is at fewer sites than there are folds, or a patient is at two sites.
        """
        n_SC, place_n = _counts(cases)
        self._check(n_SC, cases)
        fold_S = improved(deal(n_SC, share_F=self._even(), seed=[self.seed]), n_SC, share_F=self._even())
        folds = [self._fold(k, n_SC, is_test_S=fold_S == k, place_n=place_n) for k in range(self.n_folds)]
        shares = np.array([n_SC[fold_S == k].sum(axis=0) / n_SC.sum(axis=0) for k in range(self.n_folds)])
        note = (
            f"folds keep {len(n_SC)} sites apart: a fold tests {shares.min():.0%} to {shares.max():.0%} of a "
            f"class ({1 / self.n_folds:.0%} would be even)"
        )
        return folds, [*check_leaks(folds, cases, allow_leaks=False), note]

    def _even(self) -> Floats:
        return np.full(self.n_folds, 1 / self.n_folds)

    def _fold(self, k: int, n_SC: Floats, *, is_test_S: Mask, place_n: Ints) -> Fold:
        rest_S = np.flatnonzero(~is_test_S)
        shares = np.array([1 - self.valid_share, self.valid_share])
        side = improved(deal(n_SC[rest_S], share_F=shares, seed=[self.seed, k]), n_SC[rest_S], share_F=shares)
        is_valid_S = np.zeros(len(n_SC), dtype=bool)
        is_valid_S[rest_S[side == 1]] = True
        test, valid = is_test_S[place_n], is_valid_S[place_n]
        return Fold(name=f"k{k}", train=~test & ~valid, valid=valid, test=test)

    def _check(self, n_SC: Floats, cases: pd.DataFrame) -> None:
        fewest = int((n_SC > 0).sum(axis=0).min())
        if fewest < self.n_folds:
            label = np.unique(cases["label"])[(n_SC > 0).sum(axis=0).argmin()]
            raise ValueError(
                f"class {label} is at {fewest} sites, fewer than the {self.n_folds} folds that are to keep "
                f"sites apart: say task.folds.n_folds={max(2, fewest)}, or task/folds=partition"
            )


def improved(part_S: Ints, n_SC: Floats, *, share_F: Floats) -> Ints:
    """The parts after moves and swaps of single sites, until none brings classes closer to their shares.

    Args:
        part_S: the part of each site, 0 to F - 1.
        n_SC: slides of each class at each site.
        share_F: what each part shall have of every class.
    """
    part_S, share_SC = part_S.copy(), n_SC / n_SC.sum(axis=0)
    best = _off(part_S, share_SC, share_F)
    is_better = True
    while is_better:
        is_better = False
        for s in range(len(part_S)):
            for changed in _changes(part_S, s, n_parts=len(share_F)):
                found = _off(changed, share_SC, share_F)
                if found < best - 1e-12:
                    part_S, best, is_better = changed, found, True
    return part_S


def _changes(part_S: Ints, s: int, *, n_parts: int) -> list[Ints]:
    """The same with site s in another part, or in turn with a later site of another part."""
    changes = []
    for part in range(n_parts):
        if part != part_S[s]:
            changes.append(np.where(np.arange(len(part_S)) == s, part, part_S))
    for other in range(s + 1, len(part_S)):
        if part_S[other] != part_S[s]:
            swapped = part_S.copy()
            swapped[[s, other]] = part_S[[other, s]]
            changes.append(swapped)
    return changes


def _off(part_S: Ints, share_SC: Floats, share_F: Floats) -> float:
    """Squared distance of the parts' shares of the classes from those asked for, summed."""
    has_FC = np.zeros((len(share_F), share_SC.shape[1]))
    np.add.at(has_FC, part_S, share_SC)
    return float(np.square(has_FC - share_F[:, None]).sum())


def _counts(cases: pd.DataFrame) -> tuple[Floats, Ints]:
    """How many slides (S, C) of each class each site has, sites by name; and each slide's site (n,)."""
    site = cases["site"].where(cases["site"] != "", UNKNOWN + cases["patient"]).to_numpy(dtype=str)
    sites, place_n = np.unique(site, return_inverse=True)
    classes, class_n = np.unique(cases["label"].to_numpy(dtype=str), return_inverse=True)
    n_SC = np.zeros((len(sites), len(classes)))
    np.add.at(n_SC, (place_n, class_n), 1)
    return n_SC, place_n.astype(np.int64)
