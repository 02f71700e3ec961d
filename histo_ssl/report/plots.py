"""Pictures as bytes small enough to travel inside the report: training curves, sheets, overlays."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

MAX_POINTS = 300  # per curve: more than the pixels of a panel could show
SIZE_INCHES = (3.6, 2.3)
AXES_PLACE = (
    0.15,
    0.18,
    0.8,
    0.7,
)  # left, bottom, width, height as shares; a computed layout takes twice as long
LOOKS = (("#4b3f8f", "-"), ("#c2501f", "--"), ("#57606a", ":"))  # of a panel's lines: no need to see colours
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": "#57606a",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "svg.fonttype": "none",  # text stays text: smaller, sharper, in the reader's own font
    "svg.hashsalt": "histo_ssl",  # the same curves give the same bytes
}
JPEG_QUALITY = 82
SHRINK = 0.85  # side of the next attempt when a picture is over its budget


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small figure of the training: columns of `metrics.jsonl` that share an axis."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]  # column of metrics.jsonl, name in the legend


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image with the words for those who can't see it."""

    title: str
    alt: str
    media_type: str
    content: bytes


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


def curves(metrics: Sequence[dict[str, float]]) -> list[Picture]:
    """A small SVG figure against steps for each panel that has data; rows come in order of their steps."""
    pictures = (_curve(panel, metrics=metrics) for panel in PANELS)
    return [picture for picture in pictures if picture]


def photograph(path: Path, *, title: str, alt: str, max_side_px: int, budget_bytes: int) -> Picture:
    """A picture file as a JPEG within `max_side_px` and `budget_bytes`; white where it was transparent."""
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    flat.thumbnail((max_side_px, max_side_px))
    content = _jpeg(flat)
    while len(content) > budget_bytes and max(flat.size) > 1:
        flat = flat.resize((max(1, int(flat.width * SHRINK)), max(1, int(flat.height * SHRINK))))
        content = _jpeg(flat)
    return Picture(title=title, alt=alt, media_type="image/jpeg", content=content)


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


def _curve(panel: Panel, *, metrics: Sequence[dict[str, float]]) -> Picture | None:
    lines = [(name, *points(metrics, column)) for column, name in panel.lines]
    ends = [
        f"{name} from {y[0]:.3g} to {y[-1]:.3g}, steps {x[0]:.0f} to {x[-1]:.0f}" for name, x, y in lines if x
    ]
    if not ends:
        return None
    with mpl.rc_context(STYLE):
        content = _svg(panel, lines=lines)
    alt = f"{panel.title}: {'; '.join(ends)}."
    return Picture(title=panel.title, alt=alt, media_type="image/svg+xml", content=content)


def _svg(panel: Panel, *, lines: list[tuple[str, list[float], list[float]]]) -> bytes:
    figure = Figure(figsize=SIZE_INCHES)
    axes = figure.add_axes(AXES_PLACE)
    for (name, x, y), (color, dash) in zip(lines, LOOKS, strict=False):
        if x:
            marker = "." if len(x) == 1 else ""
            axes.plot(x, y, label=name, color=color, linestyle=dash, linewidth=1.4, marker=marker)
    _dress(axes, unit=panel.unit)
    if len(panel.lines) > 1:
        figure.legend(loc="upper left", ncols=3, frameon=False, fontsize=8, handlelength=2.2, borderpad=0)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _dress(axes: Axes, *, unit: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    axes.margins(x=0.02)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # from zero: a flat curve shall look flat


def png(figure: Figure) -> bytes:
    """A figure with many points, which would be a large SVG; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
    return stream.getvalue()
