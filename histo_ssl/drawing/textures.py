"""Textures of a generated slide: streaks along its fibres, clefts between them, granules and threads.

Letters: H, W the slide in px; P the period of a noise in px.
"""

from dataclasses import dataclass

import numpy as np

from histo_ssl.drawing.layout import Flow, periodic_noise, stretched_noise
from histo_ssl.drawing.windows import Floats, Stretched, Window, logistic

GRAIN_PX = 512  # period of granules: as long as a tile, so no tile shows it twice; a multiple of a window
FIBRE_ROWS_PER_UM, FIBRE_COLUMNS_PER_UM = 4, 1  # of the noise of streaks: finer across the fibres than along
FIBRE_SHAPE = (256 * FIBRE_ROWS_PER_UM, 256 * FIBRE_COLUMNS_PER_UM)  # powers of 2


@dataclass(frozen=True, kw_only=True)
class Textures:
    """Fields that tissues mix in their own shares; mean about 0 and SD about 1 but for `web`."""

    along: Stretched  # of the flow, in um
    across: Stretched
    wobble: Stretched
    streaks_PP: Floats  # FIBRE_SHAPE, as `clefts_PP`
    clefts_PP: Floats
    grain_PP: Floats
    threads: tuple["Threads", ...]

    def fibre(self, window: Window) -> tuple[Floats, Floats]:
        """Streaks and clefts, which both follow the fibres."""
        along_um, across_um = self.along.at(window), self.across.at(window)
        across_um += np.float32(0.9) * np.sin(
            along_um * np.float32(2 * np.pi / 34) + 4 * self.wobble.at(window)
        )
        row = (across_um * FIBRE_ROWS_PER_UM).astype(np.int32) & (FIBRE_SHAPE[0] - 1)
        column = (along_um * FIBRE_COLUMNS_PER_UM).astype(np.int32) & (FIBRE_SHAPE[1] - 1)
        place = (row * FIBRE_SHAPE[1] + column).astype(np.intp)
        return self.streaks_PP.take(place), self.clefts_PP.take(place)

    def grain(self, window: Window) -> Floats:
        """Granules."""
        return tiled(self.grain_PP, window)

    def web(self, window: Window) -> Floats:
        """1 on a thread, 0 beside it; more where threads cross."""
        return np.asarray(sum(thread.at(window) for thread in self.threads), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Threads with meshes of one size: 1 at most, where a smooth noise is 0."""

    noise: Stretched
    strength: Stretched

    def at(self, window: Window) -> Floats:
        """The threads in a window."""
        thread = np.exp(-np.square(self.noise.at(window) / np.float32(0.08)))
        return np.asarray(thread * logistic(3 * self.strength.at(window)))


def draw_textures(rng: np.random.Generator, flow: Flow, *, shape: tuple[int, int], mpp: float) -> Textures:
    """Textures of one slide: streaks follow its fibres, all else has no direction."""
    wobble = stretched_noise(rng, shape, period_px=40 / mpp)
    streaks = streak_noise(rng, across_um=0.6, along_um=8)
    streaks += np.float32(0.7) * streak_noise(rng, across_um=2, along_um=22)
    grain = grain_noise(rng, sigma_um=0.55, mpp=mpp)
    grain += np.float32(0.7) * grain_noise(rng, sigma_um=2.2, mpp=mpp)
    return Textures(
        along=Stretched(flow.along_HW, shape),
        across=Stretched(flow.across_HW, shape),
        wobble=wobble,
        streaks_PP=streaks / np.float32(1.22),  # SD of the sum
        clefts_PP=streak_noise(rng, across_um=1.6, along_um=10),
        grain_PP=grain / np.float32(1.22),
        threads=tuple(draw_threads(rng, shape, mpp=mpp, mesh_um=mesh_um) for mesh_um in (38, 17)),
    )


def streak_noise(rng: np.random.Generator, *, across_um: float, along_um: float) -> Floats:
    """Periodic noise FIBRE_SHAPE with a blur of these SDs across the fibres and along them."""
    return periodic_noise(
        rng, FIBRE_SHAPE, sigma_px=(across_um * FIBRE_ROWS_PER_UM, along_um * FIBRE_COLUMNS_PER_UM)
    )


def draw_threads(rng: np.random.Generator, shape: tuple[int, int], *, mpp: float, mesh_um: float) -> Threads:
    """Threads on a slide (rows, columns), stronger here and weaker there."""
    return Threads(
        noise=stretched_noise(rng, shape, period_px=mesh_um / mpp),
        strength=stretched_noise(rng, shape, period_px=2 * mesh_um / mpp),
    )


def grain_noise(rng: np.random.Generator, *, sigma_um: float, mpp: float) -> Floats:
    """Periodic noise (GRAIN_PX, GRAIN_PX) without direction, with a blur of this SD."""
    return periodic_noise(rng, (GRAIN_PX, GRAIN_PX), sigma_px=(sigma_um / mpp, sigma_um / mpp))


def tiled(noise_PP: Floats, window: Window) -> Floats:
    """Periodic noise continued over the slide, in a window, which never crosses a period."""
    top, left = (part.start % GRAIN_PX for part in window)
    height, width = (part.stop - part.start for part in window)
    return noise_PP[top : top + height, left : left + width]
