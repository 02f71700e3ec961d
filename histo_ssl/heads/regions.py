"""Attention over a region larger than a tile, in windows that overlap.

Attention is a softmax within its window: the same nucleus gets less of it beside others than alone. So each
window's weights are taken relative to an even share of them, and multiplied by a factor of its own, such
that windows agree where they overlap: the least squares of all differences of logarithms. What was a softmax
of the same logits in every window then is one softmax over the region. Blended with weights that fall to the
windows' borders, no border is left to be seen.

W: windows; H: heads; h, w: rows and columns of patches of a window; n: cells along a window.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from histo_ssl.heads.attending import Attends

Floats = NDArray[np.float64]
Places = list[tuple[int, int]]  # row and column of each window's upper left cell
Cells = tuple[slice, slice]  # some rows and columns of a window

WHITE = 255  # around a region that windows don't divide
FAINTEST = 1e-12  # of an even share, so that logarithms are finite
# Pulls each factor to 1, with so much of one overlap's pull: across many windows small disagreements add up.
TIE = 1e-3
AT_ONCE = 64  # windows


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a region is cut.

    Args:
        side_px: of a window, a multiple of the patch.
        stride_px: from one window to the next; smaller than the side. One that is no multiple of the patch
            makes a map that is finer than patches.
        patch_px: of the backbone.

    Raises:
        ValueError: windows would not overlap, or not be made of patches.
    """

    side_px: int
    stride_px: int
    patch_px: int

    def __post_init__(self) -> None:
        if self.side_px % self.patch_px or not 0 < self.stride_px < self.side_px:
            raise ValueError(
                f"windows of {self.side_px} px at every {self.stride_px} px: a side that is a multiple of "
                f"the patch, {self.patch_px} px, and a stride between 0 and the side are expected"
            )

    @classmethod
    def finer(cls, *, side_px: int, patch_px: int, overlap: float) -> Self:
        """Windows that overlap by a share of their side or a little more, in cells of half a patch.

        At every 104 px for windows of 224 px, patches of 16 px and an overlap of a half.
        """
        half = patch_px // 2 if patch_px % 2 == 0 else patch_px
        odd = max(1, 2 * math.floor(((1 - overlap) * side_px / half - 1) / 2) + 1)
        return cls(side_px=side_px, stride_px=odd * half, patch_px=patch_px)

    @property
    def cell_px(self) -> int:
        """Side of the squares that a region's map is made of: 8 for patches of 16 px at every 104 px."""
        return math.gcd(self.patch_px, self.stride_px)

    def starts(self, length_px: int) -> range:
        """Where windows begin that cover a length; the last one may reach beyond it."""
        n = 1 + math.ceil(max(0, length_px - self.side_px) / self.stride_px)
        return range(0, n * self.stride_px, self.stride_px)


