"""Reinhard's normalisation: mean and SD of a tile's tissue in three opponent channels become the target's.

E. Reinhard, M. Ashikhmin, B. Gooch and P. Shirley, "Color transfer between images", IEEE Computer Graphics
and Applications 21 (5), 2001, in the space l, alpha, beta of D. Ruderman, T. Cronin and C. Chiao (J. Opt.
Soc. Am. A 15, 1998). Where we differ from the paper, as HistomicsTK does: natural logarithms of values in
0-255, which the published targets are in; and glass is neither counted nor changed.

B: tiles; P: pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from histo_ssl.stain.base import Restained, check_numbers
from histo_ssl.stain.optics import darkest_glass, eight_bit, mixed

# Reinhard et al., eq. 4: cones (long, medium, short waves) from red, green, blue.
CONES = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
# Reinhard et al., eq. 6: l, alpha, beta from the logarithms of the cones; the rows are orthonormal.
OPPONENTS = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)),
    (1 / math.sqrt(2), -1 / math.sqrt(2), 0.0),
)


@dataclass(frozen=True, kw_only=True)
class Reinhard:
    """Gives the tissue of tiles the mean and SD of a target.

    Args:
        means: of the target's l, alpha, beta.
        sds: of the same.
        white: value of the light that passes glass.
        min_density: pixels that absorb less in every channel are glass; natural logarithm.
        min_tissue: a tile is left as it is with a smaller share of other pixels,
        max_gain: or if a channel would be stretched by more than this.
    """

    means: Sequence[float]
    sds: Sequence[float]
    white: float
    min_density: float
    min_tissue: float
    max_gain: float

    def __post_init__(self) -> None:
        check_numbers(self, means=(3,), sds=(3,))

    def __call__(self, tiles_B3P: Tensor) -> Restained:
        """Tiles with the target's mean and SD, where there is tissue."""
        is_in_BP = self._is_tissue(tiles_B3P)
        log_cones_B3P = _log_cones(tiles_B3P)
        means_B3, sds_B3 = _moments(log_cones_B3P, is_in_BP)
        gain_B3 = sds_B3.new_tensor(self.sds) / sds_B3
        has_tissue_B = is_in_BP.sum(1) >= self.min_tissue * is_in_BP.shape[1]
        is_left_B = ~(has_tissue_B & (gain_B3 <= self.max_gain).all(1))
        back_33 = gain_B3.new_tensor(OPPONENTS).T
        by_B33 = (back_33[:, :, None] * (gain_B3[..., None] * back_33.T)[:, None]).sum(2)
        shift_B3 = gain_B3.new_tensor(self.means) - gain_B3 * means_B3
        offset_B3 = (back_33 * shift_B3[:, None]).sum(2)
        cones_B3P = mixed(log_cones_B3P, by_B33).add_(offset_B3.float()[..., None]).exp_()
        made = eight_bit(mixed(cones_B3P, torch.linalg.inv(torch.tensor(CONES))[None].to(cones_B3P)))
        return Restained(torch.where(is_in_BP[:, None], made, tiles_B3P), is_left_B)

    def fitted(self, image_13P: Tensor) -> Self:
        """The same with the mean and SD of an image's tissue."""
        is_in_1P = self._is_tissue(image_13P)
        means_13, sds_13 = _moments(_log_cones(image_13P), is_in_1P)
        if is_in_1P.double().mean() < self.min_tissue or not (sds_13 > 0).all():
            raise ValueError(f"at least {self.min_tissue:g} of it must be tissue, of more than one colour")
        return replace(self, means=means_13[0].tolist(), sds=sds_13[0].tolist())

    def _is_tissue(self, tiles_B3P: Tensor) -> Tensor:
        return tiles_B3P.amin(1) <= darkest_glass(white=self.white, min_density=self.min_density)


def _log_cones(tiles_B3P: Tensor) -> Tensor:
    """Logarithms (B, 3, P) float32 of what the cones get; of black as if it were 1."""
    values_B3P = tiles_B3P.float().clamp_(min=1)
    return mixed(values_B3P, torch.tensor(CONES, device=tiles_B3P.device)[None]).log_()


def _moments(log_cones_B3P: Tensor, is_in_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and SD (B, 3) float64 of the tissue's l, alpha and beta."""
    opponents = torch.tensor(OPPONENTS, device=log_cones_B3P.device)[None]
    lab_B3P = mixed(log_cones_B3P, opponents)
    n_B1 = is_in_BP.sum(1, dtype=torch.float64)[:, None].clamp_(min=1)
    means_B3 = (lab_B3P * is_in_BP[:, None]).sum(2, dtype=torch.float64) / n_B1
    away_B3P = (lab_B3P - means_B3.float()[..., None]).mul_(is_in_BP[:, None])
    return means_B3, (away_B3P.square_().sum(2, dtype=torch.float64) / n_B1).sqrt()
