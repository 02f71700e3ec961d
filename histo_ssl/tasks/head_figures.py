"""Figures of heads: a few tiles, regions around them, images of the user's own, and head by phenotype.

Letters: H heads.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.data.base import TileSource
from histo_ssl.data.images import read_image
from histo_ssl.data.slides import SlideTiles
from histo_ssl.heads.attending import Attends
from histo_ssl.heads.chart import DIVERGING, Chart, draw
from histo_ssl.heads.drawing import Panel, overlay, panels_of, picked_out, sheet, sized, top_panels
from histo_ssl.heads.maps import top_mass
from histo_ssl.heads.regions import Windows, attended
from histo_ssl.tasks.base import Figure
from histo_ssl.tasks.head_scores import AUC, CORRELATION

Floats = NDArray[np.float64]
Rgb = NDArray[np.uint8]
TILE_PANEL_PX, REGION_PANEL_PX = 192, 512
N_COLUMNS = 3  # panels of a region beside each other
GROUPS = ("What heads attend to", "Heads by phenotype")
SCALES = {AUC: (0.0, 1.0, "AUC within tiles"), CORRELATION: (-1.0, 1.0, "Spearman's rho within tiles")}
NAMES = {"encoder": "", "random": "random weights, ", "colour": "haematoxylin alone"}


def tile_figures(
    source: TileSource,
    rows: NDArray[np.int64],
    attends: Attends,
    windows: Windows,
    *,
    share: float,
    region_px: int,
) -> list[Figure]:
    """One figure of all tiles, a line each; of slides also one of a region around each."""
    known = source.table()
    panels: list[Panel] = []
    for row in rows:
        tile = source.read(int(row))
        maps = attends(torch.tensor(tile).permute(2, 0, 1)[None]).maps_BHhw[0]
        of_tile = panels_of(sized(tile, side_px=TILE_PANEL_PX), maps, share=share)
        first = Panel(title=_words(known["label"].iloc[row]) or "tile", image=of_tile[0].image)
        panels += [first, *of_tile[1:]]
    n_columns = len(panels) // max(1, len(rows))
    tiles = Figure(
        name="tiles",
        title="Attention of each head to tiles",
        alt=f"{len(rows)} tiles, each followed by the attention of its heads, their mean and its top mass",
        group=GROUPS[0],
        image=sheet(panels, n_columns=n_columns, side_px=TILE_PANEL_PX),
    )
    if not isinstance(source, SlideTiles):
        return [tiles]
    regions = [
        _region_figure(
            _whole_cells(source.around(int(row), side_px=max(region_px, windows.side_px)), windows),
            attends,
            windows,
            share=share,
            name=f"region-{i + 1}",
            title=f"{known['slide'].iloc[row]}: a region with {_words(known['label'].iloc[row]) or 'tissue'}",
        )
        for i, row in enumerate(rows)
    ]
    return [tiles, *regions]


def region_figures(
    path: Path, attends: Attends, windows: Windows, *, share: float, number: int
) -> list[Figure]:
    """Of an image: one figure of all heads, and each head on it at full resolution beside that.

    Args:
        path: of the image.
        attends: whose heads.
        windows: how it is seen.
        share: of a map's mass that is picked out.
        number: begins the names of its figures, since images of several folders may be called alike.
    """
    stem = f"{number:03}-{path.stem}"
    region = _whole_cells(read_image(path), windows)
    maps = attended(region, attends, windows)
    overview = _sheet(region, maps, share=share, name=stem, title=path.name)
    mean = maps.mean(axis=0)
    full = {f"head{h + 1}": partial(_over, path, windows, one) for h, one in enumerate(maps)}
    full |= {
        "mean": partial(_over, path, windows, mean),
        "top-mass": partial(_top, path, windows, mean, share),
    }
    return [
        overview,
        *(
            Figure(
                name=f"{stem}-{name}",
                title=f"{path.name}: {name}",
                alt=f"{path.name} at full resolution with attention on it",
                group=GROUPS[0],
                image=made,
                is_listed=False,
            )
            for name, made in full.items()
        ),
    ]


def charts(tables: Mapping[str, pd.DataFrame]) -> list[Figure]:
    """Head by phenotype of all subjects: one chart of AUCs where there are any, one of correlations."""
    together = pd.concat(
        [table.assign(row=[_name(who, head) for head in table["head"]]) for who, table in tables.items()]
    ).drop_duplicates(["row", "phenotype"])  # a single head and the mean of it
    made = []
    for metric, (low, high, label) in SCALES.items():
        if metric not in together or together[metric].isna().all():
            continue
        known = together[together[metric].notna()]
        wide = known.pivot(index="row", columns="phenotype", values=metric)
        wide = wide.loc[known["row"].unique(), known["phenotype"].unique()]
        chosen = known.pivot(index="row", columns="phenotype", values="is_best").reindex_like(wide)
        chart = Chart(
            title=f"{label}, mean over tiles; framed: the head that was chosen on other patients",
            rows=[str(name) for name in wide.index],
            columns=[str(name).replace("_", " ") for name in wide.columns],
            values=wide.to_numpy(dtype=np.float64),
            is_framed=(chosen == True).to_numpy(dtype=bool),  # noqa: E712 (what was not measured is NaN)
            low=low,
            high=high,
            label=label,
            colormap=DIVERGING,
        )
        best = "; ".join(f"{name}: {wide[name].idxmax()} {wide[name].max():.2f}" for name in wide.columns)
        made.append(
            Figure(
                name=f"heads-{metric}",
                title=f"Head by phenotype: {label}",
                alt=f"{label} of each head and floor by phenotype; the highest: {best}",
                group=GROUPS[1],
                image=draw(chart),
            )
        )
    return made


def _words(label: str) -> str:
    return str(label).replace("_", " ")


def _name(subject: str, head: str) -> str:
    if subject == "colour":
        return NAMES[subject]
    return NAMES[subject] + ("mean of heads" if head == "mean" else f"head {head}")


def _region_figure(
    region: Rgb, attends: Attends, windows: Windows, *, share: float, name: str, title: str
) -> Figure:
    return _sheet(region, attended(region, attends, windows), share=share, name=name, title=title)


def _sheet(region: Rgb, maps_Hhw: Floats, *, share: float, name: str, title: str) -> Figure:
    """All panels of a region, and what each head's top mass is."""
    large = sized(region, side_px=REGION_PANEL_PX)
    panels = [*panels_of(large, maps_Hhw, share=share), *top_panels(large, maps_Hhw, share=share)]
    return Figure(
        name=name,
        title=f"Attention of each head to {title}",
        alt=f"{title}, the attention of {len(maps_Hhw)} heads and of their mean, and {share:.0%} of each",
        group=GROUPS[0],
        image=sheet(panels, n_columns=N_COLUMNS, side_px=REGION_PANEL_PX),
    )


def _over(path: Path, windows: Windows, map_hw: Floats) -> Image.Image:
    return overlay(_whole_cells(read_image(path), windows), map_hw)


def _top(path: Path, windows: Windows, map_hw: Floats, share: float) -> Image.Image:
    return picked_out(_whole_cells(read_image(path), windows), top_mass(map_hw, share=share))


def _whole_cells(region: Rgb, windows: Windows) -> Rgb:
    """The region without what is left of it, at its right and below, when it is cut into cells of a map."""
    height, width = (max(1, n // windows.cell_px) * windows.cell_px for n in region.shape[:2])
    return region[:height, :width]
