"""What can be said of maps of attention: where their top mass lies, how narrow they are, how heads differ.

M: tiles; H: heads, H > 1 where they are compared; L: patches of a tile; h, w: rows and columns of them.
"""

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, rel_entr

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
ROUNDING = 1e-12  # of a sum: a mass that is reached but for this is reached


def top_mass(map_hw: Floats, *, share: float) -> Mask:
    """The fewest patches (h, w) that together hold a share of a map's mass.

    The threshold by which DINO and the study draw heads (arXiv:2104.14294 and 2203.00585, figure 3 of both).

    Args:
        map_hw: >= 0, not all 0.
        share: above 0, at most 1.

    Returns:
        Of .5, .3, .15 and .05 the first two for a share of .6: one alone holds less. Of equals the first.
    """
    order = np.argsort(-map_hw, axis=None, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(map_hw.ravel()[order])[:-1]])
    kept = np.zeros(map_hw.size, dtype=bool)
    kept[order] = before < share * map_hw.sum() * (1 - ROUNDING)
    return kept.reshape(map_hw.shape)


def narrowness(maps_MHL: Floats) -> Floats:
    """By how many bits (M, H) each map is narrower than an even one: log2 L less its entropy.

    Returns:
        0 where all patches have the same, log2 L where one patch has all: 1 for half of the patches.
    """
    p_MHL = maps_MHL / maps_MHL.sum(axis=-1, keepdims=True)
    bits_MH: Floats = np.log2(p_MHL.shape[-1]) - entr(p_MHL).sum(axis=-1) / np.log(2)
    return bits_MH.clip(0)


def divergence(maps_MHL: Floats) -> Floats:
    """Jensen and Shannon's divergence (M,) of two heads' maps in bits, the mean over all pairs of heads.

    Returns:
        0 where all heads attend alike, 1 where no two attend to the same patch; NaN for a single head.
    """
    p_MHL = maps_MHL / maps_MHL.sum(axis=-1, keepdims=True)
    pairs = list(itertools.combinations(range(p_MHL.shape[1]), 2))
    if not pairs:
        return np.full(len(p_MHL), np.nan)
    found = [_divergence(p_MHL[:, i], p_MHL[:, j]) for i, j in pairs]
    return np.asarray(np.mean(found, axis=0))


def _divergence(p_ML: Floats, q_ML: Floats) -> Floats:
    middle_ML = (p_ML + q_ML) / 2
    nats_M = (rel_entr(p_ML, middle_ML) + rel_entr(q_ML, middle_ML)).sum(axis=-1) / 2
    return np.asarray(nats_M / np.log(2))


def likeness(maps_MHL: Floats) -> Floats:
    """Pearson's correlation (M,) of two heads' maps, the mean over all pairs; NaN for a single head."""
    centred = maps_MHL - maps_MHL.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    unit = np.divide(centred, length, out=np.full_like(centred, np.nan), where=length > 0)
    n_heads = unit.shape[1]
    if n_heads < 2:
        return np.full(len(unit), np.nan)
    total_M = np.square(unit.sum(axis=1)).sum(axis=-1)  # of all pairs, each head with itself among them
    return np.asarray((total_M - n_heads) / (n_heads * (n_heads - 1)))
