"""A slide window by window: what a tissue needs is made where the tissue lies, and stays in a core's cache.

Letters: h, w a coarse raster; H, W the slide in px; a dot for leading axes, if any.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Window = tuple[slice, slice]  # rows and columns of the slide
WINDOW_PX = 128  # a field of a window takes 64 kB, and a dozen of them are at work at a time


def windows(shape: tuple[int, int]) -> Iterator[Window]:
    """All windows of a slide (rows, columns), row by row; those at its end may be smaller."""
    for top in range(0, shape[0], WINDOW_PX):
        for left in range(0, shape[1], WINDOW_PX):
            yield slice(top, min(top + WINDOW_PX, shape[0])), slice(left, min(left + WINDOW_PX, shape[1]))


class Stretched:
    """Coarse fields (..., h, w) at the slide's size, bicubic as by Pillow; pixel centres stay."""

    def __init__(self, coarse_hw: Floats, shape: tuple[int, int]) -> None:
        self._coarse_hw = coarse_hw
        self._rows, self._columns = (
            bicubic(n, side) for n, side in zip(coarse_hw.shape[-2:], shape, strict=True)
        )

    def part(self, window: Window) -> Floats:
        """The coarse pixels (..., h, w) that all of a window is made of."""
        (_, rows), (_, columns) = self._rows[window[0].start], self._columns[window[1].start]
        return self._coarse_hw[..., rows, columns]

    def at(self, window: Window) -> Floats:
        """The fields (..., H, W) in a window."""
        (down, rows), (right, columns) = self._rows[window[0].start], self._columns[window[1].start]
        return np.asarray(down @ self._coarse_hw[..., rows, columns] @ right.T)


@lru_cache(maxsize=32)
def bicubic(n: int, side: int) -> dict[int, tuple[Floats, slice]]:
    """Weights that make `side` pixels of n: Keys' cubic with a = -0.5.

    Where it makes fewer pixels of more, the cubic is as much wider, so that nothing is skipped
    (IEEE Trans Acoust 1981; 29: 1153-1160, eq. 4; the widening is Pillow's).

    Returns:
        For the first pixel of each window, weights (pixels of the window, coarse pixels), each row with the
        sum 1, and the coarse pixels that they are for.
    """
    scale = n / side
    centre = (np.arange(side) + 0.5) * scale
    x = np.abs(np.arange(n) + 0.5 - centre[:, None]) / max(1.0, scale)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    found = {}
    for start in range(0, side, WINDOW_PX):
        block = weights[start : start + WINDOW_PX]
        used = np.flatnonzero(block.any(axis=0))
        coarse = slice(int(used[0]), int(used[-1]) + 1)
        found[start] = np.ascontiguousarray(block[:, coarse]), coarse
    return found


def logistic(x: Floats) -> Floats:
    """1 / (1 + exp(-x)): 0.5 at 0; by the tangent, which numpy has in vector instructions, scipy's not."""
    return np.asarray(np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5))
