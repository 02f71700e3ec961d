"""What a division of slides is.

Letters: n slides.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One division of slides: whom a model learns from, who chooses its epoch, whom it is asked of."""

    name: str
    train: Mask  # (n,), as the others; no slide is in two of them
    valid: Mask
    test: Mask


class Folding(Protocol):
    """A way to divide slides, again and again."""

    def split(self, cases: pd.DataFrame) -> tuple[list[Fold], list[str]]:
        """The folds of slides, and what a reader of their scores must know.

        Args:
            cases: one row per slide: slide, patient, site, label (text).
        """
