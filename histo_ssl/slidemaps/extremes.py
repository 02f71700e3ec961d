"""The tiles of a slide that score highest and lowest, none of them twice.

Where tiles overlap, the highest scores are often one spot seen again and again; so of tiles that overlap only
the most extreme counts.

Letters: N tiles.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo_ssl.slidemaps.frame import Tiles

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Extremes:
    """Numbers of tiles, the most extreme first."""

    top: Ints  # up to k, highest score first
    bottom: Ints  # up to k, lowest score first


def extremes(scores: NDArray[np.floating], tiles: Tiles, *, k: int) -> Extremes:
    """The k tiles with the highest and the k with the lowest scores, without overlaps within either.

    Tiles that share an edge don't overlap. No tile is in both: the upper half of a slide's tiles (with the
    middle one) is looked at for the first, the rest for the second. Of equal scores the tile that was listed
    first is taken as the higher one.

    Args:
        scores: (N,), finite.
        tiles: where they lie.
        k: how many of each; fewer come where there are not as many apart.

    Raises:
        ValueError: scores are not one finite number per tile.
    """
    tiles.check(scores, name="scores")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite, and can't be put "
            "in order; look at the model that made them"
        )
    falling = np.lexsort((np.arange(len(scores)), -scores.astype(np.float64)))
    n_upper = (len(scores) + 1) // 2
    return Extremes(
        top=_apart(falling[:n_upper], tiles, k=k),
        bottom=_apart(falling[n_upper:][::-1], tiles, k=k),
    )


def ranks(scores: NDArray[np.floating]) -> Ints:
    """(N,) 1 for the highest score; equal ones share the better rank: [3, 1, 1] for [2, 5, 5]."""
    return np.searchsorted(np.sort(-scores), -scores, side="left").astype(np.int64) + 1


def _apart(order: NDArray[np.intp], tiles: Tiles, *, k: int) -> Ints:
    """The first k of an order that overlap none before them."""
    xy = tiles.xy_level0[order].astype(np.int64)
    is_free = np.ones(len(order), dtype=bool)
    chosen: list[np.intp] = []
    while len(chosen) < k and is_free.any():
        first = int(is_free.argmax())
        chosen.append(order[first])
        is_free &= (np.abs(xy - xy[first]) >= tiles.side_level0).any(axis=1)
    return np.array(chosen, dtype=np.int64)
