"""How much haematoxylin a pixel holds: colour deconvolution by fixed dyes.

A. C. Ruifrok and D. A. Johnston, "Quantification of histochemical staining by color deconvolution", Anal
Quant Cytol Histol 2001; 23: 291-299. The optical density of a pixel is a mixture of haematoxylin, eosin and
a third dye, so that the inverse of their matrix gives the amount of each.

B: tiles; S: side of a tile; P: its pixels.
"""

import torch
from torch import Tensor

from histo_ssl.stain.optics import log_light, mixed

# Rows: haematoxylin, eosin and DAB in red, green, blue (table 1 there); the last takes what the others leave.
DYES = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
WHITE = 255.0


def haematoxylin(tiles_B3SS: Tensor) -> Tensor:
    """Optical density (B, S, S) float32 of the haematoxylin in each pixel, never below 0; 0 for white.

    Args:
        tiles_B3SS: uint8.
    """
    dyes_33 = torch.tensor(DYES, dtype=torch.float64, device=tiles_B3SS.device)
    dyes_33 = dyes_33 / dyes_33.norm(dim=1, keepdim=True)
    unmix_33 = torch.linalg.inv(dyes_33).T  # row: one dye's amount from densities of red, green, blue
    density_B3P = torch.tensor(WHITE).log().item() - log_light(tiles_B3SS.flatten(2))
    amount_BP = mixed(density_B3P, unmix_33[None, :1])[:, 0]
    return amount_BP.clamp_(min=0).view(len(tiles_B3SS), *tiles_B3SS.shape[-2:])
