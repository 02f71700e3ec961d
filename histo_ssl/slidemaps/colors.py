"""Colours of maps: of numbers on a scale, and of classes.

Letters: K classes.
"""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's, told apart by those who see fewer colours, and four more.
CATEGORIES = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a7600", "#333333"),
    *("#9a9a9a", "#6a3d9a", "#7fb800", "#7b4b2a"),
)
DARKENED = 0.5  # of the same colours, for a second dozen: the share that keeps all 24 furthest apart


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Numbers as colours of one of matplotlib's colour maps.

    Raises:
        ValueError: the map is unknown, or the ends are not in order.
    """

    colormap: str  # viridis and cividis are the same to those who see fewer colours
    low: float  # has the first colour, as has what is below
    high: float  # has the last

    def __post_init__(self) -> None:
        if self.colormap not in mpl.colormaps:
            raise ValueError(
                f"colormap={self.colormap} is unknown; one of matplotlib's is expected, such as viridis or "
                "cividis"
            )
        if not self.low < self.high:
            raise ValueError(
                f"a scale from {self.low:g} to {self.high:g}; its low end must be below its high"
            )

    def rgb(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Colours (..., 3) of numbers (...); of what is no number (NaN), the first."""
        steps = np.nan_to_num(values.astype(np.float64), nan=self.low, copy=False)
        np.clip(steps, self.low, self.high, out=steps)
        steps -= self.low
        steps *= 255 / (self.high - self.low)
        table = np.round(255 * mpl.colormaps[self.colormap](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
        return np.take(table, np.round(steps, out=steps).astype(np.uint8), axis=0)


def palette(n_classes: int) -> NDArray[np.uint8]:
    """A colour (K, 3) for each class: a dozen, then the same in darker.

    Raises:
        ValueError: there are more classes than colours.
    """
    if n_classes > 2 * len(CATEGORIES):
        raise ValueError(
            f"{n_classes} classes have no colours that could be told apart; at most {2 * len(CATEGORIES)} "
            "are expected: join some of them"
        )
    strong = np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in CATEGORIES])
    dark = np.round((1 - DARKENED) * strong)
    return np.concatenate([strong, dark])[:n_classes].astype(np.uint8)
