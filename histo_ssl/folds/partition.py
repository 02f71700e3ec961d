"""Folds of a cross-validation that are a partition: each slide is tested once.

Which patient is in which fold is a function of the seed and of the patients with their labels, not of the
order of rows.

Letters: n slides, P patients, C classes, F folds.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histo_ssl.folds.base import Floats, Fold, Ints, Mask
from histo_ssl.folds.leaks import check_leaks


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Stratified folds by patient.

    Args:
        n_folds: F, 2 or more.
        n_repeats: how often all slides are divided anew.
        valid_share: of each class's slides outside the test, for choosing an epoch, 0-1.
        seed: of the divisions.
    """

    n_folds: int
    n_repeats: int
    valid_share: float
    seed: int

    def split(self, cases: pd.DataFrame) -> tuple[list[Fold], list[str]]:
        """F folds for each repeat, named `k0`, or `r0k0` where there are several repeats.

        Raises:
            ValueError: a class has fewer patients than folds.
        """
        n_PC, place_n = counts_by_patient(cases)
        fewest = int((n_PC > 0).sum(axis=0).min())
        if fewest < self.n_folds:
            label = np.unique(cases["label"])[(n_PC > 0).sum(axis=0).argmin()]
            raise ValueError(
                f"class {label} has {fewest} patients for {self.n_folds} folds: say "
                f"task.folds.n_folds={max(2, fewest)}, or label more of them"
            )
        folds = []
        for repeat in range(self.n_repeats):
            fold_P = deal(n_PC, share_F=np.full(self.n_folds, 1 / self.n_folds), seed=[self.seed, repeat])
            for k in range(self.n_folds):
                name = f"r{repeat}k{k}" if self.n_repeats > 1 else f"k{k}"
                folds.append(self._fold(name, n_PC, is_test_P=fold_P == k, place_n=place_n))
        return folds, check_leaks(folds, cases, allow_leaks=False)

    def _fold(self, name: str, n_PC: Floats, *, is_test_P: Mask, place_n: Ints) -> Fold:
        rest_P = np.flatnonzero(~is_test_P)
        shares = np.array([1 - self.valid_share, self.valid_share])
        side = deal(n_PC[rest_P], share_F=shares, seed=[self.seed, *name.encode()])
        is_valid_P = np.zeros(len(n_PC), dtype=bool)
        is_valid_P[rest_P[side == 1]] = True
        test, valid = is_test_P[place_n], is_valid_P[place_n]
        return Fold(name=name, train=~test & ~valid, valid=valid, test=test)


def counts_by_patient(cases: pd.DataFrame) -> tuple[Floats, Ints]:
    """How many slides (P, C) of each class the patients have, by name; and each slide's patient (n,)."""
    patients, place_n = np.unique(cases["patient"].to_numpy(dtype=str), return_inverse=True)
    classes, class_n = np.unique(cases["label"].to_numpy(dtype=str), return_inverse=True)
    n_PC = np.zeros((len(patients), len(classes)))
    np.add.at(n_PC, (place_n, class_n), 1)
    return n_PC, place_n.astype(np.int64)


def deal(n_PC: Floats, *, share_F: Floats, seed: list[int]) -> Ints:
    """The part (P,) that each patient goes to, so that parts get their shares of every class.

    The largest first, in random order where they are equal, each to the part that is then least off its
    shares (sum of squares over classes, each relative to the class's size).
    """
    n_C = n_PC.sum(axis=0)
    order_P = np.lexsort((np.random.default_rng(seed).random(len(n_PC)), -(n_PC / n_C).sum(axis=1)))
    has_FC = np.zeros((len(share_F), n_PC.shape[1]))
    part_P = np.zeros(len(n_PC), dtype=np.int64)
    for p in order_P:
        lacks_FC = share_F[:, None] - has_FC / n_C
        gain_F = (lacks_FC**2 - (lacks_FC - n_PC[p] / n_C) ** 2).sum(axis=1)
        part_P[p] = gain_F.argmax()
        has_FC[part_P[p]] += n_PC[p]
    return part_P
