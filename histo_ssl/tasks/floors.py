"""The floor that every encoder has to beat: what the colours of a tile tell by themselves.

Mean RGB alone scores over 50 % accuracy on the nine classes of CRC-100K, colour histograms over 82 %
(arXiv:2409.11546). A score under this floor shows that nothing was learned of form.

Letters: B tiles, s side in px, L levels of intensity, Q quantiles, H bins, D statistics per tile, N = 3 B.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from histo_ssl.data.base import TileSource
from histo_ssl.encode import Card, Encoder
from histo_ssl.folders.artifacts import fingerprint

LEVELS = 256  # of an 8-bit channel

# A definition, not a setting: with these a standardised logistic regression on PatchCamelyon (5,000 tiles for
# training, 2,000 for the test) has balanced accuracy .82 and AUC .89; mean and SD alone have .71 and .77.
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
N_BINS = 4


class ColorStatistics(nn.Module):
    """Per channel of RGB: mean, SD, quantiles and the shares of pixels in equal bins of intensity.

    It has no weights, takes tiles of any side, and sees no order of pixels: shuffling them changes nothing.
    """

    num_features = 3 * (2 + len(QUANTILES) + N_BINS)

    def forward(self, rgb_B3ss: Tensor) -> Tensor:
        """Statistics (B, D) float32 in 0-1: means, SDs, quantiles, bins; a white tile has mean 1 and SD 0.

        Args:
            rgb_B3ss: RGB in 0-1 of 8-bit tiles, not normalised.
        """
        share_B3L = _histogram(rgb_B3ss)
        level_L = torch.linspace(0, 1, LEVELS, dtype=torch.float64, device=rgb_B3ss.device)
        mean_B3 = share_B3L @ level_L
        variance_B3 = (share_B3L * (level_L - mean_B3[..., None]).square()).sum(2)
        quantile_B3Q = _quantiles(share_B3L)
        bin_B3H = share_B3L.view(-1, 3, N_BINS, LEVELS // N_BINS).sum(3)
        return torch.cat(
            (mean_B3, variance_B3.sqrt(), quantile_B3Q.flatten(1), bin_B3H.flatten(1)), dim=1
        ).float()


def colour_floor(source: TileSource, *, stain: Mapping[str, Any] | None = None) -> Encoder:
    """`ColorStatistics` as an encoder of a source's tiles, fed with plain RGB in 0-1.

    Args:
        source: of the tiles that are scored.
        stain: what normalises their stain before, as on the card of the encoder that is scored.
    """
    statistics = ColorStatistics()
    made_of = {"floor": "colour", "dim": statistics.num_features, **({"stain": dict(stain)} if stain else {})}
    card = Card(
        architecture={"_target_": "histo_ssl.tasks.floors.ColorStatistics"},
        dim=statistics.num_features,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        tile_px=source.tile_px,
        mpp=None,
        method="colour",
        fingerprint=fingerprint(made_of),
        stain=stain,
    )
    return Encoder(statistics, card)


def _histogram(rgb_B3ss: Tensor) -> Tensor:
    """Share (B, 3, L) float64 of each channel's pixels at each of its levels."""
    level_NP = (rgb_B3ss.float() * (LEVELS - 1)).round().int().flatten(2).flatten(0, 1)
    n_channels, n_pixels = level_NP.shape
    first_N1 = LEVELS * torch.arange(n_channels, dtype=torch.int32, device=level_NP.device)[:, None]
    n_N = torch.bincount((first_N1 + level_NP).flatten(), minlength=LEVELS * n_channels)
    return n_N.view(-1, 3, LEVELS).double() / n_pixels


def _quantiles(share_B3L: Tensor) -> Tensor:
    """The lowest intensities (B, 3, Q) that no less than a share q of the pixels don't exceed."""
    wanted_Q1 = share_B3L.new_tensor(QUANTILES)[:, None]
    # The sum of rounded shares may miss q by a hair.
    n_below_B3Q = (share_B3L.cumsum(2)[:, :, None] < wanted_Q1 - 1e-9).sum(3)
    return n_below_B3Q / (LEVELS - 1)
