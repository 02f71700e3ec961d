"""Cells of a generated slide: what their nuclei look like and where they lie.

Letters: N places or cells. Positions are (x, y) in um from the slide's upper left corner.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

from histo_ssl.drawing.layout import Layout, Tissue, hexagonal, rotation
from histo_ssl.drawing.windows import Floats
from histo_ssl.units import area_mm2

TUMOUR_CELLS_PER_MM2 = 4300.0  # of the tumour's area: the same in nests and in files, so colour is the same
NEST_SPACING_UM, NEST_CELL_UM = 78.0, 10.7  # between nests; between cells of a nest
FILE_SPACING_UM, FILE_CELL_UM = 18.0, 9.0  # between files; between cells of a file
FILE_RUN_CELLS = 4.0  # over which a file's gaps are correlated, in cells
GLAND_SPACING_UM, GLAND_UM = 88.0, 64.0  # between glands; diameter
GLAND_RING, GLAND_NUCLEUS_UM = 0.76, 6.2  # radius of the ring of nuclei, as a share; distance between them


@dataclass(frozen=True, kw_only=True)
class Nucleus:
    """How one kind of nucleus looks."""

    length_um: float
    width_um: float
    size_sd: float  # of the logarithm of both
    depth: float  # optical density of haematoxylin
    chromatin: float  # SD of the depth inside one nucleus, as a share of it
    rim: float  # how much darker the membrane is, as a share
    nucleolus: float  # how much darker the nucleolus is, as a share


TUMOUR = Nucleus(
    length_um=9.8, width_um=8.0, size_sd=0.15, depth=0.78, chromatin=0.28, rim=0.45, nucleolus=0.9
)
SPINDLE = Nucleus(
    length_um=13.0, width_um=2.9, size_sd=0.2, depth=1.0, chromatin=0.15, rim=0.1, nucleolus=0.0
)
LYMPHOCYTE = Nucleus(
    length_um=6.8, width_um=6.2, size_sd=0.07, depth=1.4, chromatin=0.22, rim=0.1, nucleolus=0.0
)
GLANDULAR = Nucleus(
    length_um=8.2, width_um=5.4, size_sd=0.08, depth=1.05, chromatin=0.18, rim=0.25, nucleolus=0.0
)
DEBRIS = Nucleus(length_um=2.4, width_um=1.8, size_sd=0.45, depth=1.2, chromatin=0.1, rim=0.0, nucleolus=0.0)
GHOST = Nucleus(length_um=8.5, width_um=7.5, size_sd=0.15, depth=0.14, chromatin=0.4, rim=0.8, nucleolus=0.0)


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """N ellipses: nuclei, cell bodies or glands."""

    xy_um: Floats  # (N, 2) centres
    half_um: Floats  # (N, 2) half axes
    angle: Floats  # (N,) radians, of the first axis

    def reach_um(self) -> Floats:
        """Half the side (N,) of the square around each, upright, that just holds it."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along, across = self.half_um.T
        return np.asarray(
            np.maximum(np.hypot(along * cos, across * sin), np.hypot(along * sin, across * cos))
        )

    def take(self, chosen: NDArray[np.intp]) -> "Blobs":
        """Those of these numbers, in their order."""
        return Blobs(xy_um=self.xy_um[chosen], half_um=self.half_um[chosen], angle=self.angle[chosen])

    def scaled(self, factor: float) -> "Blobs":
        """The same ellipses, larger or smaller around their centres."""
        return Blobs(xy_um=self.xy_um, half_um=self.half_um * np.float32(factor), angle=self.angle)


def nuclei(kind: Nucleus, xy_um: Floats, angle: Floats, rng: np.random.Generator) -> Blobs:
    """Nuclei of one kind and of random size at places (N, 2), pointing along `angle` (N,) in radians."""
    size = np.exp(rng.normal(0, kind.size_sd, (len(xy_um), 2)))
    half_um = np.array([kind.length_um, kind.width_um]) / 2 * size
    return Blobs(xy_um=xy_um, half_um=half_um.astype(np.float32), angle=angle.astype(np.float32))


def bodies(xy_um: Floats, *, diameter_um: float, rng: np.random.Generator) -> Blobs:
    """Cell bodies or glands at places (N, 2): ellipses in any direction, a fifth longer than wide."""
    longer = np.exp(rng.uniform(0, 0.2, len(xy_um)))
    half_um = (
        diameter_um / 2 * np.stack([longer, 1 / longer], axis=1) * rng.uniform(0.9, 1.1, (len(xy_um), 1))
    )
    return Blobs(xy_um=xy_um, half_um=half_um.astype(np.float32), angle=any_angles(len(xy_um), rng))


