"""Generated tissue in optical density: how much haematoxylin and how much eosin lies where.

Nuclei, cell bodies and holes are laid on a canvas; the ground between them (fibres, granules, threads) is
mixed from textures; both together are the painting.

Letters: H, W the slide in px; h, w the label raster; N places. Stains are optical densities to base e.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import spatial, special

from histo_ssl.drawing import cells
from histo_ssl.drawing.canvas import Canvas, blank_canvas
from histo_ssl.drawing.cells import Nucleus
from histo_ssl.drawing.layout import (
    Floats,
    Layout,
    Tissue,
    hexagonal,
    raster_places,
    resized,
    smooth_noise,
)
from histo_ssl.drawing.textures import draw_textures, tiled


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a tissue is like between its cells: stains in optical density, the rest as a share of them."""

    haematoxylin: float = 0.0
    eosin: float = 0.0
    fibre: float = 0.0  # streaks along the fibres
    grain: float = 0.0  # granules
    web: float = 0.0  # threads of haematoxylin, in optical density
    cleft: float = 0.0  # how empty the clefts between fibres are


TUMOUR_STROMA = Look(haematoxylin=0.12, eosin=0.44, fibre=0.30, grain=0.08, cleft=0.6)
LOOKS = {
    Tissue.GLASS: Look(),
    Tissue.TUMOUR_NESTS: TUMOUR_STROMA,  # the same ground under both tumours: only their cells' order differs
    Tissue.SINGLE_FILES: TUMOUR_STROMA,
    Tissue.STROMA: Look(haematoxylin=0.10, eosin=0.56, fibre=0.34, grain=0.08, cleft=0.9),
    Tissue.LYMPHOCYTES: Look(haematoxylin=0.13, eosin=0.17, grain=0.3, web=0.08),
    Tissue.FAT: Look(haematoxylin=0.10, eosin=0.42, fibre=0.08),
    Tissue.NECROSIS: Look(haematoxylin=0.13, eosin=0.66, grain=0.30, web=0.05),
    Tissue.MUCUS: Look(haematoxylin=0.10, eosin=0.06, fibre=0.25, grain=0.12, web=0.24),
    Tissue.GLANDS: Look(haematoxylin=0.09, eosin=0.36, fibre=0.36, grain=0.08, cleft=0.9),
}
TUMOUR_MEAN = Look(haematoxylin=0.40, eosin=0.40)  # on average, cells included: equal in both tumours
CYTOPLASM = Look(haematoxylin=0.30, eosin=0.40, grain=0.18)
UNDER_NUCLEUS = 0.35  # share of the eosin that a nucleus displaces
# Diameters of tumour cells: those in files overlap less, so smaller ones cover as much.
NEST_BODY_UM, FILE_BODY_UM = 12.3, 11.2
LUMEN = 0.4  # diameter of a gland's lumen, as a share of the gland's
FAT_CELL_UM, FAT_WALL_UM = 60.0, 2.0
FAT_EDGE = 0.6  # share of fat around a place, from which on there are fat cells


@dataclass(frozen=True, kw_only=True)
class Population:
    """Cells that lie all over a tissue."""

    tissue: Tissue
    nucleus: Nucleus
    spacing_um: float
    kept: float  # share of the places that are taken, at random
    along_fibres: bool = False


POPULATIONS = (
    Population(tissue=Tissue.STROMA, nucleus=cells.SPINDLE, spacing_um=27, kept=0.8, along_fibres=True),
    Population(tissue=Tissue.TUMOUR_NESTS, nucleus=cells.SPINDLE, spacing_um=27, kept=0.6, along_fibres=True),
    Population(tissue=Tissue.SINGLE_FILES, nucleus=cells.SPINDLE, spacing_um=27, kept=0.6, along_fibres=True),
    Population(tissue=Tissue.GLANDS, nucleus=cells.SPINDLE, spacing_um=27, kept=0.8, along_fibres=True),
    Population(tissue=Tissue.STROMA, nucleus=cells.LYMPHOCYTE, spacing_um=60, kept=0.3),
    Population(tissue=Tissue.GLANDS, nucleus=cells.LYMPHOCYTE, spacing_um=40, kept=0.4),
    Population(tissue=Tissue.LYMPHOCYTES, nucleus=cells.LYMPHOCYTE, spacing_um=7.9, kept=0.88),
    Population(tissue=Tissue.NECROSIS, nucleus=cells.DEBRIS, spacing_um=11, kept=0.6),
    Population(tissue=Tissue.MUCUS, nucleus=cells.LYMPHOCYTE, spacing_um=60, kept=0.4),
)


