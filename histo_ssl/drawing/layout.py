"""Where tissue lies on a generated slide: its outline, its regions and the run of its fibres.

Letters: H, W are the label raster's sides, one pixel of it is about LABEL_MPP um; N counts places.
Positions are (x, y) in um from the slide's upper left corner.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage, spatial

from histo_ssl.drawing.windows import Floats, Stretched

LABEL_MPP = 4.0  # um per pixel of the label raster: half a nucleus, fine enough for any tile
SWAY_UM = ((350.0, 34.0), (110.0, 6.0))  # (wavelength, amplitude) by which fibres leave the straight line
BORDER_UM = ((150.0, 26.0), (50.0, 8.0), (18.0, 4.0))  # the same of the borders between regions
OUTLINE_UM = ((400.0, 0.08), (120.0, 0.025), (30.0, 0.008))  # (wavelength, amplitude) of the section's edge


class Tissue(IntEnum):
    """Tissue types; the value is the one in the label raster."""

    GLASS = 0
    TUMOUR_NESTS = 1
    SINGLE_FILES = 2
    STROMA = 3
    LYMPHOCYTES = 4
    FAT = 5
    NECROSIS = 6
    MUCUS = 7
    GLANDS = 8


class SlideClass(Enum):
    """Labels of slides and the way their tumour grows."""

    IDC = Tissue.TUMOUR_NESTS  # invasive ductal carcinoma
    ILC = Tissue.SINGLE_FILES  # invasive lobular carcinoma


BENIGN_SHARES = {  # of the tissue area; the tumour takes what is left
    Tissue.STROMA: 0.16,
    Tissue.LYMPHOCYTES: 0.10,
    Tissue.FAT: 0.10,
    Tissue.NECROSIS: 0.10,
    Tissue.MUCUS: 0.10,
    Tissue.GLANDS: 0.14,
}


def resized(field_HW: Floats, shape: tuple[int, int]) -> Floats:
    """The field at another size (rows, columns), bicubic; pixel centres stay where they are."""
    image = Image.fromarray(field_HW).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], *, period_px: float) -> Floats:
    """Gaussian noise (rows, columns) without detail finer than `period_px`, mean about 0, SD about 0.8."""
    return resized(_coarse_noise(rng, shape, period_px=period_px), shape)


def stretched_noise(rng: np.random.Generator, shape: tuple[int, int], *, period_px: float) -> Stretched:
    """The same noise as `smooth_noise`, to be made window by window."""
    return Stretched(_coarse_noise(rng, shape, period_px=period_px), shape)


def _coarse_noise(rng: np.random.Generator, shape: tuple[int, int], *, period_px: float) -> Floats:
    coarse = tuple(max(2, round(side / period_px) + 1) for side in shape)
    return rng.standard_normal(coarse, dtype=np.float32)


def periodic_noise(
    rng: np.random.Generator, shape: tuple[int, int], *, sigma_px: tuple[float, float]
) -> Floats:
    """Gaussian noise with a blur of `sigma_px` (rows, columns), mean 0, SD 1; its edges fit each other."""
    white = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    blurred = fft.irfft2(ndimage.fourier_gaussian(white, sigma_px, n=shape[1]))
    return np.asarray((blurred - blurred.mean()) / blurred.std(), dtype=np.float32)


def hexagonal(rng: np.random.Generator, *, side_um: float, spacing_um: float, jitter: float) -> Floats:
    """Points (N, 2) of a jittered hexagonal grid over a square.

    Args:
        rng: source of the grid's shift and of the jitter.
        side_um: side of the square, in um.
        spacing_um: distance between neighbours, in um.
        jitter: SD of each point's shift, as a share of the spacing.
    """
    x, y = np.meshgrid(
        np.arange(-1, side_um / spacing_um + 1), np.arange(-1, side_um / spacing_um * 1.16 + 1)
    )
    x[1::2] += 0.5
    grid = spacing_um * np.stack([x.ravel(), y.ravel() * np.sqrt(3) / 2], axis=1)  # 1.16: 2 / sqrt(3)
    points = grid + rng.uniform(0, spacing_um, 2)
    return np.asarray(points + rng.normal(0, jitter * spacing_um, points.shape), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The run of the fibres: how far along a fibre (u) and across the fibres (v) each place is, in um."""

    angle: float  # radians, of the fibres before they sway
    pitch_um: float  # side of a pixel of the two fields
    along_HW: Floats
    across_HW: Floats

    def at(self, xy_um: Floats) -> Floats:
        """(u, v) (N, 2) in um of places (N, 2)."""
        return np.stack(
            [sample(field, xy_um, pitch_um=self.pitch_um) for field in (self.along_HW, self.across_HW)],
            axis=1,
        )

    def places(self, uv_um: Floats) -> Floats:
        """Places (N, 2) in um whose (u, v) are these: the inverse of `at`, by fixed-point iteration."""
        turn = rotation(self.angle)
        xy_um = uv_um @ turn
        for _ in range(25):  # converges, since the sway's slope is below 1 everywhere
            xy_um = xy_um + (uv_um - self.at(xy_um)) @ turn
        return xy_um

    def angles(self, xy_um: Floats) -> Floats:
        """Direction (N,) of the fibres at places (N, 2), in radians."""
        slope_y, slope_x = np.gradient(self.across_HW)
        right, down = (
            sample(np.asarray(slope), xy_um, pitch_um=self.pitch_um) for slope in (slope_x, slope_y)
        )
        return np.arctan2(-right, down)  # across the slope: along the contour lines


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The plan of one slide: all that is known before a cell is drawn."""

    side_um: float
    labels_HW: NDArray[np.uint8]  # values of Tissue
    outline_HW: Floats  # > 0 on tissue, its size the distance to the edge as a share of the slide's side
    flow: Flow

    @property
    def pitch_um(self) -> float:
        """Side of a pixel of the rasters, in um."""
        return self.side_um / len(self.labels_HW)

    def is_tissue(self, *tissues: Tissue) -> NDArray[np.bool_]:
        """Where one of these tissues lies (H, W)."""
        return np.isin(self.labels_HW, tissues)

    def tissue(self, xy_um: Floats) -> NDArray[np.uint8]:
        """Tissue (N,) at places (N, 2); glass outside the slide."""
        inside = ((xy_um >= 0) & (xy_um < self.side_um)).all(axis=1)
        return np.where(inside, self.value(self.labels_HW, xy_um), np.uint8(Tissue.GLASS)).astype(np.uint8)

    def value(self, field_HW: NDArray[Any], xy_um: Floats) -> NDArray[Any]:
        """Values (N,) of a field on the label raster at places (N, 2), of the nearest pixel."""
        column, row = np.floor(xy_um / self.pitch_um).astype(int).clip(0, len(field_HW) - 1).T
        return np.asarray(field_HW[row, column])


def sample(field_HW: Floats, xy_um: Floats, *, pitch_um: float) -> Floats:
    """Values (N,) at places (N, 2) of a field with pixels of side `pitch_um`, bilinear."""
    column_row = xy_um / pitch_um - 0.5
    return np.asarray(ndimage.map_coordinates(field_HW, column_row.T[::-1], order=1, mode="nearest"))


def rotation(angle: float) -> Floats:
    """Matrix (2, 2) that turns columns by -angle: from (x, y) to (along, across)."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=np.float32)


