"""Schedules as pure functions of progress: the share of the optimiser steps already taken, 0 to 1."""

import math


def linear(start: float, end: float, *, progress: float) -> float:
    """Straight line from start to end, which stays at the end past progress 1.

    >>> linear(0.04, 0.08, progress=0.5)
    0.06
    """
    share = min(progress, 1.0)
    return start * (1.0 - share) + end * share


def cosine(start: float, end: float, *, progress: float) -> float:
    """Half a cosine wave from start to end (arXiv:1608.03983, eq. 5, one cycle).

    >>> cosine(1.0, 0.0, progress=0.5)
    0.5
    """
    return end + (start - end) * (1.0 + math.cos(math.pi * min(progress, 1.0))) / 2.0


def warmup_cosine(peak: float, end: float, *, warmup: float, progress: float) -> float:
    """Straight line from 0 to the peak over the warm-up, then half a cosine wave to the end.

    Args:
        peak: value when the warm-up ends.
        end: value at progress 1.
        warmup: share of training that the line takes, 0-1.
        progress: share of training done, 0-1.

    >>> warmup_cosine(1.0, 0.0, warmup=0.2, progress=0.1)
    0.5
    """
    if progress < warmup:
        return linear(0.0, peak, progress=progress / warmup)
    return cosine(peak, end, progress=(progress - warmup) / max(1.0 - warmup, 1e-12))
