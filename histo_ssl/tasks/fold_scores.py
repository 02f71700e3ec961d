"""Scores of a cross-validation: each fold's, their mean, and those of all folds' predictions together.

The mean over folds and the pooled score answer different questions: the first asks of one model how it ranks
the cases that it has not seen, the second also whether the models of all folds speak the same language. Both
have intervals by resampling patients; the SD over folds (ddof 1) stands beside them and is no such interval,
since folds share most of what they learn.

Letters: F folds, M predictions of a fold, G patients (or slides), C classes, R resamples, K scores.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.tasks.base import Score
from histo_ssl.tasks.bootstrap import Asked, Estimated, group_weights, with_interval
from histo_ssl.tasks.scores import Predictions, episode_scores, score_names, values_of

Floats = NDArray[np.float64]
FOLD_MEAN = "fold_mean_auc"  # metric: the AUC of each fold, averaged
FOLD_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc")


def pooled_scores(folds: Sequence[Predictions], asked: Asked) -> list[Score]:
    """Scores of the predictions of all folds together, and the mean over folds of their AUC.

    Args:
        folds: of each fold; the same number in `group_M` is the same patient in every fold.
        asked: whose they are.
    """
    return [*episode_scores([_pooled(folds)], asked), _fold_mean(folds, asked)]


def fold_table(folds: Sequence[Predictions], names: Sequence[str]) -> pd.DataFrame:
    """A row per fold: its name, the number of its predictions, accuracy, balanced accuracy, macro F1, AUC."""
    rows = []
    for name, one in zip(names, folds, strict=True):
        values = dict(zip(score_names(one), values_of(one, np.ones((1, one.n_groups)))[0], strict=True))
        rows.append({"fold": name, "n_test": len(one.truth_M), **{m: values[m, ""] for m in FOLD_METRICS}})
    return pd.DataFrame(rows)


def _pooled(folds: Sequence[Predictions]) -> Predictions:
    """All predictions as one test; a case that several folds test is there as often."""
    group_M = np.concatenate([one.group_M for one in folds])
    return replace(
        folds[0],
        score_MC=np.concatenate([one.score_MC for one in folds]),
        truth_M=np.concatenate([one.truth_M for one in folds]),
        group_M=np.unique(group_M, return_inverse=True)[1],
    )


def _fold_mean(folds: Sequence[Predictions], asked: Asked) -> Score:
    """The mean of the folds' AUCs; a fold, or a resample of one, that can't tell has no part in it."""
    n_groups = max(one.n_groups for one in folds)
    n_rows = max(len(one.truth_M) for one in folds)
    blocks = group_weights(n_groups, n=asked.n_bootstrap, seed=asked.seed, n_tiles=n_rows)
    return with_interval(
        Estimated(
            metric=FOLD_MEAN,
            label="",
            value=mean_auc(folds, np.ones((1, n_groups)))[0],
            drawn_R=np.concatenate([mean_auc(folds, w_RG) for w_RG in blocks]),
            varies=n_groups > 1,
            chance=0.5,
        ),
        asked,
    )


def mean_auc(folds: Sequence[Predictions], w_RG: Floats) -> Floats:
    """The mean (R,) of the folds' AUCs under each weighting of the patients; a fold without one is left out.

    Args:
        folds: of each fold; the same number in `group_M` is the same patient in every fold.
        w_RG: weight of each patient.
    """
    place = score_names(folds[0]).index(("auc", ""))
    with np.errstate(invalid="ignore"):  # of a resample without any patient of a fold
        auc_FR = np.array([values_of(one, w_RG[:, : one.n_groups])[:, place] for one in folds])
    with warnings.catch_warnings():  # of a resample that no fold defines; its NaN is what is meant
        warnings.simplefilter("ignore", RuntimeWarning)
        mean_R: Floats = np.nanmean(auc_FR, axis=0)
    return mean_R