@dataclass(frozen=True, kw_only=True)
class Painting:
    """One painted slide, before it is developed into colours."""

    haematoxylin_HW: Floats
    eosin_HW: Floats
    nuclei_HW: NDArray[np.bool_]


def paint(layout: Layout, *, mpp: float, rng: np.random.Generator) -> Painting:
    """The slide of this plan at `mpp` um/px; equal generators paint equal slides."""
    canvas = blank_canvas(rng, side_px=round(layout.side_um / mpp), mpp=mpp)
    lay_tumour(canvas, layout)
    lay_glands(canvas, layout)
    lay_populations(canvas, layout)
    cut_fat(canvas, layout)
    haematoxylin, eosin = ground(layout, canvas)
    cytoplasm(canvas, haematoxylin, eosin)
    eosin *= 1 - UNDER_NUCLEUS * canvas.chromatin_HW.clip(max=1)
    haematoxylin += canvas.chromatin_HW
    even_out_tumour(layout, haematoxylin, eosin)
    outline_um = resized(layout.outline_HW, haematoxylin.shape) * layout.side_um
    solid = special.expit(outline_um) * (1 - canvas.holes_HW)
    return Painting(
        haematoxylin_HW=haematoxylin * solid,
        eosin_HW=eosin * solid,
        nuclei_HW=canvas.nuclei_HW & (solid > 0.5),
    )


def lay_tumour(canvas: Canvas, layout: Layout) -> None:
    """Tumour cells in nests or in files, with the same nuclei in both."""
    rng = canvas.rng
    if layout.is_tissue(Tissue.TUMOUR_NESTS).any():
        xy_um = cells.nests(layout, rng)
        canvas.stamp_bodies(cells.bodies(xy_um, diameter_um=NEST_BODY_UM, rng=rng), edge_um=1.5)
        angle = cells.any_angles(len(xy_um), rng)
        canvas.stamp_nuclei(cells.TUMOUR, cells.nuclei(cells.TUMOUR, xy_um, angle, rng))
    if layout.is_tissue(Tissue.SINGLE_FILES).any():
        xy_um = cells.files(layout, rng)
        canvas.stamp_bodies(cells.bodies(xy_um, diameter_um=FILE_BODY_UM, rng=rng), edge_um=1.5)
        angle = layout.flow.angles(xy_um)
        canvas.stamp_nuclei(cells.TUMOUR, cells.nuclei(cells.TUMOUR, xy_um, angle, rng))


def lay_glands(canvas: Canvas, layout: Layout) -> None:
    """Normal glands: a ring of nuclei in a ring of cytoplasm around a lumen."""
    glands = cells.glands(layout, canvas.rng)
    canvas.stamp_bodies(glands, edge_um=1.5)
    canvas.stamp_holes(glands.scaled(LUMEN))
    canvas.stamp_nuclei(cells.GLANDULAR, cells.gland_nuclei(glands, canvas.rng))


def lay_populations(canvas: Canvas, layout: Layout) -> None:
    """All other cells, where there is no cytoplasm yet; and the ghosts of cells in necrosis."""
    for population in POPULATIONS:
        xy_um = cells.scattered(layout, population.tissue, canvas.rng, spacing_um=population.spacing_um)
        xy_um = xy_um[(canvas.rng.random(len(xy_um)) < population.kept) & (canvas.body_at(xy_um) < 0.3)]
        angle = cells.any_angles(len(xy_um), canvas.rng)
        if population.along_fibres:
            angle = layout.flow.angles(xy_um) + canvas.rng.normal(0, 0.15, len(xy_um)).astype(np.float32)
        canvas.stamp_nuclei(population.nucleus, cells.nuclei(population.nucleus, xy_um, angle, canvas.rng))
    xy_um = cells.scattered(layout, Tissue.NECROSIS, canvas.rng, spacing_um=14)
    angle = cells.any_angles(len(xy_um), canvas.rng)
    canvas.stamp_ghosts(cells.GHOST, cells.nuclei(cells.GHOST, xy_um, angle, canvas.rng))


