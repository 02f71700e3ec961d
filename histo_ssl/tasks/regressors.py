"""The protocols of regression: ordinary least squares, as the study's, and ridge regression.

Letters: N training tiles, M test tiles, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from histo_ssl.tasks.regression import NumberLesson

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """Ordinary least squares with an intercept, on embeddings as they are (arXiv:2203.00585).

    Of the solutions that fit equally well, that of the smallest norm of weights. scikit-learn's
    LinearRegression would do the same, with a tolerance that changed between its releases.

    Args:
        rank_tolerance: singular values of the centred embeddings below this share of the largest count as 0.
    """

    rank_tolerance: float

    def __post_init__(self) -> None:
        if not 0 <= self.rank_tolerance < 1:
            raise ValueError(
                f"least_squares: rank_tolerance={self.rank_tolerance}: a share, 0 or more and below 1, is "
                "expected"
            )

    def predict(self, lesson: NumberLesson, test_MD: NDArray[np.float32]) -> tuple[Floats, list[str]]:
        """Numbers (M,), and a note where the fit is exact, or one of many."""
        train_ND = lesson.features_ND.astype(np.float64)
        mean_D, mean = train_ND.mean(axis=0), lesson.number_N.mean()
        weight_D, _, rank, _ = linalg.lstsq(
            train_ND - mean_D, lesson.number_N - mean, cond=self.rank_tolerance
        )
        predicted_M: Floats = (test_MD.astype(np.float64) - mean_D) @ weight_D + mean
        return predicted_M, _cautions(*train_ND.shape, rank=int(rank))


@dataclass(frozen=True, kw_only=True)
class RidgeRegression:
    """Ridge regression with an intercept; mean and SD of the features are those of the training tiles.

    Args:
        alphas: weights of the penalty to choose from, by the lowest mean squared error of cross-validation
            over whole patients (or slides).
        n_folds: of it; fewer where train has fewer patients.
    """

    alphas: Sequence[float]
    n_folds: int

    def __post_init__(self) -> None:
        if not self.alphas or min(self.alphas) <= 0:
            raise ValueError(f"ridge: alphas={list(self.alphas)}: numbers above 0 are expected")
        if self.n_folds < 2:
            raise ValueError(f"ridge: n_folds={self.n_folds}: 2 or more are expected")

    def predict(self, lesson: NumberLesson, test_MD: NDArray[np.float32]) -> tuple[Floats, list[str]]:
        """Numbers (M,), and a note where alpha could not be chosen."""
        alpha, notes = self._alpha(lesson)
        model = self._model(alpha).fit(lesson.features_ND.astype(np.float64), lesson.number_N)
        predicted_M: Floats = model.predict(test_MD.astype(np.float64))
        return predicted_M, notes

    def _model(self, alpha: float) -> Pipeline:
        return make_pipeline(StandardScaler(), Ridge(alpha=alpha))

    def _alpha(self, lesson: NumberLesson) -> tuple[float, list[str]]:
        """The alpha to use, and why if it was not chosen as asked."""
        if len(self.alphas) == 1:
            return self.alphas[0], []
        n_folds = min(self.n_folds, len(np.unique(lesson.group_N)))
        if n_folds < 2:
            middle = sorted(self.alphas)[len(self.alphas) // 2]
            return middle, [f"has one patient (or slide) in train: its alpha is {middle:g}, unchosen"]
        search = GridSearchCV(
            self._model(1.0),
            {"ridge__alpha": list(self.alphas)},
            scoring="neg_mean_squared_error",
            cv=list(GroupKFold(n_folds).split(lesson.features_ND, groups=lesson.group_N)),
            refit=False,
        )
        search.fit(lesson.features_ND.astype(np.float64), lesson.number_N)
        return float(search.best_params_["ridge__alpha"]), []


def _cautions(n_tiles: int, width: int, *, rank: int) -> list[str]:
    """What a reader must know of a fit by least squares, a sentence at most."""
    if width >= n_tiles - 1:
        return [
            f"has {width:,} weights for {n_tiles:,} training tiles and can fit them exactly: ridge is the "
            "steadier of the two"
        ]
    if rank < width:
        return [f"tells {rank:,} of {width:,} dimensions apart: of equal fits it takes the smallest weights"]
    return []
