"""The protocols of regression: ordinary least squares, as the study's, and ridge regression.

Letters: N training tiles, M test tiles, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from histo_ssl.tasks.regression import NumberLesson

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LeastSquares:
    """Ordinary least squares with an intercept, on embeddings as they are (arXiv:2203.00585).

    Of the solutions that fit equally well, that of the smallest norm of weights (scikit-learn's
    LinearRegression).
    """

    def predict(self, lesson: NumberLesson, test_MD: NDArray[np.float32]) -> tuple[Floats, list[str]]:
        """Numbers (M,), and a note where there are no fewer weights than training tiles."""
        n_tiles, width = lesson.features_ND.shape
        model = LinearRegression().fit(lesson.features_ND.astype(np.float64), lesson.number_N)
        predicted_M: Floats = model.predict(test_MD.astype(np.float64))
        if width < n_tiles - 1:
            return predicted_M, []
        return predicted_M, [
            f"has {width:,} weights for {n_tiles:,} training tiles and can fit them exactly: ridge is the "
            "steadier of the two"
        ]


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
