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
            ValueError: a class has fewer patients than folds, or a number makes no sense.
        """
        if self.n_folds < 2 or self.n_repeats < 1:
            raise ValueError(
                f"task.folds.n_folds={self.n_folds}, n_repeats={self.n_repeats}: 2 or more folds, and 1 or "
                "more repeats, are expected"
            )
        check_share(self.valid_share)
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
                test = (fold_P == k)[place_n]
                valid = drawn(cases, among=~test, share=self.valid_share, seed=[self.seed, *name.encode()])
                folds.append(Fold(name=name, train=~test & ~valid, valid=valid, test=test))
        return folds, check_leaks(folds, cases, allow_leaks=False)


def check_share(valid_share: float) -> None:
    """Refuse a share for the validation that is none, or that leaves nothing to learn from."""
    if not 0 <= valid_share < 1:
        raise ValueError(f"task.folds.valid_share={valid_share}: 0 or more, and less than 1, is expected")


def drawn(cases: pd.DataFrame, *, among: Mask, share: float, seed: list[int]) -> Mask:
    """A stratified share of some slides (n,), by patient.

    Args:
        cases: one row per slide: patient, label.
        among: which slides (n,) are divided.
        share: of each class's slides, 0-1.
        seed: of the draw.
    """
    n_PC, place = counts_by_patient(cases[among])
    side_P = deal(n_PC, share_F=np.array([1 - share, share]), seed=seed)
    chosen = np.zeros(len(cases), dtype=bool)
    chosen[among] = side_P[place] == 1
    return chosen


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
    shares (sum of squares over classes, each relative to the class's size); of several such parts to the one
    that lacks most slides of all classes, so that what is left over does not gather in one.
    """
    n_C = np.maximum(n_PC.sum(axis=0), 1)  # a class that is nowhere is nowhere off its share
    order_P = np.lexsort((np.random.default_rng(seed).random(len(n_PC)), -(n_PC / n_C).sum(axis=1)))
    has_FC = np.zeros((len(share_F), n_PC.shape[1]))
    part_P = np.zeros(len(n_PC), dtype=np.int64)
    for p in order_P:
        lacks_FC = share_F[:, None] - has_FC / n_C
        gain_F = (lacks_FC**2 - (lacks_FC - n_PC[p] / n_C) ** 2).sum(axis=1)
        lacks_F = share_F - has_FC.sum(axis=1) / n_PC.sum()
        part_P[p] = np.where(gain_F == gain_F.max(), lacks_F, -np.inf).argmax()
        has_FC[part_P[p]] += n_PC[p]
    return part_P
