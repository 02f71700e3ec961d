"""Stain jitter: more or less of each dye, in optical density.

Light that passes a stained section obeys Beer and Lambert: -log10 of each channel is linear in the amounts
of haematoxylin, eosin and DAB (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001). Each amount c
becomes alpha c + beta (Tellez et al., arXiv:1902.06543, the HED transforms). Amounts below zero, which
colours outside of the dyes' cone have, are kept (skimage.color.rgb2hed cuts them), so that alpha 1 and beta
0 give the image itself.
"""

import math

import torch
from torch import Tensor

# Optical density in red, green, blue of one unit of haematoxylin, eosin, DAB: Ruifrok's, as skimage has them.
DYES = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
DARKEST = 1e-6  # black has no finite density


def stain_jitter(x: Tensor, *, alpha_N3: Tensor, beta_N3: Tensor) -> Tensor:
    """Images whose amounts of the three dyes are alpha times what they were, plus beta; cut to [0, 1].

    Args:
        x: (N, 3, s, s) float32 in [0, 1].
        alpha_N3: factor per dye, >= 0.
        beta_N3: amount added per dye; 0.1 of eosin leaves 80 % of the green light (10^-0.099).

    Returns:
        (N, 3, s, s) float32 in [0, 1]. Alpha 0 and beta 0 give white.
    """
    dyes_33 = torch.tensor(DYES)
    unmix_33 = torch.linalg.inv(dyes_33).to(x.device, non_blocking=True)
    dyes_33 = dyes_33.to(x.device, non_blocking=True)
    mixed_N33 = ((unmix_33 * alpha_N3[:, None, :])[..., None] * dyes_33).sum(dim=2)
    light = (-math.log(10) * (beta_N3[..., None] * dyes_33).sum(dim=1))[:, :, None, None]
    log_x = x.clamp(min=DARKEST).log_()
    for i in range(3):
        light = torch.addcmul(light, log_x[:, i : i + 1], mixed_N33[:, i, :, None, None])
    return light.exp_().clamp_(0, 1)
