"""Kaplan-Meier curves of high and low risk, with their intervals and how many are still at risk."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histo_ssl.report.plots import LOOKS, STYLE, Picture, png
from histo_ssl.report.runs import Result
from histo_ssl.report.scores import FLOORS, words

CURVES = "curves.csv"
SIZE_INCHES = (4.2, 3.4)
N_COUNTS = 5  # times at which the number at risk is told
Rows = Sequence[Mapping[str, float]]


def survival_curves(result: Result) -> list[Picture]:
    """A figure of the primary model for each subject, the encoder's first; none of other tasks."""
    path = result.folder / CURVES
    if not path.exists():
        return []
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for row in csv.DictReader(io.StringIO(path.read_text(), newline="")):
        if row["protocol"] == result.primary[0]:
            numbers = {
                name: float(row[name] or "nan") for name in ("time", "at_risk", "survival", "low", "high")
            }
            found.setdefault(row["subject"], {}).setdefault(row["group"], []).append(numbers)
    return [_picture(subject, result.primary[0], groups) for subject, groups in found.items()]


def at_risk(rows: Rows, time: float) -> int:
    """How many are still under observation just before a time.

    >>> at_risk([{"time": 1, "at_risk": 9}, {"time": 3, "at_risk": 5}], 2)
    5
    """
    later = [int(row["at_risk"]) for row in rows if row["time"] >= time]
    return later[0] if later else 0


def _picture(subject: str, protocol: str, groups: Mapping[str, Rows]) -> Picture:
    name = f"{FLOORS.get(subject, subject)}, {words(protocol)}"
    sizes = ", ".join(f"{int(rows[0]['at_risk'])} of {group}" for group, rows in groups.items())
    with mpl.rc_context(STYLE):
        content = _drawn(groups)
    alt = f"Kaplan-Meier curves of {sizes}, by {name}."
    return Picture(title=name, alt=alt, media_type="image/png", content=content)


def _drawn(groups: Mapping[str, Rows]) -> bytes:
    figure = Figure(figsize=SIZE_INCHES)
    axes = figure.add_subplot()
    for (group, rows), (color, dash) in zip(groups.items(), LOOKS, strict=False):
        time, survival, low, high = _steps(rows)
        axes.step(time, survival, where="post", label=group, color=color, linestyle=dash, linewidth=1.4)
        axes.fill_between(time, low, high, step="post", color=color, alpha=0.15, linewidth=0)
    last = max(row["time"] for rows in groups.values() for row in rows)
    axes.set(xlabel="time", ylabel="share alive", xlim=(0, last), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower left")
    _tell_at_risk(axes, groups, last=last)
    return png(figure)


def _steps(rows: Rows) -> tuple[np.ndarray, ...]:
    """Time, share alive and its interval, from the beginning on, where all live."""
    start = {"time": 0.0, "survival": 1.0, "low": 1.0, "high": 1.0}
    columns = ("time", "survival", "low", "high")
    table = np.array([[row[name] for name in columns] for row in [start, *rows]])
    table[:, 2:] = np.where(np.isnan(table[:, 2:]), table[:, 1:2], table[:, 2:])
    return tuple(table.T)


def _tell_at_risk(axes: Axes, groups: Mapping[str, Rows], *, last: float) -> None:
    """Below the axis: how many of each group are still under observation."""
    times = [last * i / (N_COUNTS - 1) for i in range(N_COUNTS)]
    for line, ((group, rows), (color, _)) in enumerate(zip(groups.items(), LOOKS, strict=False)):
        y = -0.28 - 0.08 * line
        axes.text(-0.02, y, f"{group}:", transform=axes.transAxes, ha="right", color=color, fontsize=8)
        for time in times:
            x = time / last if last else math.nan
            axes.text(x, y, f"{at_risk(rows, time)}", transform=axes.transAxes, ha="center", fontsize=8)
