"""Training curves, laid out for the page to draw: lines, ticks and words, all in px of one small panel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from histo_ssl.report.plots import LOOKS

MAX_POINTS = 300  # per curve: more than the pixels of a panel could show
WIDTH_PX, HEIGHT_PX = 346, 220
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 56, 338, 26, 180  # of the axes
N_TICKS, STEPS = 5, (1, 2, 2.5, 5, 10)  # most steps between ticks; how long they may be, times a power of ten
ROOM = 0.05  # above the highest value, as a share of the axis
KEY_PX, LETTER_PX = 36.0, 6.6  # of the legend: what stands before and after a name, a letter of it
Axis = tuple[float, float]  # its ends


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small figure of the training: columns of `metrics.jsonl` that share an axis."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]  # column of metrics.jsonl, name in the legend


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of a panel."""

    name: str
    xy_px: list[tuple[float, float]]
    color: str
    dashes: str  # as SVG wants them; empty for an unbroken line
    legend_px: float  # from the left, where its name begins in the legend


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A panel, ready to be drawn."""

    title: str
    alt: str
    unit: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]  # px from the left, label
    y_ticks: list[tuple[float, str]]  # px from the top, label


PANELS = (
    Panel(title="Loss", unit="nats", lines=(("loss", "loss"),)),
    Panel(
        title="Teacher entropy and KL",
        unit="nats",
        lines=(("teacher_entropy", "teacher entropy"), ("kl", "KL"), ("max_entropy", "ln K")),
    ),
    Panel(title="RankMe", unit="effective dimensions", lines=(("rankme", "RankMe"),)),
    Panel(
        title="Neighbours while training, of tiles outside the test",
        unit="share",
        lines=(("online_knn_auc", "AUC"), ("online_knn_accuracy", "accuracy")),
    ),
    Panel(title="Centre norm", unit="norm", lines=(("centre_norm", "centre norm"),)),
    Panel(title="Learning rate", unit="", lines=(("lr", "learning rate"),)),
    Panel(title="Time per step", unit="s", lines=(("data_s", "waiting for data"), ("step_s", "whole step"))),
)
DASHES = {"-": "", "--": "6 4", ":": "2 3"}


def curves(metrics: Sequence[dict[str, float]]) -> list[Curve]:
    """A small figure against steps for each panel that has data; rows come in order of their steps."""
    found = (_curve(panel, metrics=metrics) for panel in PANELS)
    return [curve for curve in found if curve]


def points(metrics: Sequence[dict[str, float]], column: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have a finite value in `column`, thinned to `MAX_POINTS`.

    >>> points([{"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": 1.5}], "loss")
    ([1, 3], [2.0, 1.5])
    """
    rows = [(row["step"], row[column]) for row in metrics if math.isfinite(row.get(column, math.nan))]
    stride = math.ceil(len(rows) / MAX_POINTS) or 1
    kept = rows[::stride]
    if rows and kept[-1] != rows[-1]:
        kept.append(rows[-1])
    return [step for step, _ in kept], [value for _, value in kept]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within an axis, both ends included.

    >>> ticks(0, 6.9)
    [0.0, 2.0, 4.0, 6.0]
    """
    found = MaxNLocator(nbins=N_TICKS, steps=STEPS).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(value) for value in found if low - slack <= value <= high + slack]


def _curve(panel: Panel, *, metrics: Sequence[dict[str, float]]) -> Curve | None:
    series = [(name, *points(metrics, column)) for column, name in panel.lines]
    ends = [
        f"{name} from {y[0]:.3g} to {y[-1]:.3g}, steps {x[0]:.0f} to {x[-1]:.0f}"
        for name, x, y in series
        if x
    ]
    if not ends:
        return None
    x_axis = _axis([value for _, x, _ in series for value in x], from_zero=False)
    y_axis = _axis([value for _, _, y in series for value in y], from_zero=True)
    return Curve(
        title=panel.title,
        alt=f"{panel.title}: {'; '.join(ends)}.",
        unit=panel.unit,
        lines=_lines(series, x_axis, y_axis),
        x_ticks=[(_along(value, x_axis, (LEFT_PX, RIGHT_PX)), f"{value:g}") for value in ticks(*x_axis)],
        y_ticks=[(_along(value, y_axis, (BOTTOM_PX, TOP_PX)), f"{value:g}") for value in ticks(*y_axis)],
    )


def _axis(values: list[float], *, from_zero: bool) -> Axis:
    """Ends of an axis; from zero, a flat curve looks flat."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
        high += ROOM * (high - low)
    return (low, high) if high > low else (low, low + 1.0)


def _lines(series: Sequence[tuple[str, list[float], list[float]]], x_axis: Axis, y_axis: Axis) -> list[Line]:
    """The series that have points; each keeps its look where others have none."""
    lines: list[Line] = []
    legend_px = float(LEFT_PX)
    for (name, x, y), (color, dash) in zip(series, LOOKS, strict=False):
        if x:
            along_x = [_along(value, x_axis, (LEFT_PX, RIGHT_PX)) for value in x]
            along_y = [_along(value, y_axis, (BOTTOM_PX, TOP_PX)) for value in y]
            xy_px = list(zip(along_x, along_y, strict=True))
            lines.append(Line(name=name, xy_px=xy_px, color=color, dashes=DASHES[dash], legend_px=legend_px))
            legend_px += KEY_PX + LETTER_PX * len(name)
    return lines


def _along(value: float, axis: Axis, ends_px: tuple[float, float]) -> float:
    """Place of a value between two ends, to a tenth of a px."""
    share = (value - axis[0]) / (axis[1] - axis[0])
    return round(ends_px[0] + share * (ends_px[1] - ends_px[0]), 1)
