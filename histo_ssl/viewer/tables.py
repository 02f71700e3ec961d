"""Maps from CSV files of tiles: attention of models of bags, predictions of tasks, tables of one's own.

A file has the columns x and y (level-0 px) and, where it is of several slides, `slide`; `side` where its
tiles are not those of a tile folder. Every other column of numbers is a map, as is one of few texts.

Letters: N tiles.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.folders.cells import exact_table
from histo_ssl.slidemaps.colors import CATEGORIES, Scale
from histo_ssl.slidemaps.frame import Tiles
from histo_ssl.slidemaps.heatmap import NO_CLASS
from histo_ssl.viewer.maps import COLORMAP, Classes, Numbers, TileMap, number_scale

PLACE = ("slide", "x", "y", "side")
NOT_DRAWN = {*PLACE, "patient", "site", "split", "tile", "subject", "protocol", "fold", "map_x", "map_y"}
TEXTS = ("slide", "label", "cluster")  # whatever they look like
PERCENTILE, PREDICTED, SCORE = "percentile", "predicted", "score_"
ENCODER = "encoder"  # among subjects
MOST_CLASSES = 2 * len(CATEGORIES)
# The few columns that mean something wherever they stand.
SCALES = {PERCENTILE: Scale(colormap=COLORMAP, low=0, high=100)}
WORDS = {PERCENTILE: "percentile within the slide"}

SideOf = Callable[[str], int | None]  # side of the tiles of a slide of that name on its scan, px


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table that can be drawn, of the rows of one protocol where there are several."""

    name: str
    protocol: str = ""


class Table:
    """A CSV of tiles.

    Args:
        path: of the file.
        side_of: for tables without a column `side`.
    """

    def __init__(self, path: Path, *, side_of: SideOf) -> None:
        self.path, self._side_of = path, side_of

    @cached_property
    def rows(self) -> pd.DataFrame:
        """All rows; texts as texts, numbers as float64, x and y as whole numbers.

        Raises:
            ValueError: it is not such a table.
        """
        try:
            cells = pd.read_csv(self.path, dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
            raise ValueError(f"{self.path}: not a CSV: {' '.join(str(error).split())}") from error
        rows = exact_table(cells).rename(columns=str)
        if not {"x", "y"} <= set(rows.columns):
            raise ValueError(f"{self.path}: columns {list(rows.columns)}; x and y of tiles are expected")
        if "subject" in rows and ENCODER in set(rows["subject"]):  # floors are for tables of scores
            rows = rows[rows["subject"] == ENCODER].reset_index(drop=True)
        if "slide" not in rows:
            rows["slide"] = self.path.stem
        for name in _names(rows):
            if name not in TEXTS:
                rows[name] = self._numbers(rows[name])
        return rows.astype({"x": np.int64, "y": np.int64})

    @cached_property
    def columns(self) -> list[Column]:
        """What can be drawn."""
        protocols = sorted(set(self.rows["protocol"].astype(str))) if "protocol" in self.rows else [""]
        names = [name for name in _names(self.rows) if name not in NOT_DRAWN and not name.startswith(SCORE)]
        is_score = "subject" in self.rows  # of tiles whose labels the tile folder knows, too
        drawn = [name for name in names if self._is_drawn(name) and not (is_score and name == "label")]
        return [Column(name=name, protocol=protocol) for name in drawn for protocol in protocols]

    def has(self, slide: str) -> bool:
        """Whether there are tiles of a slide."""
        return slide in self._places

    def tile_map(self, slide: str, column: Column) -> TileMap:
        """One column of a slide's tiles, and what else the table knows of them.

        Raises:
            ValueError: nobody knows how large the tiles are.
        """
        rows = self.rows.iloc[self._places[slide]]
        if column.protocol:
            rows = rows[rows["protocol"] == column.protocol]
        xy = rows[["x", "y"]].to_numpy(dtype=np.int64)
        tiles = Tiles(xy_level0=xy, side_level0=self._side(slide, rows))
        return TileMap(tiles=tiles, drawn=self._drawn(rows, column), known=_known(rows, column))

    def _drawn(self, rows: pd.DataFrame, column: Column) -> Numbers | Classes:
        values = rows[column.name]
        if values.dtype.kind == "f":
            scale = SCALES.get(column.name) or number_scale(self.rows[column.name].to_numpy())
            label = WORDS.get(column.name, column.name)
            return Numbers(values=values.to_numpy(dtype=np.float64), scale=scale, label=label)
        names = self._classes(column.name)
        number = {name: i for i, name in enumerate(names)}
        classes = np.array([number.get(text, NO_CLASS) for text in values], dtype=np.int64)
        return Classes(classes=classes, names=names, label=column.name)

    def _classes(self, name: str) -> list[str]:
        """Texts of a column; of a prediction, the classes that could be predicted, seen or not."""
        scored = [one.removeprefix(SCORE) for one in _names(self.rows) if one.startswith(SCORE)]
        found = {str(text) for text in self.rows[name] if text}
        return scored if name == PREDICTED and found <= set(scored) else sorted(found, key=_in_order)

    def _is_drawn(self, name: str) -> bool:
        values = self.rows[name]
        if values.dtype.kind == "f":
            return bool(np.isfinite(values).any())
        return 0 < len(set(values) - {""}) <= MOST_CLASSES

    def _side(self, slide: str, rows: pd.DataFrame) -> int:
        side = rows["side"].iloc[0] if "side" in rows else self._side_of(slide)
        if side is None or not side > 0:
            raise ValueError(
                f"{self.path}: nobody says how large the tiles of {slide} are; a column side (level-0 px) is "
                "expected for slides of no tile folder"
            )
        return int(side)

    def _numbers(self, cells: "pd.Series[str]") -> "pd.Series[float] | pd.Series[str]":
        """A column as numbers, NaN for empty cells; as it is where it holds anything else."""
        numbers = pd.to_numeric(cells.replace("", "nan"), errors="coerce").astype(np.float64)
        is_number = bool((numbers.notna() | cells.str.lower().isin(["", "nan"])).all())
        if str(cells.name) in PLACE and not (is_number and np.isfinite(numbers).all()):
            raise ValueError(f"{self.path}: column {cells.name}: a number in every row is expected")
        return numbers if is_number and numbers.notna().any() else cells

    @cached_property
    def _places(self) -> Mapping[str, NDArray[np.intp]]:
        found = self.rows.groupby("slide", sort=False).indices
        return {str(slide): np.asarray(rows) for slide, rows in found.items()}


def _known(rows: pd.DataFrame, column: Column) -> dict[str, NDArray[np.generic]]:
    """Columns that are told of a tile: all but its place, what is drawn, and scores, of which the best's."""
    scores = [name for name in _names(rows) if name.startswith(SCORE)]
    left_out = {*NOT_DRAWN, *scores, column.name}
    known: dict[str, NDArray[np.generic]] = {
        name: rows[name].to_numpy() for name in _names(rows) if name not in left_out
    }
    if column.name == PREDICTED and scores:
        known["score"] = rows[scores].to_numpy(dtype=np.float64).max(axis=1)
    return known


def _names(rows: pd.DataFrame) -> list[str]:
    return [str(name) for name in rows.columns]


def _in_order(text: str) -> tuple[int, int | str]:
    """Numbers by what they are worth, before words: 9, 10, a."""
    return (0, int(text)) if text.isdecimal() else (1, text)
