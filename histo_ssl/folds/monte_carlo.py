"""Repeated random divisions by patient, as the study's ten (arXiv:2203.00585) but without their leaks."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histo_ssl.folds.base import Fold
from histo_ssl.folds.leaks import check_leaks
from histo_ssl.folds.partition import counts_by_patient, deal


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
            ValueError: the shares leave nothing to learn from.
        """
        shares = np.array([1 - self.test_share - self.valid_share, self.valid_share, self.test_share])
        if shares.min() < 0 or shares[0] <= 0 or self.test_share <= 0:
            raise ValueError(
                f"task.folds.test_share={self.test_share}, valid_share={self.valid_share}: shares that "
                "leave something to learn from are expected"
            )
        n_PC, place_n = counts_by_patient(cases)
        folds = []
        for k in range(self.n_splits):
            part_n = deal(n_PC, share_F=shares, seed=[self.seed, k])[place_n]
            train, valid, test = (part_n == part for part in range(3))
            folds.append(Fold(name=f"s{k}", train=train, valid=valid, test=test))
        return folds, check_leaks(folds, cases, allow_leaks=False)
