"""Heads over whole slides, and the tiles that each head narrows down on most.

Letters: M tiles that were scored; N tiles of a slide; H heads.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.data.slides import SlideTiles
from histo_ssl.heads.attending import Attends
from histo_ssl.heads.drawing import sheet
from histo_ssl.heads.maps import narrowness
from histo_ssl.heads.over_slides import SlideHeads, panels_over
from histo_ssl.tasks.base import Figure, Sheet, Workplace
from histo_ssl.tasks.head_looks import Ints, Seen, maps_of, spread

log = logging.getLogger(__name__)

MAP_PX = 900  # longer side of a slide under a head
N_COLUMNS = 3  # panels beside each other
N_OF_SLIDE = 2  # tiles of a head's row, at most of one slide
GROUPS = ("Heads over slides", "Tiles that heads narrow down on")
FOLDER = "heads"  # of arrays in a result


def drawn_slides(source: SlideTiles, rows: Ints, *, n: int, seed: int) -> list[str]:
    """Names of slides, spread over what most of their tiles are.

    Args:
        source: of the tiles.
        rows: of it, whose slides may be chosen.
        n: how many, at most.
        seed: of the draw.
    """
    known = source.table().iloc[rows]
    mostly = known.groupby("slide")["label"].agg(lambda labels: labels.value_counts().index[0])
    chosen = spread(np.arange(len(mostly)), mostly.to_numpy(dtype=str), n=n, seed=seed)
    return [str(name) for name in mostly.index[chosen]]


def over_slide(source: SlideTiles, slide: str, attends: Attends, *, place: Workplace) -> SlideHeads:
    """What heads attend to in all tiles of a slide that can be read.

    Raises:
        ValueError: more of them can't be read than `place` allows.
    """
    known = source.table()
    rows = np.flatnonzero((known["slide"] == slide).to_numpy())
    seen = [(ids, found.maps_BHhw) for ids, _, found in maps_of(attends, source, rows, place=place)]
    ids, maps_NHhw = (np.concatenate(part) for part in zip(*seen, strict=True))
    side = source.scan(slide).side_level0
    return SlideHeads.of_maps(maps_NHhw, coords=source.coords()[ids], side_level0=side)


def slide_figure(source: SlideTiles, slide: str, seen: SlideHeads) -> Figure:
    """A slide under each head."""
    scan = source.scan(slide).slide
    thumbnail = scan.thumbnail(scan.mpp * max(scan.size_level0) / MAP_PX)
    panels = panels_over(seen, thumbnail, size_level0=scan.size_level0)
    width = panels[0].image.size[0]
    top = seen.attention_scale().high
    return Figure(
        name=f"{FOLDER}-{slide}",
        title=f"{slide}: attention of patches, from 0 (dark) to {top:.3g} times an even share of a tile's",
        alt=f"Slide {slide}, and the attention of {seen.n_heads} heads and of their mean over it",
        group=GROUPS[0],
        image=sheet(panels, n_columns=N_COLUMNS, side_px=width),
    )


def narrowest(seen: Seen, known: pd.DataFrame, *, n: int) -> Sheet:
    """For each head the tiles on which its attention is narrowest.

    Args:
        seen: what was scored.
        known: one row per tile of the source: slide and label.
        n: tiles of a row; at most two of one slide, where there are several.
    """
    rows = list(_rows(narrowness(seen.maps_MHL), seen, known, n=n))
    said = "; ".join(title for title, _, _ in rows)
    return Sheet(
        name="heads-narrowest",
        title="Tiles that each head narrows down on: bits by which its attention is narrower than even",
        alt=f"Rows of tiles, a row for each of {len(rows)} heads: {said}.",
        group=GROUPS[1],
        rows=rows,
    )


def _rows(
    bits_MH: NDArray[np.float64], seen: Seen, known: pd.DataFrame, *, n: int
) -> Iterator[tuple[str, Ints, list[tuple[str, str]]]]:
    told = known.iloc[seen.row_M].reset_index(drop=True)
    most = N_OF_SLIDE if told["slide"].nunique() > 1 else n
    for head, bits_M in enumerate(bits_MH.T):
        ordered = told.assign(bits=bits_M, tile=seen.row_M).sort_values(
            "bits", ascending=False, kind="stable"
        )
        shown = ordered.groupby("slide", sort=False).head(most).head(n)
        words = [
            f"{label}, {bits:.2f} bits".removeprefix(", ")
            for label, bits in zip(shown["label"], shown["bits"], strict=True)
        ]
        title = f"head {head + 1}: {bits_M.mean():.2f} bits on average"
        captions = list(zip(shown["slide"].astype(str), words, strict=True))
        yield title, shown["tile"].to_numpy(dtype=np.int64), captions
