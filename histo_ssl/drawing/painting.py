"""Generated tissue in optical density: how much haematoxylin and how much eosin lies where.

Nuclei, cell bodies and holes are laid on a canvas; the ground between them (fibres, granules, threads) is
mixed from textures; both together are the painting.

Letters: H, W the slide in px; h, w the label raster; N places. Stains are optical densities to base e.
"""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import spatial

from histo_ssl.drawing import cells
from histo_ssl.drawing.canvas import Canvas, blank_canvas
from histo_ssl.drawing.cells import Nucleus
from histo_ssl.drawing.layout import (
    Layout,
    Tissue,
    hexagonal,
    raster_places,
    resized,
    smooth_noise,
    stretched_noise,
)
from histo_ssl.drawing.textures import Textures, draw_textures, tiled
from histo_ssl.drawing.windows import Floats, Stretched, Window, logistic, windows


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
CORE = 0.9  # share of tumour around a place, from which on it counts for the mean
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
    ground = draw_ground(layout, canvas)
    shape = canvas.nuclei_HW.shape
    haematoxylin, eosin = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    on_tissue = [window for window in windows(shape) if ground.has_tissue(window)]
    for window in on_tissue:
        haematoxylin[window], eosin[window] = ground.at(window)
        cytoplasm(canvas, window, haematoxylin[window], eosin[window])
        eosin[window] *= 1 - np.float32(UNDER_NUCLEUS) * canvas.chromatin_HW[window].clip(max=1)
        haematoxylin[window] += canvas.chromatin_HW[window]
    even_out_tumour(layout, on_tissue, haematoxylin, eosin)
    outline_um = Stretched(layout.outline_HW * np.float32(layout.side_um), shape)
    nuclei = np.zeros(shape, dtype=np.bool_)
    for window in on_tissue:
        solid = logistic(outline_um.at(window)) * (1 - canvas.holes_HW[window])
        haematoxylin[window] *= solid
        eosin[window] *= solid
        nuclei[window] = canvas.nuclei_HW[window] & (solid > 0.5)
    return Painting(haematoxylin_HW=haematoxylin, eosin_HW=eosin, nuclei_HW=nuclei)


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
    fields = Stretched(np.stack([beyond_um, share]).reshape(2, side, side), canvas.holes_HW.shape)
    for window in windows(canvas.holes_HW.shape):
        if not fields.part(window)[1].any():
            continue
        beyond_um, share = fields.at(window)
        holes = logistic((beyond_um - FAT_WALL_UM) * 2) * logistic((share - FAT_EDGE) * 12)
        np.maximum(canvas.holes_HW[window], holes, out=canvas.holes_HW[window])


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What lies between the cells."""

    looks: Stretched  # (6, H, W): the fields of a Look in their order
    cloud: Stretched
    textures: Textures

    def has_tissue(self, window: Window) -> bool:
        """Whether there is any in a window; without, both stains are 0 there."""
        return bool(self.looks.part(window).any())

    def at(self, window: Window) -> tuple[Floats, Floats]:
        """Haematoxylin and eosin (H, W) in a window; textures that no tissue has here are not made."""
        haematoxylin, eosin, fibre, grain, web, cleft = self.looks.at(window)
        _, _, has_fibre, has_grain, has_web, has_cleft = np.any(self.looks.part(window), axis=(1, 2)).tolist()
        cloud = self.cloud.at(window)
        texture = 1 + np.float32(0.1) * cloud
        if has_grain:
            texture += grain * self.textures.grain(window)
        if has_fibre or has_cleft:
            streaks, clefts = self.textures.fibre(window)
            texture += fibre * streaks * (1 + np.float32(0.35) * cloud)
            emptiness = cleft * logistic((clefts - np.float32(1.9) + np.float32(0.4) * cloud) * 5)
            texture = texture.clip(0.12) * (1 - emptiness)
        haematoxylin *= texture
        if has_web:
            haematoxylin += web * self.textures.web(window)
        return haematoxylin, eosin * texture


def draw_ground(layout: Layout, canvas: Canvas) -> Ground:
    """The ground of a slide of this plan."""
    shape = canvas.holes_HW.shape
    textures = draw_textures(canvas.rng, layout.flow, shape=shape, mpp=canvas.mpp)
    table = np.array([astuple(LOOKS[tissue]) for tissue in Tissue], dtype=np.float32)
    return Ground(
        looks=Stretched(np.moveaxis(table[layout.labels_HW], -1, 0), shape),
        cloud=stretched_noise(canvas.rng, shape, period_px=45 / canvas.mpp),
        textures=textures,
    )


def cytoplasm(canvas: Canvas, window: Window, haematoxylin_HW: Floats, eosin_HW: Floats) -> None:
    """Lay the cells' bodies over the ground of a window, in place."""
    bodies = canvas.bodies_HW[window]
    if not bodies.any():
        return
    shade = 1 + np.float32(CYTOPLASM.grain) * tiled(canvas.grain_PP, window)
    haematoxylin_HW += bodies * (np.float32(CYTOPLASM.haematoxylin) * shade - haematoxylin_HW)
    eosin_HW += bodies * (np.float32(CYTOPLASM.eosin) * shade - eosin_HW)


def even_out_tumour(
    layout: Layout, on_tissue: list[Window], haematoxylin_HW: Floats, eosin_HW: Floats
) -> None:
    """Scale both stains of the tumour to the means that either kind of tumour has, in place."""
    is_tumour = layout.is_tissue(Tissue.TUMOUR_NESTS, Tissue.SINGLE_FILES).astype(np.float32)
    tumour = Stretched(is_tumour, haematoxylin_HW.shape)
    shares = [(window, tumour.at(window).clip(0, 1)) for window in on_tissue if tumour.part(window).any()]
    if not shares:
        return
    cores = [(window, share > CORE) for window, share in shares]
    for layer, mean in ((haematoxylin_HW, TUMOUR_MEAN.haematoxylin), (eosin_HW, TUMOUR_MEAN.eosin)):
        found = np.concatenate([layer[window][core] for window, core in cores]).mean(dtype=np.float64)
        for window, share in shares:
            layer[window] *= 1 + share * np.float32(mean / found - 1)
