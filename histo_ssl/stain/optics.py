"""Light and dyes: densities of 8-bit pixels, mixtures of three planes, percentiles among some of the pixels.

Light that passes a stained section obeys Beer and Lambert: ln(white / value) of each channel is linear in the
amounts of the dyes. Everything is computed plane by plane, without matrix products: no accelerator then
rounds it to fewer digits, and a tile's numbers don't depend on the tiles beside it.

B: tiles; P: pixels of a tile; K: planes that are made.
"""

import math

import torch
from torch import Tensor


def log_light(tiles_B3P: Tensor) -> Tensor:
    """Natural logarithm (B, 3, P) float32 of 8-bit values; black, which has none, counts as 1."""
    return tiles_B3P.float().clamp_(min=1).log_()


def eight_bit(values: Tensor) -> Tensor:
    """The nearest 8-bit values."""
    return values.round_().clamp_(0, 255).to(torch.uint8)


def darkest_glass(*, white: float, min_density: float) -> float:
    """The largest value of a channel that absorbs `min_density`: 206.6 of 240 at a density of 0.15."""
    return white * math.exp(-min_density)


def mixed(planes_B3P: Tensor, by_BK3: Tensor) -> Tensor:
    """Sums (B, K, P) of the three planes, plane k with the weights in row k of `by_BK3`."""
    weight = by_BK3.to(planes_B3P.dtype)
    total = weight[:, :, :1] * planes_B3P[:, :1]
    for i in (1, 2):
        total.addcmul_(weight[:, :, i : i + 1], planes_B3P[:, i : i + 1])
    return total


def upper_quantile(x_BP: Tensor, is_in_BP: Tensor, *, share: float) -> Tensor:
    """The values (B,) float64 that a share of the chosen pixels exceeds, interpolated as numpy does.

    Args:
        x_BP: any values.
        is_in_BP: which pixels are chosen; without any the result means nothing.
        share: 0 for the largest value; the smaller, the faster.
    """
    n_pixels = x_BP.shape[1]
    n_B = is_in_BP.sum(1, dtype=torch.float64).clamp_(min=1)
    place_B = (n_B - 1) * share  # from the top
    k = min(n_pixels, int((n_pixels - 1) * share) + 2)
    top_BK = x_BP.masked_fill(~is_in_BP, -math.inf).topk(k, dim=1).values.double()
    first_B = place_B.floor()
    pair_B2 = torch.stack([first_B, torch.minimum(first_B + 1, n_B - 1)], dim=1).long()
    high_B, low_B = top_BK.gather(1, pair_B2).unbind(1)
    return torch.lerp(high_B, low_B, place_B - first_B)
