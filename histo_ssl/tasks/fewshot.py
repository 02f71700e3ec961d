"""The protocol of few examples: each class is the mean of k of its training tiles, drawn again and again.

Prototypical networks (arXiv:1703.05175, eqs. 1 and 2) without any training of their own, on embeddings that
are centred and brought to length 1 (SimpleShot, arXiv:1911.04623, section 3.2). We centre by the mean of the
examples, which is all that such a classifier may know.

Letters: N training tiles, M test tiles, D width, C classes, K examples of each, E episodes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from histo_ssl.tasks.tiles import Lesson

Floats = NDArray[np.float64]
TINY = 1e-12  # length below which an embedding has no direction


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Nearest prototype.

    Args:
        k: examples of each class.
        n_episodes: times that they are drawn.
        is_centred: subtract the mean of the examples.
        is_normalised: bring embeddings to length 1 after that.
        seed: of the draws.
    """

    k: int
    n_episodes: int
    is_centred: bool
    is_normalised: bool
    seed: int

    def __post_init__(self) -> None:
        if self.k < 1 or self.n_episodes < 1:
            raise ValueError(f"fewshot: k={self.k}, n_episodes={self.n_episodes}: 1 or more are expected")

    def classify(self, lesson: Lesson, test_MD: NDArray[np.float32]) -> tuple[Floats, list[str]]:
        """Probabilities (E, M, C) by distance from the prototypes, and how the episodes are to be read.

        Raises:
            ValueError: a class has fewer training tiles than k.
        """
        n_C = np.bincount(lesson.class_N, minlength=lesson.n_classes)
        if n_C.min() < self.k:
            raise ValueError(
                f"fewshot: k={self.k} examples of each class are asked for, the smallest has {n_C.min()} "
                f"training tiles; take k of at most {n_C.min()}, or leave this protocol out"
            )
        rng = np.random.default_rng(self.seed)
        rows_of = [np.flatnonzero(lesson.class_N == c) for c in range(lesson.n_classes)]
        test = test_MD.astype(np.float64)
        scores = []
        for _ in range(self.n_episodes):
            row_CK = np.stack([rng.choice(rows, size=self.k, replace=False) for rows in rows_of])
            scores.append(self._episode(lesson.features_ND[row_CK].astype(np.float64), test))
        return np.stack(scores), [f"is the mean of {self.n_episodes} draws of {self.k} tiles of each class"]

    def _episode(self, example_CKD: Floats, test_MD: Floats) -> Floats:
        """Probabilities (M, C): softmax of the negative squared distances."""
        origin_D = example_CKD.mean(axis=(0, 1)) if self.is_centred else np.zeros(test_MD.shape[1])
        prototype_CD = self._placed(example_CKD - origin_D).mean(axis=1)
        placed_MD = self._placed(test_MD - origin_D)
        # |x|^2 is the same for all classes
        far_MC = (prototype_CD**2).sum(axis=1) - 2 * placed_MD @ prototype_CD.T
        probability_MC: Floats = softmax(-far_MC, axis=1)
        return probability_MC

    def _placed(self, x: Floats) -> Floats:
        if not self.is_normalised:
            return x
        length: Floats = np.linalg.norm(x, axis=-1, keepdims=True)
        return x / np.maximum(length, TINY)