def attended(region_HW3: NDArray[np.uint8], attends: Attends, windows: Windows) -> Floats:
    """Attention (H, rows, columns) over a region, by cells of `windows.cell_px`; each head's sums to 1.

    Args:
        region_HW3: RGB at the scale of the tiles that the heads know; white is added at its right and below
            until windows divide it, and taken off again.
        attends: gives tiles of the windows' side their maps.
        windows: how it is cut.
    """
    height, width = region_HW3.shape[:2]
    tops, lefts = windows.starts(height), windows.starts(width)
    beyond = [starts[-1] + windows.side_px - length for starts, length in ((tops, height), (lefts, width))]
    margins = [(0, max(0, more)) for more in beyond]
    whole = np.pad(region_HW3, [*margins, (0, 0)], constant_values=WHITE)
    corners = [(top, left) for top in tops for left in lefts]
    maps_WHhw = np.concatenate(list(_maps(whole, corners, attends, side_px=windows.side_px)))
    places = [(top // windows.cell_px, left // windows.cell_px) for top, left in corners]
    finer = windows.patch_px // windows.cell_px
    cells_WHnn = _relative(maps_WHhw).repeat(finer, axis=2).repeat(finer, axis=3)
    matched = cells_WHnn * matching(cells_WHnn, places)[..., None, None]
    rows, columns = (math.ceil(length / windows.cell_px) for length in (height, width))
    found = blended(matched, places)[:, :rows, :columns]
    return np.asarray(found / found.sum(axis=(1, 2), keepdims=True))


def matching(cells_WHnn: Floats, places: Places) -> Floats:
    """A factor (W, H) for each window and head, by which neighbours agree where they overlap.

    Args:
        cells_WHnn: above 0.
        places: of the windows, which form a grid.
    """
    logs = np.log(cells_WHnn)
    pairs = list(_overlaps(places, n=cells_WHnn.shape[-1]))
    if not pairs:
        return np.ones(cells_WHnn.shape[:2])
    # row: one overlap; the logarithms of factors shall differ by as much as those of cells do, the other way
    differences = [(logs[i][:, *mine] - logs[j][:, *its]).mean(axis=(1, 2)) for i, j, mine, its in pairs]
    rows = np.repeat(np.arange(len(pairs)), 2)
    columns = np.array([(i, j) for i, j, _, _ in pairs]).ravel()
    signs = np.tile([-1.0, 1.0], len(pairs))
    design = sparse.csc_array((signs, (rows, columns)), shape=(len(pairs), len(places)))
    normal = (design.T @ design + TIE * sparse.eye_array(len(places))).tocsc()
    return np.exp(splu(normal).solve(design.T @ np.array(differences)))


def blended(cells_WHnn: Floats, places: Places) -> Floats:
    """Windows laid over each other (H, rows, columns): means with Hann's weights, which fall to the borders.

    A ViT treats patches at the border of its window in its own way, so that they count least.
    """
    _, n_heads, n, _ = cells_WHnn.shape
    rows, columns = (max(place[axis] for place in places) + n for axis in (0, 1))
    total, weight = np.zeros((n_heads, rows, columns)), np.zeros((rows, columns))
    along_n = np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2
    weight_nn = np.outer(along_n, along_n)
    for cells, (top, left) in zip(cells_WHnn, places, strict=True):
        total[:, top : top + n, left : left + n] += weight_nn * cells
        weight[top : top + n, left : left + n] += weight_nn
    return np.asarray(total / weight)


def _maps(whole: NDArray[np.uint8], corners: Places, attends: Attends, *, side_px: int) -> Iterator[Floats]:
    for first in range(0, len(corners), AT_ONCE):
        cut = [
            whole[top : top + side_px, left : left + side_px]
            for top, left in corners[first : first + AT_ONCE]
        ]
        yield attends(torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)).maps_BHhw


def _relative(maps_WHhw: Floats) -> Floats:
    """Weights over an even share of what a window's patches get together."""
    relative = maps_WHhw / maps_WHhw.mean(axis=(2, 3), keepdims=True)
    return np.asarray(np.maximum(relative, FAINTEST))


def _overlaps(places: Places, *, n: int) -> Iterator[tuple[int, int, Cells, Cells]]:
    """Pairs of windows next to each other in a row or column, and the cells of each that they share."""
    known = {place: i for i, place in enumerate(places)}
    tops, lefts = (sorted({place[axis] for place in places}) for axis in (0, 1))
    below, right = dict(itertools.pairwise(tops)), dict(itertools.pairwise(lefts))
    everything = slice(0, n)
    for (top, left), i in known.items():
        if top in below:
            mine, its = _shared(below[top] - top, n=n)
            yield i, known[below[top], left], (mine, everything), (its, everything)
        if left in right:
            mine, its = _shared(right[left] - left, n=n)
            yield i, known[top, right[left]], (everything, mine), (everything, its)


def _shared(step: int, *, n: int) -> tuple[slice, slice]:
    return slice(step, n), slice(0, n - step)
