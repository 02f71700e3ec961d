"""Scores of tiles as percentiles within their slide.

Attention after its softmax depends on how many tiles the bag has, so that its values can't be compared
between slides; ranks within the slide can be shown and named as what they are.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def percentiles(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of each tile, the share of its slide's tiles that score lower, and half of those that score the same.

    CLAM's maps show 100 rank / N, which is 50 / N more and calls a slide's only tile 100.

    Args:
        scores: (N,) of all tiles of one slide, finite; any scale.

    Returns:
        (N,) 0-100, 50 on average: [50] for a single tile, [50, 50] for equal ones, [12.5, 37.5, 75, 75] for
        [1, 2, 9, 9].

    Raises:
        ValueError: scores are not one finite number per tile.
    """
    if scores.ndim != 1 or not np.isfinite(scores).all():
        n_bad = int((~np.isfinite(scores)).sum())
        raise ValueError(
            f"scores of shape {scores.shape} with {n_bad} that are not finite can't be ranked; one finite "
            "number per tile is expected: look at the model that made them"
        )
    ranks = stats.rankdata(scores, method="average")
    return np.asarray(100 * (ranks - 0.5) / max(len(scores), 1), dtype=np.float64)
