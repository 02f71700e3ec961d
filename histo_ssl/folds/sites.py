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
from histo_ssl.folds.names import some
from histo_ssl.folds.partition import check_share, deal

UNKNOWN = "site of "  # before the patient where a site is not known
TINY = 1e-12  # a gain that rounding may have made


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
        if self.n_folds < 2:
            raise ValueError(f"task.folds.n_folds={self.n_folds}: 2 or more are expected")
        check_share(self.valid_share)
        site, notes = _sites(cases)
        n_SC, place_n = _counts(site, cases["label"])
        self._check(n_SC, cases)
        fold_S = improved(deal(n_SC, share_F=self._even(), seed=[self.seed]), n_SC, share_F=self._even())
        folds = [self._fold(k, n_SC, is_test_S=fold_S == k, place_n=place_n) for k in range(self.n_folds)]
        shares = np.array([n_SC[fold_S == k].sum(axis=0) / n_SC.sum(axis=0) for k in range(self.n_folds)])
        note = (
            f"folds keep {len(n_SC)} sites apart: a fold tests {shares.min():.0%} to {shares.max():.0%} of a "
            f"class ({1 / self.n_folds:.0%} would be even)"
        )
        return folds, [*check_leaks(folds, cases, allow_leaks=False), *notes, note]

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

    Closer is a smaller sum of squares of what parts have too much or too little of a class, which is a share
    of the class. Taking x_C from a part to another lowers it by 2 (off_C - off'_C) x_C - 2 x_C^2,
    which is never above 0 within a part.

    Args:
        part_S: the part of each site, 0 to F - 1.
        n_SC: slides of each class at each site.
        share_F: what each part shall have of every class.
    """
    part_S, share_SC = part_S.copy(), n_SC / np.maximum(n_SC.sum(axis=0), 1)
    off_FC = -np.repeat(share_F[:, None], n_SC.shape[1], axis=1)
    np.add.at(off_FC, part_S, share_SC)
    is_better = True
    while is_better:
        is_better = False
        for s, x_C in enumerate(share_SC):
            excess_FC = off_FC[part_S[s]] - off_FC
            move_F = 2 * excess_FC @ x_C - 2 * x_C @ x_C
            x_SC = x_C - share_SC
            swap_S = 2 * (excess_FC[part_S] * x_SC).sum(axis=1) - 2 * (x_SC**2).sum(axis=1)
            if max(move_F.max(), swap_S.max()) <= TINY:
                continue
            if move_F.max() >= swap_S.max():
                part_S[s] = move_F.argmax()
            else:
                other = int(swap_S.argmax())
                part_S[[s, other]] = part_S[[other, s]]
            off_FC = -np.repeat(share_F[:, None], n_SC.shape[1], axis=1)
            np.add.at(off_FC, part_S, share_SC)
            is_better = True
    return part_S


def _sites(cases: pd.DataFrame) -> tuple["pd.Series[str]", list[str]]:
    """The site of each slide: that of another of its patient's slides where it has none, else one of its own.

    Raises:
        ValueError: a patient is at two sites; names some.
    """
    known = cases[cases["site"] != ""].groupby("patient")["site"]
    several = known.nunique()[known.nunique() > 1].index.astype(str).tolist()
    if several:
        raise ValueError(
            f"{len(several)} patients ({some(several)}) have slides of two sites or more, which are then on "
            "two sides of a fold: give each patient one site, or say task/folds=partition"
        )
    site = cases["patient"].map(known.first()).astype(object)
    unknown = sorted(cases["patient"][site.isna()].unique().tolist())
    said = f"{len(unknown)} patients ({some(unknown)}) have no site: each stands for one"
    return site.where(site.notna(), UNKNOWN + cases["patient"]), [said] if unknown else []


def _counts(site: "pd.Series[str]", label: "pd.Series[str]") -> tuple[Floats, Ints]:
    """How many slides (S, C) of each class each site has, sites by name; and each slide's site (n,)."""
    sites, place_n = np.unique(site.to_numpy(dtype=str), return_inverse=True)
    classes, class_n = np.unique(label.to_numpy(dtype=str), return_inverse=True)
    n_SC = np.zeros((len(sites), len(classes)))
    np.add.at(n_SC, (place_n, class_n), 1)
    return n_SC, place_n.astype(np.int64)
