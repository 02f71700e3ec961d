"""Tiles with their numbers for other programs: GeoJSON for QuPath, CSV for everything else.

QuPath reads a FeatureCollection (RFC 7946) whose coordinates are level-0 px with the origin at the scan's
upper left corner. Of `properties` it takes `objectType`, a `classification` that needs both `name` and
`color`, and since version 0.4 `measurements` as one object from names to numbers (qupath-core,
`QuPathTypeAdapters`). It can colour objects of type "tile" and "detection" by a measurement (Measure > Show
measurement maps). Up to version 0.4.3 it stops at a measurement that is no number (qupath/qupath issue 1293),
for which JSON has no word either.

Letters: N tiles.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.folders.cells import csv_text
from histo_ssl.slidemaps.frame import Tiles

ObjectType = Literal["tile", "detection"]
Measurements = Mapping[str, NDArray[np.floating]]  # name -> (N,)
COMPACT = (",", ":")  # of JSON: nothing between its parts


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification:
    """Classes of tiles with the colours that QuPath shall show."""

    names: NDArray[np.str_]  # (N,), "" for none
    colors: Mapping[str, tuple[int, int, int]]  # of each name


def geojson(
    tiles: Tiles,
    *,
    object_type: ObjectType,
    measurements: Measurements,
    classification: Classification | None = None,
) -> str:
    """All tiles as a FeatureCollection, without blanks, in their order.

    Each tile is a polygon of one closed ring: left top, right top, right bottom, left bottom, left top. By
    its numbers it runs anticlockwise, as RFC 7946 asks for; on a screen, where y points down, clockwise.

    Args:
        tiles: where they lie.
        object_type: what QuPath makes of each.
        measurements: numbers of each tile; one that is not known (NaN) is left out of its tile.
        classification: of each tile.

    Raises:
        ValueError: a measurement or class is not one per tile, is infinite, or has no name or colour.
    """
    _check(tiles, measurements, classification)
    names = [json.dumps(name) for name in measurements]
    columns = [column.tolist() for column in measurements.values()]
    measured = (_measured(names, row) for row in zip(*columns, strict=True)) if names else [""] * len(tiles)
    head = f'{{"type":"Feature","properties":{{"objectType":"{object_type}"'
    features = (
        f'{head}{of_class}{numbers}}},"geometry":{{"type":"Polygon","coordinates":[[{ring}]]}}}}'
        for of_class, numbers, ring in zip(
            _classes(tiles, classification), measured, _rings(tiles), strict=True
        )
    )
    return f'{{"type":"FeatureCollection","features":[{",".join(features)}]}}\n'


def table(tiles: Tiles, columns: Mapping[str, NDArray[np.generic]]) -> str:
    """CSV of one row per tile in their order: x, y and side in level-0 px, then the columns.

    Numbers are written so that they read back as they were, NaN as nothing; no text is one that a spreadsheet
    would run.

    Raises:
        ValueError: a column has not one value per tile, or the name of another.
    """
    for name, column in columns.items():
        tiles.check(column, name=f"column {name}")
    x, y = tiles.xy_level0.T
    place = {"x": x, "y": y, "side": np.full(len(tiles), tiles.side_level0)}
    if set(place) & set(columns):
        raise ValueError(
            f"columns {sorted(set(place) & set(columns))} are the tiles' places; name them otherwise"
        )
    return csv_text(pd.DataFrame({**place, **columns}))


def _rings(tiles: Tiles) -> Iterator[str]:
    for x, y in tiles.xy_level0.tolist():
        right, bottom = x + tiles.side_level0, y + tiles.side_level0
        yield f"[{x},{y}],[{right},{y}],[{right},{bottom}],[{x},{bottom}],[{x},{y}]"


def _measured(names: list[str], row: tuple[float, ...]) -> str:
    known = [f"{name}:{value!r}" for name, value in zip(names, row, strict=True) if not math.isnan(value)]
    return f',"measurements":{{{",".join(known)}}}' if known else ""


def _classes(tiles: Tiles, classification: Classification | None) -> list[str]:
    if classification is None:
        return [""] * len(tiles)
    texts = {"": ""}
    for name in np.unique(classification.names[classification.names != ""]).tolist():
        shown = {"name": " ".join(name.split()), "color": list(classification.colors[name])}
        texts[name] = f',"classification":{json.dumps(shown, separators=COMPACT)}'
    return [texts[name] for name in classification.names.tolist()]


def _check(tiles: Tiles, measurements: Measurements, classification: Classification | None) -> None:
    for name, column in measurements.items():
        tiles.check(column, name=f"measurement {name}")
        if not name.strip() or np.isinf(column).any():
            raise ValueError(
                f"measurement '{name}' has {int(np.isinf(column).sum())} infinite values; a name and finite "
                "numbers are expected, NaN where a tile has none"
            )
    if classification is not None:
        tiles.check(classification.names, name="classes")
        bare = set(np.unique(classification.names).tolist()) - set(classification.colors) - {""}
        if bare:
            raise ValueError(f"classes {sorted(bare)} have no colour, without which QuPath reads no class")