def cut_fat(canvas: Canvas, layout: Layout) -> None:
    """Holes of fat cells: Voronoi cells with walls between them that are thicker where three meet."""
    centres = hexagonal(canvas.rng, side_um=layout.side_um, spacing_um=FAT_CELL_UM, jitter=0.17)
    side = 2 * len(layout.labels_HW)  # twice as fine as the labels, since walls are thin
    share = resized(layout.is_tissue(Tissue.FAT).astype(np.float32), (side, side)).ravel()
    sway = np.stack([smooth_noise(canvas.rng, (side, side), period_px=12).ravel() for _ in "xy"], axis=1)
    places = (raster_places(side, pitch_um=layout.side_um / side) + 1.5 * sway)[share > FAT_EDGE / 2]
    first, second, third = np.asarray(spatial.KDTree(centres).query(places, k=3)[0]).T
    beyond_um = np.zeros(side * side, dtype=np.float32)
    beyond_um[share > FAT_EDGE / 2] = second - first - 5 * np.exp((first - third) / 5)  # 0 amid a wall
    beyond_um, share = (
        resized(field.reshape(side, side), canvas.holes_HW.shape) for field in (beyond_um, share)
    )
    holes = special.expit((beyond_um - FAT_WALL_UM) * 2) * special.expit((share - FAT_EDGE) * 12)
    np.maximum(canvas.holes_HW, holes, out=canvas.holes_HW)


def ground(layout: Layout, canvas: Canvas) -> tuple[Floats, Floats]:
    """Haematoxylin and eosin (H, W) between the cells."""
    shape = canvas.holes_HW.shape
    textures = draw_textures(canvas.rng, layout.flow, side_px=len(canvas.holes_HW), mpp=canvas.mpp)
    cloud = smooth_noise(canvas.rng, shape, period_px=45 / canvas.mpp)

    def mix(quality: str) -> Floats:
        table = np.array([getattr(LOOKS[tissue], quality) for tissue in Tissue], dtype=np.float32)
        return resized(table[layout.labels_HW], shape)

    texture = 1 + 0.1 * cloud + mix("grain") * textures.grain_HW
    texture += mix("fibre") * textures.fibre_HW * (1 + 0.35 * cloud)
    clefts = special.expit((textures.cleft_HW - 1.9 + 0.4 * cloud) * 5)
    texture = texture.clip(0.12) * (1 - mix("cleft") * clefts)
    return mix("haematoxylin") * texture + mix("web") * textures.web_HW, mix("eosin") * texture


def cytoplasm(canvas: Canvas, haematoxylin_HW: Floats, eosin_HW: Floats) -> None:
    """Lay the cells' bodies over the ground, in place."""
    shade = 1 + CYTOPLASM.grain * tiled(canvas.grain_PP, haematoxylin_HW.shape)
    haematoxylin_HW += canvas.bodies_HW * (CYTOPLASM.haematoxylin * shade - haematoxylin_HW)
    eosin_HW += canvas.bodies_HW * (CYTOPLASM.eosin * shade - eosin_HW)


def even_out_tumour(layout: Layout, haematoxylin_HW: Floats, eosin_HW: Floats) -> None:
    """Scale both stains of the tumour to the means that either kind of tumour has, in place."""
    is_tumour = layout.is_tissue(Tissue.TUMOUR_NESTS, Tissue.SINGLE_FILES)
    if not is_tumour.any():
        return
    share = resized(is_tumour.astype(np.float32), haematoxylin_HW.shape).clip(0, 1)
    core = share > 0.9 * share.max()
    haematoxylin_HW *= 1 + share * (TUMOUR_MEAN.haematoxylin / haematoxylin_HW[core].mean() - 1)
    eosin_HW *= 1 + share * (TUMOUR_MEAN.eosin / eosin_HW[core].mean() - 1)
