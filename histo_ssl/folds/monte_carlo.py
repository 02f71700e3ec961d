"""Repeated random divisions by patient, as the study's ten (arXiv:2203.00585) but without their leaks."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histo_ssl.folds.base import Fold
from histo_ssl.folds.leaks import check_leaks
from histo_ssl.folds.partition import drawn

TINY = 1e-9  # what rounding may leave of nothing


@dataclass(frozen=True, kw_only=True)
class MonteCarlo:
    """Stratified random splits, each drawn anew; some slides are tested often, some never.

    Args:
        n_splits: how many.
        test_share: of each class's slides, 0-1.
        valid_share: of each class's slides, 0-1.
        seed: of all of them.
    """

    n_splits: int
    test_share: float
    valid_share: float
    seed: int

    def split(self, cases: pd.DataFrame) -> tuple[list[Fold], list[str]]:
        """The splits, named s0 and on, and how many slides are ever tested.

        Raises:
            ValueError: the shares leave nothing to learn from, or there is no split.
        """
        if self.n_splits < 1:
            raise ValueError(f"task.folds.n_splits={self.n_splits}: 1 or more is expected")
        train_share = 1 - self.test_share - self.valid_share
        if train_share <= TINY or self.valid_share < 0 or self.test_share <= 0:
            raise ValueError(
                f"task.folds.test_share={self.test_share}, valid_share={self.valid_share}: shares that "
                "leave something to learn from are expected"
            )
        folds = []
        for k in range(self.n_splits):
            name, everyone = f"s{k}", np.ones(len(cases), dtype=bool)
            test = drawn(cases, among=everyone, share=self.test_share, seed=[self.seed, k])
            share = self.valid_share / (1 - self.test_share)
            valid = drawn(cases, among=~test, share=share, seed=[self.seed, *name.encode()])
            folds.append(Fold(name=name, train=~test & ~valid, valid=valid, test=test))
        return folds, check_leaks(folds, cases, allow_leaks=False)
