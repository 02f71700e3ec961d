"""How far a score would move with other patients: the percentile bootstrap over groups.

Whole patients are drawn with replacement (Efron and Tibshirani 1993, chapter 13), since tiles of one patient
resemble each other. A resample is a weight per group, so metrics are functions of weights, computed for many
resamples at once; the test set has weights of 1.

Letters: R resamples, G groups, M test tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo_ssl.tasks.base import Score

Floats = NDArray[np.float64]

INTERVAL_PERCENT = (2.5, 97.5)
BLOCK_NUMBERS = 2_000_000  # weights in memory at a time, 16 MB
FEW_GROUPS = 10


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is scored, and how its intervals are made."""

    subject: str  # whose embeddings these are
    protocol: str  # how they were scored
    n_bootstrap: int  # number of resamples
    seed: int  # of the resamples; the same groups are drawn for every subject and protocol


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A score, and the values that it has in resamples."""

    metric: str
    label: str  # the class it is about; "" for all
    value: float
    drawn_R: Floats  # NaN where a resample doesn't define it
    varies: bool  # whether other patients could change it
    chance: float


def group_weights(n_groups: int, *, n: int, seed: int | list[int], n_tiles: int) -> Iterator[Floats]:
    """How often each group (R, G) is in each of n resamples, in blocks of rows."""
    rng = np.random.default_rng(seed)
    n_rows = max(1, BLOCK_NUMBERS // n_tiles)
    for start in range(0, n, n_rows):
        drawn_RG = rng.integers(n_groups, size=(min(n_rows, n - start), n_groups))
        cell_RG = drawn_RG + n_groups * np.arange(len(drawn_RG))[:, None]
        yield np.bincount(cell_RG.ravel(), minlength=cell_RG.size).reshape(cell_RG.shape).astype(np.float64)


def with_interval(found: Estimated, asked: Asked) -> Score:
    """The score with its 95 % interval, which is NaN where nothing can vary."""
    low, high = (_percentile(found.drawn_R, p) if found.varies else np.nan for p in INTERVAL_PERCENT)
    return Score(
        subject=asked.subject,
        protocol=asked.protocol,
        metric=found.metric,
        label=found.label,
        value=float(found.value),
        low=low,
        high=high,
        chance=found.chance,
    )


def few_groups(n_groups: int, *, coverage: str) -> list[str]:
    """What so few patients in a test can't tell; nothing where they are enough.

    Args:
        n_groups: patients (or slides) of the test.
        coverage: how often intervals held the truth in simulations, for the reader.
    """
    if n_groups == 1:
        return ["all test tiles are of one patient (or slide): there are no intervals"]
    if n_groups < FEW_GROUPS:
        return [f"intervals rest on {n_groups} patients (or slides) and are too narrow: {coverage}"]
    return []


def _percentile(values_R: Floats, percent: float) -> float:
    """Percentile over the resamples that define the score, NaN if none does."""
    defined = values_R[~np.isnan(values_R)]
    return float(np.percentile(defined, percent)) if len(defined) else np.nan
