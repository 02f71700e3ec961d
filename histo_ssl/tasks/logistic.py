"""The protocol of logistic regression: a linear classifier on standardised embeddings, by L-BFGS.

Two ways to choose its regularisation: by cross-validation within the training tiles, whole patients at a
time, so that no test tile and no patient's other tiles have a say; or by a rule that looks at nothing, UNI's
(arXiv:2308.15474, methods): the penalty is 100 / (D C), which for scikit-learn is C = D * classes / 100.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from histo_ssl.tasks.tiles import Lesson

Ints = NDArray[np.int64]

RULE = 100.0  # of UNI's penalty


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """Multinomial logistic regression; mean and SD of the features are those of the training tiles.

    Args:
        strengths: values of scikit-learn's C to choose from, by the lowest mean log loss; None: UNI's rule.
        n_folds: of the cross-validation; fewer where a class has fewer patients.
        max_iter: of L-BFGS.
        seed: of the folds.
    """

    strengths: Sequence[float] | None
    n_folds: int
    max_iter: int
    seed: int

    def __post_init__(self) -> None:
        if self.strengths is not None and not (self.strengths and min(self.strengths) > 0):
            raise ValueError(
                f"logistic: strengths={self.strengths}: numbers above 0 are expected, or null for UNI's rule"
            )
        if self.n_folds < 2 or self.max_iter < 1:
            raise ValueError(
                f"logistic: n_folds={self.n_folds}, max_iter={self.max_iter}: 2 folds and 1 iteration, or "
                "more, are expected"
            )

    def classify(self, lesson: Lesson, test_MD: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[str]]:
        """Probabilities (M, C), and notes on what could not be chosen or did not converge."""
        strength, notes = self._strength(lesson)
        model = self._model(strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it becomes a note
            model.fit(lesson.features_ND.astype(np.float64), lesson.class_N)
        if int(model[-1].n_iter_.max()) >= self.max_iter:
            notes.append(f"had not converged after {self.max_iter} iterations")
        probability_MC: NDArray[np.float64] = model.predict_proba(test_MD.astype(np.float64))
        return probability_MC, notes

    def _model(self, strength: float) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=self.max_iter))

    def _strength(self, lesson: Lesson) -> tuple[float, list[str]]:
        """The C to use, and why if it was not chosen as asked."""
        by_rule = lesson.features_ND.shape[1] * lesson.n_classes / RULE
        if self.strengths is None:
            return by_rule, []
        folds, why = folds_of(lesson, n_folds=self.n_folds, seed=self.seed)
        if why:
            return by_rule, [f"{why}: C follows UNI's rule, unchosen"]
        classes = list(range(lesson.n_classes))  # a fold set aside may lack one
        search = GridSearchCV(
            self._model(1.0),
            {"logisticregression__C": list(self.strengths)},
            scoring=make_scorer(
                log_loss, response_method="predict_proba", greater_is_better=False, labels=classes
            ),
            cv=folds,
            refit=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last fit tells
            search.fit(lesson.features_ND.astype(np.float64), lesson.class_N)
        return float(search.best_params_["logisticregression__C"]), []


def folds_of(lesson: Lesson, *, n_folds: int, seed: int) -> tuple[list[tuple[Ints, Ints]], str]:
    """Rows that learn and rows set aside, no patient (or slide) on both sides; or why there are none.

    A fold is left out where those who learn lack a class, as what they learn says nothing of it.

    Args:
        lesson: its features don't matter.
        n_folds: at most so many; fewer where a class has fewer patients.
        seed: of the draw.
    """
    n_folds = min(n_folds, fewest_groups(lesson))
    if n_folds < 2:
        return [], "has a class of one patient (or slide) in train"
    drawn = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    rows = np.zeros(len(lesson.class_N))
    folds = [
        (learn, aside)
        for learn, aside in drawn.split(rows, lesson.class_N, lesson.group_N)
        if len(aside) and len(np.unique(lesson.class_N[learn])) == lesson.n_classes
    ]
    nobody = "has no patients (or slides) that can be set aside and leave others of each class"
    return folds, "" if folds else nobody


def fewest_groups(lesson: Lesson) -> int:
    """Of all classes the smallest number of patients (or slides) that have it in train."""
    n_groups = [len(np.unique(lesson.group_N[lesson.class_N == c])) for c in range(lesson.n_classes)]
    return min(n_groups)
