"""A share of the labels to learn from: nested, stratified, by patient; who validates and tests stays.

With the same seed a smaller share is a part of a larger one, so that a curve over shares is one of more
labels and not of other patients.
"""

import numpy as np
import pandas as pd

from histo_ssl.folds.base import Fold, Ints, Mask
from histo_ssl.folds.partition import counts_by_patient

FRACTION_STREAM = 1  # of random numbers


def with_fraction(fold: Fold, cases: pd.DataFrame, *, fraction: float, seed: int) -> Fold:
    """The fold with a share of its training patients of each class, or set of classes, one at the least.

    Args:
        fold: of the slides in `cases`.
        cases: one row per slide: patient, label.
        fraction: share of the patients, above 0 and up to 1, which keeps all.
        seed: of the order in which patients are taken.

    Raises:
        ValueError: the share is not above 0 and up to 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"task.label_fraction={fraction}: a share above 0 and up to 1 is expected")
    n_PC, _ = counts_by_patient(cases[fold.train])
    patients = np.unique(cases["patient"][fold.train].to_numpy(dtype=str))
    stratum = np.unique(n_PC > 0, axis=0, return_inverse=True)[1].ravel()  # a patient may be of two classes
    kept = patients[_is_kept(stratum, fraction=fraction, seed=[seed, FRACTION_STREAM, *fold.name.encode()])]
    train = fold.train & cases["patient"].isin(kept).to_numpy()
    return Fold(name=fold.name, train=train, valid=fold.valid, test=fold.test)


def _is_kept(stratum: Ints, *, fraction: float, seed: list[int]) -> Mask:
    """Who is among the first of a random order of each stratum."""
    order = np.random.default_rng(seed).random(len(stratum))
    kept = np.zeros(len(stratum), dtype=bool)
    for name in np.unique(stratum):
        members = np.flatnonzero(stratum == name)
        n_kept = max(1, round(fraction * len(members)))
        kept[members[np.argsort(order[members])[:n_kept]]] = True
    return kept
