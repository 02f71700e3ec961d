"""The protocol of the nearest neighbours: nothing is trained but the encoder.

Two settings have names. DINO's: L2-normalised embeddings, the k most similar vote with weight exp(s / T)
(Wu et al., arXiv:1805.01978, section 3.4). That of arXiv:2203.00585: plain votes of the nearest in Euclidean
distance.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from histo_ssl.tasks.neighbors import KnnProtocol, knn_scores
from histo_ssl.tasks.tiles import Lesson


@dataclass(frozen=True, kw_only=True)
class Knn(KnnProtocol):
    """The vote of neighbours, on the GPU where there is one that may be used."""

    chunk_rows: int  # test tiles compared at a time with all of train; changes memory, not the result

    def classify(self, lesson: Lesson, test_MD: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[str]]:
        """Each class's share (M, C) of the vote; a note where all training tiles vote for want of more."""
        votes_MC = knn_scores(
            torch.from_numpy(lesson.features_ND).to(lesson.device),
            torch.from_numpy(lesson.class_N).to(lesson.device),
            torch.from_numpy(test_MD).to(lesson.device),
            n_classes=lesson.n_classes,
            protocol=self,
            chunk_rows=self.chunk_rows,
        )
        n_train = len(lesson.class_N)
        clamped = f"asks for {self.k} neighbours, train has {n_train} tiles: all of them vote"
        return votes_MC.cpu().numpy(), [clamped] if self.k > n_train else []