def raster_places(side: int, *, pitch_um: float) -> Floats:
    """Centres (side * side, 2) of a raster's pixels of side `pitch_um`, in um."""
    row, column = np.mgrid[:side, :side]
    return np.asarray((np.stack([column, row], axis=-1).reshape(-1, 2) + 0.5) * pitch_um, dtype=np.float32)


def octaves(rng: np.random.Generator, side: int, waves: tuple[tuple[float, float], ...]) -> Floats:
    """Sum (side, side) of smooth noises, one for each (wavelength in um, amplitude)."""
    noises = [a * smooth_noise(rng, (side, side), period_px=period / LABEL_MPP) for period, a in waves]
    return np.asarray(np.sum(noises, axis=0), dtype=np.float32)


def draw_flow(rng: np.random.Generator, side: int, *, pitch_um: float) -> Flow:
    """Fibres in one random direction, swaying, on a raster of this side."""
    angle = rng.uniform(0, np.pi)
    along, across = (raster_places(side, pitch_um=pitch_um) @ rotation(angle).T).T.reshape(2, side, side)
    return Flow(
        angle=angle,
        pitch_um=pitch_um,
        along_HW=along + octaves(rng, side, SWAY_UM),
        across_HW=across + octaves(rng, side, SWAY_UM),
    )


def draw_outline(rng: np.random.Generator, side: int) -> Floats:
    """Rough rounded section (side, side) that covers about two thirds of the slide; > 0 on tissue."""
    xy = raster_places(side, pitch_um=1 / side) - rng.uniform(0.47, 0.53, 2).astype(np.float32)
    stretch = np.array([rng.uniform(0.92, 1.0), rng.uniform(0.92, 1.0)], dtype=np.float32)
    radius = (np.abs(xy / stretch) ** 3).sum(axis=1) ** (1 / 3)  # between a disc and a square
    outline: Floats = 0.43 - radius.reshape(side, side) + octaves(rng, side, OUTLINE_UM)
    return outline


def region_tissues(rng: np.random.Generator, n_regions: int, tumour: Tissue) -> NDArray[np.uint8]:
    """Tissue (n_regions,) of each region in random order, in the shares of BENIGN_SHARES."""
    counts = {tissue: max(1, round(share * n_regions)) for tissue, share in BENIGN_SHARES.items()}
    n_tumour = max(1, n_regions - sum(counts.values()))
    benign = rng.permutation(np.repeat(list(counts), list(counts.values())))
    tissues = np.concatenate([np.repeat(tumour, n_tumour), benign])  # tumour first: regions may be too few
    return rng.permutation(tissues[:n_regions]).astype(np.uint8)


def draw_layout(rng: np.random.Generator, *, side_um: float, region_um: float, tumour: Tissue) -> Layout:
    """A random plan: regions are Voronoi cells with swaying borders.

    Args:
        rng: source of all that is random in it.
        side_um: side of the slide, in um.
        region_um: mean side of a region, in um.
        tumour: how the tumour grows here.
    """
    side = max(8, round(side_um / LABEL_MPP))
    pitch_um = side_um / side
    outline = draw_outline(rng, side)
    # 1.07: a hexagon of this width has the area of a square of side 1
    seeds = hexagonal(rng, side_um=side_um, spacing_um=1.07 * region_um, jitter=0.15)
    on_tissue = sample(outline, seeds, pitch_um=pitch_um) > 0
    seeds = seeds[on_tissue] if on_tissue.any() else seeds[:1]
    sway = np.stack([octaves(rng, side, BORDER_UM).ravel() for _ in "xy"], axis=1)
    nearest = spatial.KDTree(seeds).query(raster_places(side, pitch_um=pitch_um) + sway)[1]
    labels = region_tissues(rng, len(seeds), tumour)[nearest].reshape(side, side)
    return Layout(
        side_um=side_um,
        labels_HW=np.where(outline > 0, labels, np.uint8(Tissue.GLASS)),
        outline_HW=outline,
        flow=draw_flow(rng, side, pitch_um=pitch_um),
    )
