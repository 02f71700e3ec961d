"""Macenko's normalisation: the two dyes of a tile are found, and replaced by the target's.

M. Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009. In
optical density the pixels of a tile lie in the plane of its two dyes, between them; so the dyes are the
extremes of the angle in that plane, which is spanned by the two largest singular vectors. The amount of each
dye is then scaled so that its largest is the target's.

Where we differ from M. Veta's normalizeStaining.m, which other programs follow: the plane passes through the
origin, as in the paper (Veta's is that of the covariance); the largest amounts are those of the tissue, so
that glass beside it changes nothing (Veta's are of all pixels); black counts as 1 (Veta adds 1 to every
value, and does not take it off again, so that an image like the target comes out brighter).

B: tiles; P: pixels; rows of (2, 3) are haematoxylin and eosin in red, green, blue.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from histo_ssl.stain.base import Restained, check_numbers
from histo_ssl.stain.optics import darkest_glass, eight_bit, log_light, mixed, upper_quantile


@dataclass(frozen=True)
class Measured:
    """What was found of B tiles."""

    density_B3P: Tensor  # natural logarithm of white over value
    dyes_B23: Tensor  # rows of length 1, float64
    unmix_B23: Tensor  # makes amounts of densities, float64
    amount_B2: Tensor  # the largest of each dye, but for `amount_tail` of the tissue, float64
    is_found_B: Tensor  # bool: there is tissue enough, and two dyes in it


@dataclass(frozen=True, kw_only=True)
class Macenko:
    """Gives tiles the dyes and the amounts of a target.

    Args:
        dyes: optical density of one unit of each of the target's dyes, (2, 3).
        amounts: the largest amount of each dye in the target, (2,).
        white: value of the light that passes glass.
        min_density: pixels that absorb less in any channel tell nothing of dyes; natural logarithm.
        angle_tail: share of the tissue that may lie beyond a dye.
        amount_tail: share of the tissue that may hold more of a dye than its largest amount.
        min_tissue: a tile is left as it is with a smaller share of such pixels,
        min_angle_deg: or if its dyes are more alike,
        max_gain: or if the amounts of a dye would be multiplied by more than this.
    """

    dyes: Sequence[Sequence[float]]
    amounts: Sequence[float]
    white: float
    min_density: float
    angle_tail: float
    amount_tail: float
    min_tissue: float
    min_angle_deg: float
    max_gain: float

    def __post_init__(self) -> None:
        check_numbers(self, dyes=(2, 3), amounts=(2,))

    def __call__(self, tiles_B3P: Tensor) -> Restained:
        """Tiles in the target's dyes."""
        found = self.measure(tiles_B3P)
        gain_B2 = found.amount_B2.new_tensor(self.amounts) / found.amount_B2
        is_left_B = ~(found.is_found_B & ((gain_B2 > 0) & (gain_B2 <= self.max_gain)).all(1))
        unmix_B23 = gain_B2[..., None] * found.unmix_B23
        dyes_23 = gain_B2.new_tensor(self.dyes)
        remix_B33 = (dyes_23[:, :, None] * unmix_B23[:, :, None, :]).sum(1)
        light = mixed(found.density_B3P, -remix_B33).exp_().mul_(self.white)
        return Restained(eight_bit(light), is_left_B)

    def fitted(self, image_13P: Tensor) -> Self:
        """The same with the dyes and amounts of an image."""
        found = self.measure(image_13P)
        if not (found.is_found_B & (found.amount_B2 > 0).all(1)).item():
            raise ValueError(
                f"no two dyes can be told in it: at least {self.min_tissue:g} of it must be tissue, and the "
                f"dyes {self.min_angle_deg:g} degrees apart"
            )
        return replace(self, dyes=found.dyes_B23[0].tolist(), amounts=found.amount_B2[0].tolist())

    def measure(self, tiles_B3P: Tensor) -> Measured:
        """The dyes of each tile and their largest amounts."""
        density_B3P = math.log(self.white) - log_light(tiles_B3P)
        is_in_BP = tiles_B3P.amax(1) <= darkest_glass(white=self.white, min_density=self.min_density)
        dyes_B23, angle_B = self._dyes(density_B3P, is_in_BP)
        unmix_B23 = _unmixing(dyes_B23)
        amounts_B2P = mixed(density_B3P, unmix_B23)
        amount_B2 = torch.stack(
            [upper_quantile(amounts_B2P[:, k], is_in_BP, share=self.amount_tail) for k in range(2)], dim=1
        )
        has_tissue_B = is_in_BP.sum(1) >= self.min_tissue * is_in_BP.shape[1]
        is_found_B = has_tissue_B & (angle_B >= math.radians(self.min_angle_deg))
        return Measured(density_B3P, dyes_B23, unmix_B23, amount_B2, is_found_B)

    def _dyes(self, density_B3P: Tensor, is_in_BP: Tensor) -> tuple[Tensor, Tensor]:
        """The dyes (B, 2, 3) and the angles (B,) between them."""
        plane_B23 = _plane(density_B3P, is_in_BP)
        along_BP, across_BP = mixed(density_B3P, plane_B23).unbind(1)
        angle_BP = torch.atan2(across_BP, along_BP)
        high_B = upper_quantile(angle_BP, is_in_BP, share=self.angle_tail)
        low_B = -upper_quantile(-angle_BP, is_in_BP, share=self.angle_tail)
        ends_B2 = torch.stack([low_B, high_B], dim=1)
        turns_B22 = torch.stack([ends_B2.cos(), ends_B2.sin()], dim=2)
        dyes_B23 = (turns_B22[..., None] * plane_B23[:, None]).sum(2)
        # haematoxylin is the one that absorbs more of the red
        is_turned_B11 = (dyes_B23[:, 0, 0] < dyes_B23[:, 1, 0])[:, None, None]
        return torch.where(is_turned_B11, dyes_B23.flip(1), dyes_B23), high_B - low_B


def _plane(density_B3P: Tensor, is_in_BP: Tensor) -> Tensor:
    """The two largest right singular vectors (B, 2, 3) of the tissue's densities, the first one positive."""
    tissue_B3P = density_B3P * is_in_BP[:, None]
    rows = [(tissue_B3P[:, i : i + 1] * tissue_B3P).sum(2, dtype=torch.float64) for i in range(3)]
    vectors_B33 = torch.linalg.eigh(torch.stack(rows, dim=1)).eigenvectors  # ascending, in columns
    first_B3, second_B3 = vectors_B33[..., 2], vectors_B33[..., 1]
    sign_B1 = torch.where(first_B3.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return torch.stack([sign_B1 * first_B3, second_B3], dim=1)


def _unmixing(dyes_B23: Tensor) -> Tensor:
    """Least squares as a matrix (B, 2, 3): amounts of the two dyes, of length 1, from densities."""
    likeness_B11 = (dyes_B23[:, 0] * dyes_B23[:, 1]).sum(1)[:, None, None]
    return (dyes_B23 - likeness_B11 * dyes_B23.flip(1)) / (1 - likeness_B11.square())
