"""The shape of a cloud of embeddings, which needs no labels.

N: tiles; D: width of an embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STEEPNESS = 2.0  # t of arXiv:2005.10242, the value of its experiments


def uniformity(z_ND: Tensor) -> Tensor:
    """How evenly embeddings cover the sphere (arXiv:2005.10242, section 4.1.2); lower is more even.

    Args:
        z_ND: embeddings of N >= 2 tiles, normalised here.

    Returns:
        Scalar, log of the mean over pairs of exp(-2 squared distance): 0 when all coincide, near -4 for an
        even cloud in many dimensions, whose distances are all near sqrt(2).
    """
    squared = torch.pdist(F.normalize(z_ND.double(), dim=1)).square()
    log_mean: Tensor = squared.mul(-STEEPNESS).exp().mean().log().float()
    return log_mean


def alignment(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """How close two views of a tile lie (arXiv:2005.10242, section 4.1.1, with alpha = 2); lower is closer.

    Args:
        a_ND: embeddings of one view of each tile, normalised here.
        b_ND: of another view of the same tiles.

    Returns:
        Scalar, the mean squared distance: 0 when views coincide, 2 when they are as good as random.
    """
    distance = F.normalize(a_ND.double(), dim=1) - F.normalize(b_ND.double(), dim=1)
    mean: Tensor = distance.square().sum(1).mean().float()
    return mean


def feature_sd(z_ND: Tensor) -> Tensor:
    """Standard deviation of normalised embeddings, over that of an even cloud (arXiv:2011.10566, fig. 2).

    Args:
        z_ND: embeddings of N >= 2 tiles, normalised here.

    Returns:
        Scalar: 0 when all coincide, 1 when directions are spread evenly.
    """
    z = F.normalize(z_ND.double(), dim=1)
    relative: Tensor = (z.std(0, correction=0).mean() * z.shape[1] ** 0.5).float()
    return relative
