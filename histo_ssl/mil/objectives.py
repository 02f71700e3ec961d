"""What a bag is to be told by: the loss of its outputs, and what a validation is judged by.

Letters: B bags of a batch, M bags of a validation or test, C outputs of a bag.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import multiclass_auroc

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Objective(Protocol):
    """What the outputs of bags are held against; bags by their numbers."""

    @property
    def n_outputs(self) -> int:
        """C, how many numbers a model gives a bag."""

    def loss(self, outputs_BC: Tensor, bag_B: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""

    def classes(self, bag_B: Tensor) -> Tensor | None:
        """(B,) for losses on the tiles of a class; None where bags have none."""

    def score(self, outputs_MC: Tensor, bag_M: Tensor) -> float:
        """How good the outputs are, higher is better; NaN where these bags can't tell."""

    def stratum(self, bag_N: Ints) -> Ints:
        """(N,) what a weighted sampling draws evenly."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Bags of several classes: cross-entropy; a validation is judged by its macro one-vs-rest AUC.

    Args:
        class_N: of every bag, 0 to C - 1; -1 where it is not known, and never asked for.
        n_outputs: C.
    """

    class_N: Ints
    n_outputs: int

    def loss(self, outputs_BC: Tensor, bag_B: Tensor) -> Tensor:
        """Cross-entropy; log C where all outputs are equal."""
        return F.cross_entropy(outputs_BC.float(), self.classes(bag_B))

    def classes(self, bag_B: Tensor) -> Tensor:
        """(B,) the bags' classes."""
        return torch.from_numpy(self.class_N[bag_B.cpu().numpy()]).to(bag_B.device)

    def score(self, outputs_MC: Tensor, bag_M: Tensor) -> float:
        """Mean AUC of the classes that are there; NaN where there is only one."""
        truth_M = self.classes(bag_M)
        there_C = torch.bincount(truth_M, minlength=self.n_outputs) > 0
        if int(there_C.sum()) < 2:
            return math.nan
        by_class_C = multiclass_auroc(
            outputs_MC.double().softmax(dim=1), truth_M, num_classes=self.n_outputs, average="none"
        )
        return float(by_class_C[there_C].mean())

    def stratum(self, bag_N: Ints) -> Ints:
        """The class."""
        return self.class_N[bag_N]
