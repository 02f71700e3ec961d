"""A map of one slide: a number or a class for each of its tiles, drawn in any part of the scan at any size.

Letters: N tiles; K classes; h, w height and width of an image in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_ssl.slidemaps.colors import Scale, palette
from histo_ssl.slidemaps.frame import Frame, Tiles
from histo_ssl.slidemaps.heatmap import NO_CLASS, Layer, class_layer, class_map, value_layer, value_map
from histo_ssl.slidemaps.legend import ClassList, ColourBar, Legend

COLORMAP = "viridis"
N_STOPS = 16  # colours of a scale that the page's legend is made of
COARSE_PX = 1.2  # side of a square on the picture, up to which a coarser map is fine enough
LIST_PX = 260  # width of a list of classes on a picture


@dataclass(frozen=True, kw_only=True, eq=False)
class Numbers:
    """A number for each tile."""

    values: NDArray[np.float64]  # (N,), NaN where a tile has none
    scale: Scale
    label: str  # of the scale

    def layer(self, tiles: Tiles, frame: Frame, *, chosen: NDArray[np.intp]) -> Layer:
        """The chosen of all tiles in their colours, (h, w, 4)."""
        return value_layer(value_map(self.values[chosen], tiles, frame), self.scale)

    def text(self, i: int) -> str:
        """Of tile i."""
        return _text(self.values[i])

    def legend(self) -> Legend:
        """For pictures."""
        return ColourBar(scale=self.scale, label=self.label)

    def facts(self) -> dict[str, Any]:
        """For the page: the ends of the scale and colours between them."""
        stops = self.scale.rgb(np.linspace(self.scale.low, self.scale.high, N_STOPS))
        ends = [_text(self.scale.low), _text(self.scale.high)]
        return {"kind": "numbers", "label": self.label, "ends": ends, "colours": _hex(stops)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Classes:
    """A class for each tile."""

    classes: NDArray[np.int64]  # (N,) 0 to K - 1, `NO_CLASS` for none
    names: Sequence[str]  # (K,)
    label: str  # what they are, such as "cluster of 8"

    def layer(self, tiles: Tiles, frame: Frame, *, chosen: NDArray[np.intp]) -> Layer:
        """The chosen of all tiles in their colours, (h, w, 4)."""
        n_classes = len(self.names)
        found = class_map(self.classes[chosen], tiles, frame, n_classes=n_classes)
        return class_layer(found, palette(n_classes))

    def text(self, i: int) -> str:
        """Of tile i."""
        return "none" if self.classes[i] == NO_CLASS else self.names[self.classes[i]]

    def legend(self) -> Legend:
        """For pictures."""
        return ClassList(names=self.names, colors=palette(len(self.names)), width_px=LIST_PX)

    def facts(self) -> dict[str, Any]:
        """For the page: each class with its colour and its share of the slide's tiles that have one."""
        counts = np.bincount(self.classes[self.classes != NO_CLASS], minlength=len(self.names))
        shares = (counts / max(1, counts.sum())).round(4).tolist()
        colours = _hex(palette(len(self.names)))
        return {"kind": "classes", "names": list(self.names), "colours": colours, "shares": shares}


@dataclass(frozen=True, kw_only=True, eq=False)
class TileMap:
    """What is known of the tiles of one slide.

    Raises:
        ValueError: there is not one fact for each tile.
    """

    tiles: Tiles
    drawn: Numbers | Classes
    known: Mapping[str, NDArray[Any]]  # name -> (N,), told beside what is drawn
    coarser: "TileMap | None" = None  # the same in larger squares, for views from farther away
    noun: str = "tiles"  # what the squares are

    def __post_init__(self) -> None:
        for name, column in self.known.items():
            self.tiles.check(column, name=name)

    def layer(self, frame: Frame) -> Layer | None:
        """The map in a frame, (h, w, 4), transparent where no tile is; None where there is none at all."""
        coarser = self.coarser
        if coarser and coarser.tiles.side_level0 * frame.scale.max() <= COARSE_PX:
            return coarser.layer(frame)
        near, far = np.array(frame.box_level0[:2]), np.array(frame.box_level0[2:])
        xy = self.tiles.xy_level0
        is_seen = ((xy < far) & (xy + self.tiles.side_level0 > near)).all(axis=1)
        chosen = np.flatnonzero(is_seen)
        if not len(chosen):
            return None
        seen = Tiles(xy_level0=xy[chosen], side_level0=self.tiles.side_level0)
        return self.drawn.layer(seen, frame, chosen=chosen)

    def at(self, x: int, y: int) -> int | None:
        """Number of the tile at a place of the scan, of several the one whose middle is nearest."""
        side = self.tiles.side_level0
        offset = np.array([x, y]) - self.tiles.xy_level0
        under = np.flatnonzero(((offset >= 0) & (offset < side)).all(axis=1))
        if not len(under):
            return None
        from_middle = np.abs(offset[under] - side / 2).sum(axis=1)
        return int(under[from_middle.argmin()])

    def told(self, i: int) -> list[tuple[str, str]]:
        """What is known of tile i, by name."""
        texts = {name: _text(column[i]) for name, column in self.known.items()}
        return [(name, text) for name, text in texts.items() if text]


def number_scale(values: NDArray[np.float64]) -> Scale:
    """A scale from the smallest to the largest number; half below and half above where all are the same."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    is_one = low == high
    return Scale(colormap=COLORMAP, low=low - 0.5 if is_one else low, high=high + 0.5 if is_one else high)


def _text(value: Any) -> str:
    """A cell for people: numbers with four digits, nothing for what is unknown."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def _hex(colours: NDArray[np.uint8]) -> list[str]:
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours.tolist()]
