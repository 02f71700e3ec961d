"""Maps of embeddings, for a page on which pointing at a tile shows it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from histo_ssl.folders.artifacts import file_fingerprint
from histo_ssl.report.plots import Picture, photograph
from histo_ssl.report.runs import Result, read_predictions
from histo_ssl.report.scores import FLOORS
from histo_ssl.slidemaps.colors import CATEGORIES

THUMBNAILS = "thumbnails.png"
SHEET_SIDE_PX = 4000
SHEETS_BYTES, MOST_SHEET_BYTES = 3_000_000, 3_000_000  # of all sheets of a report together, of one
NAME_DIGITS = 16  # of a sheet's file
UNKNOWN = "no label"
COLOURS = CATEGORIES  # the same class has the same colour on maps of slides; then again with another mark
MARKS = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A tile on a map."""

    x: float
    y: float
    label: str
    slide: str  # or image
    place: tuple[int, int] | None  # in the slide, level-0 px


@dataclass(frozen=True, kw_only=True)
class TileMap:
    """One task's maps: the same tiles by each subject's embeddings."""

    title: str
    subjects: dict[str, list[Point]]  # "encoder" and floors; point i is the same tile in each
    classes: list[str]


def has_map(result: Result) -> bool:
    """Whether a result is a map of tiles, with their pictures."""
    return bool(result.thumbnail_px) and (result.folder / THUMBNAILS).exists()


def read_map(result: Result) -> TileMap | None:
    """The map that a result holds, if it holds one."""
    if not has_map(result):
        return None
    subjects: dict[str, list[Point]] = {}
    for row in read_predictions(result):
        subjects.setdefault(row["subject"], []).append(_point(row))
    labels = sorted({point.label for points in subjects.values() for point in points})
    return TileMap(title=result.title, subjects=subjects, classes=labels)


def sheet_name(result: Result, *, n_bytes: int) -> str:
    """Name of the file with the pictures of a map's tiles: the same for maps of the same tiles."""
    return f"{file_fingerprint(result.folder / THUMBNAILS)[:NAME_DIGITS]}-{n_bytes // 1000}k.jpg"


def sheet_bytes(n_sheets: int) -> int:
    """What one of so many sheets may weigh, halved until all of them are light enough.

    >>> sheet_bytes(1), sheet_bytes(2), sheet_bytes(50)
    (3000000, 1500000, 46875)
    """
    n_bytes = MOST_SHEET_BYTES
    while n_bytes * n_sheets > SHEETS_BYTES:
        n_bytes //= 2
    return n_bytes


def sheet(path: Path, *, n_bytes: int) -> Picture:
    """The pictures of a map's tiles, side by side, as a JPEG."""
    return photograph(
        path, title="", alt="The mapped tiles.", max_side_px=SHEET_SIDE_PX, budget_bytes=n_bytes
    )


def for_page(tile_map: TileMap) -> dict[str, object]:
    """What the page draws, as plain values for JSON."""
    first = next(iter(tile_map.subjects.values()))
    slides = list(dict.fromkeys(point.slide for point in first))
    number = {name: i for i, name in enumerate(slides)}
    looks = [look(place) for place in range(len(tile_map.classes))]
    return {
        "subjects": [  # no object: its keys would come in the order of the alphabet
            {
                "name": FLOORS.get(subject, subject),
                "places": [[round(p.x, 2), round(p.y, 2)] for p in points],
            }
            for subject, points in tile_map.subjects.items()
        ],
        "classes": tile_map.classes,
        "colours": [colour for colour, _ in looks],
        "marks": [mark for _, mark in looks],
        "labels": [tile_map.classes.index(point.label) for point in first],
        "slides": slides,
        "tiles": [[number[point.slide], *(point.place or ())] for point in first],
        "columns": math.isqrt(len(first) - 1) + 1,
    }


def look(place: int) -> tuple[str, str]:
    """Colour and mark of the class at a place of the list; 48 differ.

    >>> look(0), look(13)
    (('#0072b2', 'circle'), ('#e69f00', 'square'))
    """
    return COLOURS[place % len(COLOURS)], MARKS[place // len(COLOURS) % len(MARKS)]


def _point(row: Mapping[str, str]) -> Point:
    has_place = not row["x"] == row["y"] == "0"  # images have none
    return Point(
        x=float(row["map_x"]),
        y=float(row["map_y"]),
        label=row["label"] or UNKNOWN,
        slide=row["slide"],
        place=(int(row["x"]), int(row["y"])) if has_place else None,
    )
