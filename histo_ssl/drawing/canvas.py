"""The canvas of a generated slide, onto which nuclei, cell bodies and holes are stamped in batches.

Letters: N blobs, S the side of a stamp in px, H and W the slide in px, P the period of a noise in px.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo_ssl.drawing.cells import Blobs, Nucleus
from histo_ssl.drawing.textures import GRAIN_PX, grain_noise
from histo_ssl.drawing.windows import Floats, logistic

STAMPED_PX = 65_536  # in one batch of stamps: a dozen arrays of them stay in a core's cache
EDGE_UM = 0.9  # over which a nucleus turns into its surroundings: the optics of a 20x objective
ROUGH_UM = 0.35  # SD of a border's distance from its ellipse; at most ROUGH of the smaller half axis
ROUGH = 0.09
LEVEL_SD = 0.1  # of the depth of nuclei of one kind, as a share


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A batch of N blobs, each on its own square of the canvas."""

    flat_index: NDArray[np.int64]  # (N, S, S) into the flattened canvas
    inwards_um: Floats  # (N, S, S) about the distance to the border, negative outside
    grain: Floats  # (N, S, S) noise of the size of chromatin clumps, mean 0, SD 1
    dxy_um: Floats  # (2, N, S) from the centres to the columns and to the rows
    smaller_um: Floats  # (N,) smaller half axes

    def inside(self, edge_um: float) -> Floats:
        """1 inside, 0.5 on the border, 0 outside (N, S, S); rises from 0.1 to 0.9 over `edge_um`."""
        return logistic(self.inwards_um * np.float32(4.4 / edge_um))

    def spot(self, rng: np.random.Generator) -> Floats:
        """1 at one place not far from the centre, falling to 0 around it (N, S, S)."""
        centre_um = rng.normal(0, 0.15, (2, len(self.smaller_um))) * self.smaller_um
        x, y = _bell(self.dxy_um - centre_um[..., None].astype(np.float32))
        return np.asarray(y[:, :, None] * x[:, None, :])

    def rim(self) -> Floats:
        """1 half a um inside the border, falling to 0 on both sides (N, S, S)."""
        return np.asarray(np.exp(-np.square(2 * self.inwards_um - 1)))


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Four layers of one slide, all (H, W), empty at first."""

    mpp: float
    rng: np.random.Generator
    uneven_PP: Floats  # bends borders
    grain_PP: Floats
    chromatin_HW: Floats  # optical density of haematoxylin inside nuclei
    bodies_HW: Floats  # share of cytoplasm, 0-1
    holes_HW: Floats  # share of nothing, 0-1
    nuclei_HW: NDArray[np.bool_]  # the truth: where nuclei are

    def stamp_nuclei(self, kind: Nucleus, blobs: Blobs) -> None:
        """Add nuclei to the layers `chromatin` and `nuclei`; where two overlap, the darker one is seen."""
        for stamp in self._stamps(blobs):
            uneven = 1 + kind.chromatin * stamp.grain + kind.rim * stamp.rim()
            if kind.nucleolus:
                uneven += kind.nucleolus * stamp.spot(self.rng)
            depth = kind.depth * self.rng.normal(1, LEVEL_SD, (len(uneven), 1, 1)).astype(np.float32)
            _darken(self.chromatin_HW, stamp, depth * uneven.clip(0.3) * stamp.inside(EDGE_UM))
            self.nuclei_HW.reshape(-1)[stamp.flat_index[stamp.inwards_um > 0]] = True

    def stamp_ghosts(self, kind: Nucleus, blobs: Blobs) -> None:
        """Add the pale rests of nuclei to the layer `chromatin`; they count as nuclei no more."""
        for stamp in self._stamps(blobs):
            pale = kind.depth * (1 + kind.rim * stamp.rim())
            _darken(self.chromatin_HW, stamp, pale * stamp.inside(EDGE_UM))

    def stamp_bodies(self, blobs: Blobs, *, edge_um: float) -> None:
        """Add cytoplasm to the layer `bodies`."""
        for stamp in self._stamps(blobs):
            _darken(self.bodies_HW, stamp, stamp.inside(edge_um))

    def stamp_holes(self, blobs: Blobs) -> None:
        """Add holes, such as the lumina of glands, to the layer `holes`."""
        for stamp in self._stamps(blobs):
            _darken(self.holes_HW, stamp, stamp.inside(EDGE_UM))

    def body_at(self, xy_um: Floats) -> Floats:
        """Share of cytoplasm (N,) at places (N, 2)."""
        column, row = (xy_um / self.mpp).astype(int).clip(0, len(self.bodies_HW) - 1).T
        return np.asarray(self.bodies_HW[row, column])

    def _stamps(self, blobs: Blobs) -> Iterator[Stamp]:
        """Stamps of all blobs but those that the slide's edge would cut, the smallest first."""
        reach = np.ceil((blobs.reach_um() + 4 * ROUGH_UM) / self.mpp).astype(np.int64) + 1
        order, side_um = np.argsort(reach, kind="stable"), len(self.nuclei_HW) * self.mpp
        start = 0
        while start < len(order):
            n = max(1, STAMPED_PX // int(2 * reach[order[start]] + 1) ** 2)
            batch, widest = blobs.take(order[start : start + n]), int(reach[order[start : start + n][-1]])
            from_edge_um = np.minimum(batch.xy_um, side_um - batch.xy_um).min(axis=1)
            is_whole = from_edge_um > (widest + 1) * self.mpp
            yield self._stamp(batch.take(np.flatnonzero(is_whole)), widest)
            start += n

    def _stamp(self, blobs: Blobs, reach: int) -> Stamp:
        offset = np.arange(-reach, reach + 1)
        pixel = np.rint(blobs.xy_um / np.float32(self.mpp) - 0.5).astype(np.int64)
        centre_um = (blobs.xy_um - (pixel + 0.5) * self.mpp).T[:, :, None]
        dxy_um = (offset * self.mpp - centre_um).astype(np.float32)
        noise_at = self.rng.integers(0, GRAIN_PX, (2, len(pixel)))
        noise_at = _flat(noise_at, offset, side=GRAIN_PX, period=GRAIN_PX)
        smaller_um = blobs.half_um.min(axis=1)
        bend_um = (ROUGH * smaller_um).clip(max=ROUGH_UM)[:, None, None] * self.uneven_PP.take(noise_at)
        return Stamp(
            flat_index=_flat(pixel.T, offset, side=len(self.nuclei_HW)),
            inwards_um=(1 - _radius(dxy_um, blobs)) * smaller_um[:, None, None] - bend_um,
            grain=self.grain_PP.take(noise_at),
            dxy_um=dxy_um,
            smaller_um=smaller_um,
        )


def blank_canvas(rng: np.random.Generator, *, side_px: int, mpp: float) -> Canvas:
    """An empty canvas for a slide of this side and resolution."""
    chromatin, bodies, holes = (np.zeros((side_px, side_px), dtype=np.float32) for _ in range(3))
    return Canvas(
        mpp=mpp,
        rng=rng,
        uneven_PP=grain_noise(rng, sigma_um=2.2, mpp=mpp),
        grain_PP=grain_noise(rng, sigma_um=0.55, mpp=mpp),
        chromatin_HW=chromatin,
        bodies_HW=bodies,
        holes_HW=holes,
        nuclei_HW=np.zeros((side_px, side_px), dtype=np.bool_),
    )


def _darken(layer_HW: Floats, stamp: Stamp, values: Floats) -> None:
    # flattened, since numpy has a loop of its own for one axis: 5 times as quick as for three
    np.maximum.at(layer_HW.reshape(-1), stamp.flat_index.reshape(-1), values.reshape(-1))


def _flat(
    xy: NDArray[np.int64], offset: NDArray[np.int64], *, side: int, period: int | None = None
) -> NDArray[np.int64]:
    """Places (N, S, S) around pixels (2, N) of a square raster, as places in it when it is flattened."""
    x, y = xy[..., None] + offset
    if period:
        x, y = x % period, y % period
    return np.asarray((y * side)[:, :, None] + x[:, None, :])


def _radius(dxy_um: Floats, blobs: Blobs) -> Floats:
    """Distance (N, S, S) from the centres of N ellipses, 1 on their borders."""
    (dx_um, dy_um), (along, across) = dxy_um, blobs.half_um.T[..., None]
    cos, sin = np.cos(blobs.angle)[:, None], np.sin(blobs.angle)[:, None]
    u = (cos * dx_um / along)[:, None, :] + (sin * dy_um / along)[:, :, None]
    v = (cos * dy_um / across)[:, :, None] - (sin * dx_um / across)[:, None, :]
    return np.asarray(np.sqrt(u * u + v * v))


def _bell(x_um: Floats) -> Floats:
    """Profile of a nucleolus, about 1.3 um wide at half its height."""
    return np.asarray(np.exp(-((x_um / 0.8) ** 2)), dtype=np.float32)
