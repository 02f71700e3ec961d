"""Who attends to tiles: the heads of an encoder, or haematoxylin alone, the floor that knows no form.

B: tiles; S: side of a tile in px; H: heads; h, w: rows and columns of patches.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from histo_ssl.backbones.attention import class_attention
from histo_ssl.encode import Encoder
from histo_ssl.stain.dyes import haematoxylin

Floats = NDArray[np.float64]
FAINTEST = 1e-6  # of glass, so that a tile without haematoxylin has a map, too


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """How much is attended to each patch of some tiles."""

    maps_BHhw: Floats  # >= 0
    prefix_BH: Floats  # share that the tokens before the patches keep, 0-1; with the map's sum it makes 1


class Attends(Protocol):
    """Gives tiles a map for each of its heads."""

    def __call__(self, tiles_B3SS: Tensor) -> Attention:
        """Maps of tiles uint8 as they were scanned."""


@dataclass(frozen=True)
class Heads:
    """The class token of an encoder's last block, head by head."""

    encoder: Encoder

    def __call__(self, tiles_B3SS: Tensor) -> Attention:
        """The weights of patches, and of all tokens before them together.

        Raises:
            ValueError: the backbone has no such attention.
        """
        fed = self.encoder.fed(self.encoder.restained(tiles_B3SS).tiles)
        found = class_attention(self.encoder.backbone, fed)
        return Attention(
            maps_BHhw=found.patches_BHhw.double().cpu().numpy(),
            prefix_BH=found.prefix_BHP.double().sum(-1).cpu().numpy(),
        )


@dataclass(frozen=True)
class HaematoxylinAlone:
    """One head, which attends to each patch as much as it holds of the tile's haematoxylin."""

    patch_px: int

    def __call__(self, tiles_B3SS: Tensor) -> Attention:
        """Shares of the tile's haematoxylin; they sum to 1."""
        density_B1hw = patch_haematoxylin(tiles_B3SS, patch_px=self.patch_px)[:, None] + FAINTEST
        maps_B1hw = density_B1hw / density_B1hw.sum(axis=(2, 3), keepdims=True)
        return Attention(maps_BHhw=maps_B1hw, prefix_BH=np.zeros((len(maps_B1hw), 1)))


def patch_haematoxylin(tiles_B3SS: Tensor, *, patch_px: int) -> Floats:
    """Mean optical density (B, h, w) of haematoxylin in each patch."""
    pooled = functional.avg_pool2d(haematoxylin(tiles_B3SS)[:, None], patch_px)[:, 0]
    density: Floats = pooled.double().cpu().numpy()
    return density
