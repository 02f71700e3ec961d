"""Where models of bags looked: attention of chosen slides as tables, as maps, by labels; and tiles in rows.

Letters: N tiles of a slide.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.data.base import TileSource
from histo_ssl.data.slides import Scan, SlideTiles
from histo_ssl.folders.artifacts import write_image, write_text
from histo_ssl.folders.cells import csv_text
from histo_ssl.slidemaps.colors import Scale
from histo_ssl.slidemaps.exports import geojson, table
from histo_ssl.slidemaps.extremes import extremes, ranks
from histo_ssl.slidemaps.frame import Frame, Tiles
from histo_ssl.slidemaps.heatmap import drawn_over, value_layer, value_map
from histo_ssl.slidemaps.legend import ColourBar, font_of, mark
from histo_ssl.slidemaps.percentiles import percentiles
from histo_ssl.slidemaps.picture import PERCENTILE_NOTE, Panel, picture, text_px
from histo_ssl.slidemaps.sheet import Group, contact_sheet, ranked
from histo_ssl.tasks.base import Figure, Look, Sheet
from histo_ssl.tasks.metrics import auc

log = logging.getLogger(__name__)

ATTENTION = "attention"  # folder of all that is written here
BY_LABEL = "by_label.csv"
MAP_PX = 1000  # longer side of the slide on a map
OPACITY, MARGIN = 0.55, 0.03
N_EXTREMES = 8  # tiles with the highest attention, and as many with the lowest
SHEET_TILE_PX = 96
SCALE = Scale(colormap="viridis", low=0, high=100)


def write_looks(looks: Sequence[Look], source: TileSource, folder: Path) -> None:
    """Write `attention/<slide>.csv`, `.geojson`, `.png` and `_tiles.png`, and how attention goes with labels.

    Args:
        looks: whose.
        source: of the slides' tiles.
        folder: of the result.
    """
    if not looks or not isinstance(source, SlideTiles):
        return
    (folder / ATTENTION).mkdir(exist_ok=True)
    known = source.table()
    by_label = [row for look in looks for row in _write_look(look, source, known, folder / ATTENTION)]
    if by_label:
        write_text(folder / ATTENTION / BY_LABEL, csv_text(_summary(pd.DataFrame(by_label))))


def draw_sheet(sheet: Sheet, source: TileSource) -> Figure:
    """A sheet with its tiles."""
    groups = [
        Group(title=title, tiles=[source.read(int(row)) for row in rows], captions=captions)
        for title, rows, captions in sheet.rows
    ]
    n_columns = max(len(rows) for _, rows, _ in sheet.rows)
    image = contact_sheet(groups, n_columns=n_columns, side_px=SHEET_TILE_PX)
    return Figure(name=sheet.name, title=sheet.title, alt=sheet.alt, group=sheet.group, image=image)


def _write_look(
    look: Look, source: SlideTiles, known: pd.DataFrame, folder: Path
) -> Iterator[dict[str, str | float]]:
    """All files of one slide; the AUC of its attention against each label of its tiles comes back."""
    scan = source.scan(look.slide)
    tiles = Tiles(xy_level0=look.coords, side_level0=scan.side_level0)
    tiles.check_scan(scan.slide.size_level0)
    of_slide = known[known["slide"] == look.slide]
    rows = _rows(of_slide, look.coords)
    label = known["label"].to_numpy(dtype=str)[rows]
    shown = percentiles(look.attention)
    columns = {"attention": look.attention, "percentile": shown, **({"label": label} if label.any() else {})}
    write_text(folder / f"{look.slide}.csv", table(tiles, columns))
    measurements = {"attention": look.attention, "attention percentile": shown}
    write_text(
        folder / f"{look.slide}.geojson", geojson(tiles, object_type="tile", measurements=measurements)
    )
    write_image(folder / f"{look.slide}.png", _map(look, tiles, shown, scan))
    write_image(folder / f"{look.slide}_tiles.png", _sheet(look, tiles, shown, source=source, rows=rows))
    yield from _by_label(look, label)


def _rows(of_slide: pd.DataFrame, coords: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the tiles at these places; tiles that were not embedded have none of them."""
    places = pd.MultiIndex.from_frame(of_slide[["x", "y"]])
    found = places.get_indexer(pd.MultiIndex.from_frame(pd.DataFrame(coords)))
    numbers: NDArray[np.int64] = of_slide.index.to_numpy()[found]
    return numbers


def _map(look: Look, tiles: Tiles, shown: NDArray[np.float64], scan: Scan) -> Image.Image:
    """The slide, and beside it its attention over its grey picture, the highest tiles numbered."""
    width, height = scan.slide.size_level0
    thumbnail = scan.slide.thumbnail(scan.slide.mpp * max(width, height) / MAP_PX)
    whole = Frame.whole((width, height), size_px=thumbnail.shape[1::-1], slide_mpp=scan.slide.mpp)
    frame, box = whole.around(tiles, margin=MARGIN)
    part = thumbnail[box]
    layer = value_layer(value_map(shown, tiles, frame), SCALE)
    over = drawn_over(part, layer, opacity=OPACITY, is_grey=True)
    top = extremes(look.attention, tiles, k=N_EXTREMES).top
    numbered = Tiles(xy_level0=look.coords[top], side_level0=tiles.side_level0)
    texts = [str(i) for i in range(1, len(top) + 1)]
    mark(over, numbered, frame, texts=texts, font=font_of(text_px(frame)))
    panels = [Panel(image=Image.fromarray(part), title=look.slide), Panel(image=over, title=look.title)]
    legend = ColourBar(scale=SCALE, label="attention, percentile within the slide")
    return picture(panels, frame, legend=legend, note=PERCENTILE_NOTE)


def _sheet(
    look: Look,
    tiles: Tiles,
    shown: NDArray[np.float64],
    *,
    source: SlideTiles,
    rows: NDArray[np.int64],
) -> Image.Image:
    """The tiles with the highest and the lowest attention."""
    found, places = extremes(look.attention, tiles, k=N_EXTREMES), ranks(look.attention)
    groups = [
        Group(
            title=f"{look.slide}: {title}",
            tiles=[source.read(int(row)) for row in rows[chosen]],
            captions=ranked(places[chosen], shown[chosen]),
        )
        for title, chosen in (("highest attention", found.top), ("lowest attention", found.bottom))
    ]
    return contact_sheet(groups, n_columns=N_EXTREMES, side_px=SHEET_TILE_PX)


def _by_label(look: Look, label: NDArray[np.str_]) -> Iterator[dict[str, str | float]]:
    """How well attention picks the tiles of each label out of a slide's labelled tiles."""
    is_labelled = label != ""
    for name in np.unique(label[is_labelled]):
        is_of = label[is_labelled] == name
        if not is_of.all():
            weights = np.ones((1, len(is_of)))
            value = float(auc(look.attention[is_labelled], is_of, weights)[0])
            yield {"model": look.model, "label": str(name), "slide": look.slide, "auc": value}


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over slides, and their number, for each label."""
    grouped = rows.groupby(["model", "label"])["auc"].agg(["mean", "count"]).reset_index()
    return grouped.rename(columns={"mean": "attention_auc", "count": "n_slides"})
