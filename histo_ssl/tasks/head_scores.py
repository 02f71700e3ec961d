"""How well attention over patches picks out a phenotype, within each tile, and with which head.

Attention is a softmax within its tile, so that patches are only compared with those of their own tile: the
AUC and the correlation of each tile in which both can be told, then the mean over tiles. A head is chosen on
some patients and scored on others: the best of many heads on the same tiles would be flattered by the choice.

Letters: M tiles; H heads; L patches of a tile; G groups; R resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from histo_ssl.tasks.base import Score
from histo_ssl.tasks.bootstrap import Asked, Estimated, group_weights, with_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

AUC, CORRELATION = "auc", "correlation"
CHANCE = {AUC: 0.5, CORRELATION: 0.0}


@dataclass(frozen=True, kw_only=True, eq=False)
class Trait:
    """A phenotype of patches."""

    name: str
    share_ML: Floats  # share of the patch that it covers, or an amount; NaN: unknown
    least: float | None  # share from which a patch counts as of the phenotype; None: amounts, which have none


def measures(maps_MHL: Floats, trait: Trait) -> dict[str, Floats]:
    """AUC, where the trait has one, and correlation (M, H) of each tile and head."""
    found = {CORRELATION: within_correlation(maps_MHL, trait.share_ML)}
    if trait.least is None:
        return found
    is_known_M = _is_known(trait.share_ML)
    auc_MH = within_auc(maps_MHL, trait.share_ML >= trait.least)
    return {AUC: np.where(is_known_M[:, None], auc_MH, np.nan), **found}


def within_auc(maps_MHL: Floats, is_in_ML: Mask) -> Floats:
    """How often, within each tile, a patch of the phenotype gets more attention than one that is not of it.

    Returns:
        (M, H), a tie counting half; NaN for tiles of one kind of patch alone. Attention of (.1, .4, .35, .8)
        to patches (-, -, +, +) wins 3 of 4 pairs: 0.75.
    """
    rank_MHL = rankdata(maps_MHL, axis=-1)
    n_in_M1 = is_in_ML.sum(axis=1, keepdims=True).astype(float)
    n_out_M1 = is_in_ML.shape[1] - n_in_M1
    won_MH = (rank_MHL * is_in_ML[:, None]).sum(axis=-1) - n_in_M1 * (n_in_M1 + 1) / 2
    n_pairs_M1 = n_in_M1 * n_out_M1
    return np.asarray(np.divide(won_MH, n_pairs_M1, out=np.full_like(won_MH, np.nan), where=n_pairs_M1 > 0))


def within_correlation(maps_MHL: Floats, share_ML: Floats) -> Floats:
    """Spearman's rho (M, H) of attention and share within each tile; NaN where one of them doesn't vary."""
    is_known_M = _is_known(share_ML)
    x_MHL = _centred_ranks(maps_MHL)
    y_M1L = _centred_ranks(np.where(is_known_M[:, None], share_ML, 0.0))[:, None]
    length_MH = np.sqrt(np.square(x_MHL).sum(axis=-1) * np.square(y_M1L).sum(axis=-1))
    product_MH = (x_MHL * y_M1L).sum(axis=-1)
    return np.asarray(
        np.divide(product_MH, length_MH, out=np.full_like(product_MH, np.nan), where=length_MH > 0)
    )


def best_head(value_MH: Floats) -> int | None:
    """The head with the highest mean over the tiles that define it, the first of equals; None without any."""
    means_H = mean_over_tiles(value_MH)
    return None if np.isnan(means_H).all() else int(np.nanargmax(means_H))


def mean_over_tiles(value_MH: Floats) -> Floats:
    """Mean (H,) over the tiles that define it; NaN where none does."""
    is_known_MH = ~np.isnan(value_MH)
    total_H, n_H = np.where(is_known_MH, value_MH, 0).sum(axis=0), is_known_MH.sum(axis=0)
    return np.asarray(np.divide(total_H, n_H, out=np.full(len(n_H), np.nan), where=n_H > 0))


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a score is called."""

    metric: str
    label: str
    chance: float


def score_of(value_M: Floats, group_M: Ints, named: Named, *, asked: Asked) -> Score:
    """The mean over tiles that define a value, with the interval of a bootstrap over groups.

    Args:
        value_M: of each tile; NaN where it is not defined.
        group_M: patient, or slide, of each tile; any numbers.
        named: what the score is called.
        asked: whose it is.
    """
    is_known = ~np.isnan(value_M)
    groups, group = np.unique(group_M[is_known], return_inverse=True)
    known = value_M[is_known]
    n_groups = len(groups)
    drawn_R = np.full(1, np.nan)
    if n_groups > 1:
        total_G, n_G = np.bincount(group, known), np.bincount(group)
        blocks = group_weights(n_groups, n=asked.n_bootstrap, seed=asked.seed, n_tiles=len(known))
        drawn_R = np.concatenate([(w_RG @ total_G) / (w_RG @ n_G) for w_RG in blocks])
    found = Estimated(
        metric=named.metric,
        label=named.label,
        value=float(known.mean()) if len(known) else np.nan,
        drawn_R=drawn_R,
        varies=n_groups > 1,
        chance=named.chance,
    )
    return with_interval(found, asked)


def _centred_ranks(values: Floats) -> Floats:
    ranks = rankdata(values, axis=-1)
    return np.asarray(ranks - ranks.mean(axis=-1, keepdims=True))


def _is_known(share_ML: Floats) -> Mask:
    return np.asarray(~np.isnan(share_ML).any(axis=1))
