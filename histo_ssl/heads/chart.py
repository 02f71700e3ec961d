"""A chart of heads by phenotypes: how well the attention of each picks out each."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

INK = "#1f2328"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#8c959f",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
}
CELL_INCHES = (0.75, 0.3)
BAR_INCHES = 0.15  # width of the colour bar, and its distance
DIVERGING = "PuOr"  # told apart by those who see fewer colours, white where nothing is told
SEQUENTIAL = "Blues"  # white is 0
DPI = 130
DARK = 0.3  # distance from the middle, of an end's, from which numbers are written in white


@dataclass(frozen=True, kw_only=True, eq=False)
class Chart:
    """Numbers of rows (heads) and columns (phenotypes)."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: NDArray[np.float64]  # (rows, columns); NaN: not measured
    is_framed: NDArray[np.bool_]  # (rows, columns)
    low: float
    high: float
    label: str  # of the colour bar
    colormap: str  # matplotlib's


def draw(chart: Chart) -> Image.Image:
    """The chart, a number in each cell; the same values give the same bytes."""
    n_rows, n_columns = chart.values.shape
    width, height = CELL_INCHES[0] * n_columns, CELL_INCHES[1] * n_rows
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width + 2 * BAR_INCHES, height))
        share = width / (width + 2 * BAR_INCHES)
        axes = figure.add_axes((0, 0, share, 1))
        image = axes.imshow(chart.values, cmap=chart.colormap, vmin=chart.low, vmax=chart.high, aspect="auto")
        axes.set_xticks(range(n_columns), chart.columns, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n_rows), chart.rows)
        axes.tick_params(length=0)
        axes.set_title(chart.title, loc="left", fontsize=10)
        middle, reach = (chart.low + chart.high) / 2, (chart.high - chart.low) / 2
        ends = (-1, 1) if chart.colormap == DIVERGING else (1,)
        for (row, column), value in np.ndenumerate(chart.values):
            far = any(end * (value - middle) > 2 * DARK * reach for end in ends)
            text = "–" if math.isnan(value) else f"{value:.2f}"
            ink = "white" if far else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
            if chart.is_framed[row, column]:
                corner = (column - 0.47, row - 0.44)
                axes.add_patch(Rectangle(corner, 0.94, 0.88, fill=False, edgecolor=INK, linewidth=1.6))
        figure.colorbar(
            image, cax=figure.add_axes(((1 + share) / 2, 0, (1 - share) / 2, 1)), label=chart.label
        )
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return Image.open(stream).convert("RGB")
