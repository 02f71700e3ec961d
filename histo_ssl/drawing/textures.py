"""Textures of a generated slide: streaks along its fibres, clefts between them, granules and threads.

Letters: H, W the slide in px; P the period of a noise in px.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from histo_ssl.drawing.layout import Floats, Flow, periodic_noise, resized, smooth_noise

GRAIN_PX = 512  # period of granules: as long as a tile, so no tile shows it twice
FIBRE_ROWS_PER_UM, FIBRE_COLUMNS_PER_UM = 4, 1  # of the noise of streaks: finer across the fibres than along
FIBRE_SHAPE = (256 * FIBRE_ROWS_PER_UM, 256 * FIBRE_COLUMNS_PER_UM)


@dataclass(frozen=True, kw_only=True)
class Textures:
    """Fields (H, W) that tissues mix in their own shares; mean about 0 and SD about 1 but for `web`."""

    fibre_HW: Floats
    cleft_HW: Floats
    grain_HW: Floats
    web_HW: Floats  # 1 on a thread, 0 beside it


def draw_textures(rng: np.random.Generator, flow: Flow, *, side_px: int, mpp: float) -> Textures:
    """Textures of one slide: streaks follow its fibres, all else has no direction."""
    shape = (side_px, side_px)
    along_um, across_um = resized(flow.along_HW, shape), resized(flow.across_HW, shape)
    across_um += 0.9 * np.sin(along_um * (2 * np.pi / 34) + 4 * smooth_noise(rng, shape, period_px=40 / mpp))
    row = (across_um * FIBRE_ROWS_PER_UM).astype(np.int32) % FIBRE_SHAPE[0]
    column = (along_um * FIBRE_COLUMNS_PER_UM).astype(np.int32) % FIBRE_SHAPE[1]
    streaks = streak_noise(rng, across_um=0.6, along_um=8)
    streaks += np.float32(0.7) * streak_noise(rng, across_um=2, along_um=22)
    fine_PP, coarse_PP = grain_noise(rng, sigma_um=0.55, mpp=mpp), grain_noise(rng, sigma_um=2.2, mpp=mpp)
    return Textures(
        fibre_HW=streaks[row, column] / np.float32(1.22),  # SD of the sum
        cleft_HW=streak_noise(rng, across_um=1.6, along_um=10)[row, column],
        grain_HW=tiled(fine_PP + np.float32(0.7) * coarse_PP, shape) / np.float32(1.22),
        web_HW=threads(rng, shape, mpp=mpp, mesh_um=38) + threads(rng, shape, mpp=mpp, mesh_um=17),
    )


def streak_noise(rng: np.random.Generator, *, across_um: float, along_um: float) -> Floats:
    """Periodic noise FIBRE_SHAPE with a blur of these SDs across the fibres and along them."""
    return periodic_noise(
        rng, FIBRE_SHAPE, sigma_px=(across_um * FIBRE_ROWS_PER_UM, along_um * FIBRE_COLUMNS_PER_UM)
    )


def threads(rng: np.random.Generator, shape: tuple[int, int], *, mpp: float, mesh_um: float) -> Floats:
    """Threads (rows, columns) with meshes of this size: 1 at most, where a smooth noise is 0."""
    noise = smooth_noise(rng, shape, period_px=mesh_um / mpp)
    strength = special.expit(3 * smooth_noise(rng, shape, period_px=2 * mesh_um / mpp))
    return np.asarray(np.exp(-((noise / 0.08) ** 2)) * strength, dtype=np.float32)


def grain_noise(rng: np.random.Generator, *, sigma_um: float, mpp: float) -> Floats:
    """Periodic noise (GRAIN_PX, GRAIN_PX) without direction, with a blur of this SD."""
    return periodic_noise(rng, (GRAIN_PX, GRAIN_PX), sigma_px=(sigma_um / mpp, sigma_um / mpp))


def tiled(noise_PP: Floats, shape: tuple[int, int]) -> Floats:
    """Periodic noise continued over a field (rows, columns)."""
    times = [-(-side // period) for side, period in zip(shape, noise_PP.shape, strict=True)]
    return np.tile(noise_PP, times)[: shape[0], : shape[1]]