def any_angles(n: int, rng: np.random.Generator) -> Floats:
    """Directions (n,) of axes, in radians: uniform over half a turn, which is all that an axis has."""
    return rng.uniform(0, np.pi, n).astype(np.float32)


def scattered(layout: Layout, tissue: Tissue, rng: np.random.Generator, *, spacing_um: float) -> Floats:
    """Places (N, 2) all over one tissue, roughly `spacing_um` apart."""
    xy_um = hexagonal(rng, side_um=layout.side_um, spacing_um=spacing_um, jitter=0.19)
    return np.asarray(xy_um[layout.tissue(xy_um) == tissue])


def n_tumour_cells(layout: Layout, tissue: Tissue) -> int:
    """Number of tumour cells in a tumour of this extent, whichever way it grows."""
    return round(TUMOUR_CELLS_PER_MM2 * area_mm2(int(layout.is_tissue(tissue).sum()), mpp=layout.pitch_um))


def nests(layout: Layout, rng: np.random.Generator) -> Floats:
    """Places (N, 2) of tumour cells in round nests: the places nearest to a nest's centre, by its size."""
    tissue = Tissue.TUMOUR_NESTS
    xy_um = scattered(layout, tissue, rng, spacing_um=NEST_CELL_UM)
    centres = hexagonal(rng, side_um=layout.side_um, spacing_um=NEST_SPACING_UM, jitter=0.14)
    distance, nest = spatial.KDTree(centres).query(xy_um, k=3)
    size = rng.uniform(0.7, 1.3, len(centres))
    outwards = (distance / size[nest]).min(axis=1) + rng.normal(0, 1.5, len(xy_um))
    return xy_um[np.argsort(outwards)[: n_tumour_cells(layout, tissue)]]


def files(layout: Layout, rng: np.random.Generator) -> Floats:
    """Places (N, 2) of tumour cells one behind the other along the fibres, in runs with gaps."""
    tissue = Tissue.SINGLE_FILES
    u = np.arange(layout.flow.along_HW.min(), layout.flow.along_HW.max(), FILE_CELL_UM)
    v = np.arange(layout.flow.across_HW.min(), layout.flow.across_HW.max(), FILE_SPACING_UM)
    uv_um = np.stack(np.meshgrid(u, v), axis=-1) + rng.normal(0, 1.0, (len(v), len(u), 2))
    uv_um += rng.normal(0, [FILE_CELL_UM, 0.15 * FILE_SPACING_UM], (len(v), 1, 2))  # no two files in step
    runs = ndimage.gaussian_filter1d(rng.standard_normal((len(v), len(u))), FILE_RUN_CELLS, axis=1).ravel()
    xy_um = layout.flow.places(uv_um.reshape(-1, 2).astype(np.float32))
    inside = layout.tissue(xy_um) == tissue
    return np.asarray(xy_um[inside][np.argsort(-runs[inside])[: n_tumour_cells(layout, tissue)]])


def glands(layout: Layout, rng: np.random.Generator) -> Blobs:
    """Normal glands, none of which leaves its region by more than its border."""
    depth_um = ndimage.distance_transform_edt(layout.is_tissue(Tissue.GLANDS)) * layout.pitch_um
    xy_um = scattered(layout, Tissue.GLANDS, rng, spacing_um=GLAND_SPACING_UM)
    return bodies(xy_um[layout.value(depth_um, xy_um) > 0.4 * GLAND_UM], diameter_um=GLAND_UM, rng=rng)


def gland_nuclei(blobs: Blobs, rng: np.random.Generator) -> Blobs:
    """Nuclei on a ring in every gland, near its outer border and pointing to its middle."""
    places, angles = [np.empty((0, 2))], [np.empty(0)]
    for centre, half_um, turn in zip(blobs.xy_um, blobs.half_um, blobs.angle, strict=True):
        n = round(2 * np.pi * GLAND_RING * half_um.mean() / GLAND_NUCLEUS_UM)
        around = 2 * np.pi * (np.arange(n) + rng.normal(0, 0.15, n)) / n
        depth = GLAND_RING + rng.normal(0, 0.035, (n, 1))
        ring = (np.stack([np.cos(around), np.sin(around)], axis=1) * half_um * depth) @ rotation(float(turn))
        places.append(centre + ring)
        angles.append(np.arctan2(ring[:, 1], ring[:, 0]))
    return nuclei(GLANDULAR, np.concatenate(places).astype(np.float32), np.concatenate(angles), rng)
