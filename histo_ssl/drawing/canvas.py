"""The canvas of a generated slide, onto which nuclei, cell bodies and holes are stamped in batches.

Letters: N blobs, S the side of a stamp in px, H and W the slide in px, P the period of a noise in px.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from histo_ssl.drawing.cells import Blobs, Nucleus
from histo_ssl.drawing.layout import Floats
from histo_ssl.drawing.textures import GRAIN_PX, grain_noise

STAMPED_PX = 1_000_000  # in one batch of stamps: bounds the memory
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
    spot: Floats  # (N, S, S) 1 at one place not far from the centre, falling to 0 around it

    def inside(self, edge_um: float) -> Floats:
        """1 inside, 0.5 on the border, 0 outside (N, S, S); rises from 0.1 to 0.9 over `edge_um`."""
        return np.asarray(special.expit(self.inwards_um * np.float32(4.4 / edge_um)), dtype=np.float32)


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
            rim = np.exp(-((stamp.inwards_um / 0.5 - 1) ** 2))
            uneven = 1 + kind.chromatin * stamp.grain + kind.rim * rim + kind.nucleolus * stamp.spot
            depth = kind.depth * self.rng.normal(1, LEVEL_SD, (len(rim), 1, 1)).astype(np.float32)
            _darken(self.chromatin_HW, stamp, depth * uneven.clip(0.3) * stamp.inside(EDGE_UM))
            self.nuclei_HW.reshape(-1)[stamp.flat_index[stamp.inwards_um > 0]] = True

    def stamp_ghosts(self, kind: Nucleus, blobs: Blobs) -> None:
        """Add the pale rests of nuclei to the layer `chromatin`; they count as nuclei no more."""
        for stamp in self._stamps(blobs):
            rim = np.exp(-((stamp.inwards_um / 0.5 - 1) ** 2))
            _darken(self.chromatin_HW, stamp, kind.depth * (1 + kind.rim * rim) * stamp.inside(EDGE_UM))

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
        """Stamps of all blobs but those that the slide's edge would cut."""
        reach = int(np.ceil((blobs.half_um.max(initial=0.0) + 4 * ROUGH_UM) / self.mpp)) + 1
        corner = np.rint(blobs.xy_um / np.float32(self.mpp) - 0.5).astype(np.int64)
        whole = ((corner >= reach) & (corner < len(self.nuclei_HW) - reach)).all(axis=1)
        chosen = np.flatnonzero(whole)
        batch = max(1, STAMPED_PX // (2 * reach + 1) ** 2)
        for start in range(0, len(chosen), batch):
            yield self._stamp(blobs, chosen[start : start + batch], reach)

    def _stamp(self, blobs: Blobs, chosen: NDArray[np.intp], reach: int) -> Stamp:
        offset = np.arange(-reach, reach + 1)
        pixel = np.rint(blobs.xy_um[chosen] / np.float32(self.mpp) - 0.5).astype(np.int64)
        centre_um = (blobs.xy_um[chosen] - (pixel + 0.5) * self.mpp)[:, :, None].astype(np.float32)
        dx, dy = np.moveaxis((offset * self.mpp - centre_um).astype(np.float32), 1, 0)
        half_um = blobs.half_um[chosen]
        radius = _radius(dx[:, None, :], dy[:, :, None], half_um=half_um, angle=blobs.angle[chosen])
        row, column = self.rng.integers(0, GRAIN_PX, (2, len(chosen), 1))
        noise_at = ((row + offset) % GRAIN_PX)[:, :, None], ((column + offset) % GRAIN_PX)[:, None, :]
        smaller_um = half_um.min(axis=1)[:, None, None]
        bend_um = (ROUGH * smaller_um).clip(max=ROUGH_UM) * self.uneven_PP[noise_at]
        spot_um = self.rng.normal(0, 0.15, (2, len(chosen), 1)) * smaller_um[:, 0]
        y, x = pixel[:, 1, None, None] + offset[:, None], pixel[:, 0, None, None] + offset
        return Stamp(
            flat_index=y * len(self.nuclei_HW) + x,
            inwards_um=(1 - radius) * smaller_um - bend_um,
            grain=self.grain_PP[noise_at],
            spot=_bell(dy - spot_um[1])[:, :, None] * _bell(dx - spot_um[0])[:, None, :],
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
    np.maximum.at(layer_HW.reshape(-1), stamp.flat_index, values)


def _radius(dx_um: Floats, dy_um: Floats, *, half_um: Floats, angle: Floats) -> Floats:
    """Distance (N, S, S) from the centres of N ellipses, 1 on their borders."""
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    along, across = half_um.T[:, :, None, None]
    radius = np.hypot((cos * dx_um + sin * dy_um) / along, (cos * dy_um - sin * dx_um) / across)
    return np.asarray(radius, dtype=np.float32)


def _bell(x_um: Floats) -> Floats:
    """Profile of a nucleolus, about 1.3 um wide at half its height."""
    return np.asarray(np.exp(-((x_um / 0.8) ** 2)), dtype=np.float32)
