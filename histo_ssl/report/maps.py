"""Maps of embeddings: a figure for the report, and a page on which pointing at a tile shows it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

from histo_ssl.report.plots import STYLE, Picture, photograph, png
from histo_ssl.report.runs import Result, read_predictions
from histo_ssl.report.scores import FLOORS
from histo_ssl.slidemaps.colors import CATEGORIES

THUMBNAILS = "thumbnails.png"
SIZE_INCHES = (4.2, 3.6)
LEGEND_INCHES = 0.21  # height of a line
SHEET_SIDE_PX, SHEET_BYTES = 4000, 6_000_000
UNKNOWN = "no label"
COLOURS = CATEGORIES  # the same class has the same colour on maps of slides; then again with another mark
MARKS = ("o", "s", "^", "D")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A tile on a map."""

    x: float
    y: float
    label: str
    name: str  # of its slide or image, with its place there


@dataclass(frozen=True, kw_only=True)
class TileMap:
    """One task's maps: the same tiles by each subject's embeddings."""

    title: str
    subjects: dict[str, list[Point]]  # "encoder" and floors; point i is the same tile in each
    classes: list[str]
    thumbnail_px: int
    sheet: Picture


def read_map(result: Result) -> TileMap | None:
    """The map that a result holds, if it holds one."""
    path = result.folder / THUMBNAILS
    if not result.thumbnail_px or not path.exists():
        return None
    subjects = _points(result)
    labels = sorted({point.label for points in subjects.values() for point in points})
    sheet = photograph(
        path, title="", alt="The mapped tiles.", max_side_px=SHEET_SIDE_PX, budget_bytes=SHEET_BYTES
    )
    return TileMap(
        title=result.title,
        subjects=subjects,
        classes=labels,
        thumbnail_px=result.thumbnail_px,
        sheet=sheet,
    )


def figures(tile_map: TileMap) -> list[Picture]:
    """A scatter plot for each subject, with the classes' names beside it."""
    return [
        _figure(tile_map, subject=subject, points=points) for subject, points in tile_map.subjects.items()
    ]


def for_page(tile_map: TileMap) -> dict[str, object]:
    """What the interactive page draws, as plain values for JSON."""
    first = next(iter(tile_map.subjects.values()))
    return {
        "subjects": [  # no object: its keys would come in the order of the alphabet
            {
                "name": FLOORS.get(subject, subject),
                "places": [[round(p.x, 3), round(p.y, 3)] for p in points],
            }
            for subject, points in tile_map.subjects.items()
        ],
        "classes": tile_map.classes,
        "colours": [look(place)[0] for place in range(len(tile_map.classes))],
        "labels": [tile_map.classes.index(point.label) for point in first],
        "names": [point.name for point in first],
        "columns": math.isqrt(len(first) - 1) + 1,
        "side_px": tile_map.thumbnail_px,
    }


def look(place: int) -> tuple[str, str]:
    """Colour and mark of the class at a place of the list; 48 differ.

    >>> look(0), look(13)
    (('#0072b2', 'o'), ('#e69f00', 's'))
    """
    return COLOURS[place % len(COLOURS)], MARKS[place // len(COLOURS) % len(MARKS)]


def _points(result: Result) -> dict[str, list[Point]]:
    subjects: dict[str, list[Point]] = {}
    for row in read_predictions(result):
        subjects.setdefault(row["subject"], []).append(_point(row))
    return subjects


def _point(row: Mapping[str, str]) -> Point:
    at = "" if row["x"] == row["y"] == "0" else f" at {row['x']}, {row['y']}"
    name = f"{row['slide']}{at}"
    return Point(x=float(row["map_x"]), y=float(row["map_y"]), label=row["label"] or UNKNOWN, name=name)


def _figure(tile_map: TileMap, *, subject: str, points: list[Point]) -> Picture:
    name = FLOORS.get(subject, subject)
    with mpl.rc_context(STYLE):
        content = _scatter(points, classes=tile_map.classes)
    alt = f"Map of {len(points)} tiles by {name}: {', '.join(tile_map.classes)}."
    return Picture(title=f"Map by {name}", alt=alt, media_type="image/png", content=content)


def _scatter(points: list[Point], *, classes: list[str]) -> bytes:
    figure = Figure(figsize=(SIZE_INCHES[0], SIZE_INCHES[1] + LEGEND_INCHES * math.ceil(len(classes) / 3)))
    axes = figure.add_subplot()
    for place, name in enumerate(classes):
        shown = [point for point in points if point.label == name]
        x, y = [point.x for point in shown], [point.y for point in shown]
        colour, mark = look(place)
        axes.scatter(x, y, s=7, color=colour, marker=mark, alpha=0.7, linewidths=0, label=name)
    axes.set(xticks=[], yticks=[], xlabel="map x, no unit", ylabel="map y, no unit")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.06),
        ncols=3,
        frameon=False,
        fontsize=8,
        markerscale=2,
        handletextpad=0.2,
        columnspacing=1,
    )
    return png(figure)
