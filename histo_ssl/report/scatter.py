"""Predicted against true numbers, for tasks whose labels are numbers."""

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from histo_ssl.report.plots import STYLE, Picture, png
from histo_ssl.report.runs import Result, read_predictions
from histo_ssl.report.scores import FLOORS, words

SIDE_INCHES = 3.0
MAX_POINTS = 2000  # more would be a cloud of one colour
ERROR = "mse"  # the metric that only numbers have

Pair = tuple[float, float]  # true, predicted


def scatters(result: Result) -> list[Picture]:
    """A plot of the primary protocol for each subject, the encoder's first; none where labels are classes."""
    if not any(metric == ERROR for _, _, metric, _ in result.scores):
        return []
    pairs = _pairs(result)
    values = [x for some in pairs.values() for pair in some for x in pair]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return [
        _picture(subject, result.primary[0], some, ends=(low, high))
        for subject, some in pairs.items()
        if some
    ]


def spread(pairs: Sequence[Pair], n: int) -> list[Pair]:
    """Up to n of the pairs, evenly spread over them.

    >>> spread([(0, 0), (1, 1), (2, 2), (3, 3)], 2)
    [(0, 0), (2, 2)]
    """
    return list(pairs[:: math.ceil(len(pairs) / n) or 1])


def _pairs(result: Result) -> dict[str, list[Pair]]:
    """True and predicted numbers of the primary protocol by subject."""
    found: dict[str, list[Pair]] = {}
    for row in read_predictions(result):
        if row["protocol"] == result.primary[0]:
            found.setdefault(row["subject"], []).append((float(row["truth"]), float(row["predicted"])))
    return found


def _picture(subject: str, protocol: str, pairs: list[Pair], *, ends: Pair) -> Picture:
    name = f"{FLOORS.get(subject, subject)}, {words(protocol)}"
    with mpl.rc_context(STYLE):
        content = _drawn(spread(pairs, MAX_POINTS), ends=ends)
    alt = f"Predicted against true numbers of {len(pairs)} test tiles by {name}; on the line they are equal."
    return Picture(title=name, alt=alt, media_type="image/png", content=content)


def _drawn(pairs: list[Pair], *, ends: Pair) -> bytes:
    figure = Figure(figsize=(SIDE_INCHES, SIDE_INCHES))
    axes = figure.add_subplot()
    axes.plot(ends, ends, color="#8c959f", linewidth=0.8)  # makes both axes as long, too
    true, predicted = zip(*pairs, strict=True)
    axes.scatter(true, predicted, s=9, color="#4b3f8f", alpha=0.5, linewidths=0)
    axes.set(xlabel="true", ylabel="predicted")
    return png(figure)
