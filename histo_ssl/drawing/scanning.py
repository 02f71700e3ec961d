"""From a painted slide to the scan: stains of a site, a fold, a pen, glass, lamp and sensor.

Colours follow Beer and Lambert's law, RGB = white * exp(-(h * H + e * E)), with unit vectors h and e over
red, green and blue (Ruifrok and Johnston, Anal Quant Cytol Histol 2001; 23: 291-299). Each site has its own.

Letters: H, W the slide in px; C = 3 colours.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from histo_ssl.drawing.layout import smooth_noise, stretched_noise
from histo_ssl.drawing.painting import Painting
from histo_ssl.drawing.windows import Floats, Stretched, logistic, windows

HAEMATOXYLIN = (0.650, 0.704, 0.286)  # Ruifrok and Johnston
# Theirs, (0.07, 0.99, 0.11), is pure dye and looks magenta; this is what NCT-CRC-HE-100K's stroma has.
EOSIN = (0.15, 0.90, 0.40)
INKS = ((2.3, 1.3, 0.3), (2.2, 0.5, 1.3), (2.0, 2.0, 1.9))  # optical densities of blue, green and black pens
WHITE = 244.0  # grey level of bare glass
BATCH_SD = 0.05  # of the logarithm of a dye's strength, between slides of one site
BAND_REACH_UM = 25.0  # beyond a band, where less than 1e-7 of it is left
SENSOR_SD = 1.1  # grey levels
DARK_CORNERS = 0.03  # share of the light that is lost in the corners


@dataclass(frozen=True, kw_only=True)
class Stain:
    """How one site stains and scans."""

    haematoxylin_C: Floats  # optical density of one unit
    eosin_C: Floats
    white_C: Floats  # grey levels of bare glass

    def batch(self, rng: np.random.Generator) -> "Stain":
        """The same stain on another day: each dye a little stronger or weaker."""
        haematoxylin, eosin = np.exp(rng.normal(0, BATCH_SD, 2)).astype(np.float32)
        return replace(self, haematoxylin_C=haematoxylin * self.haematoxylin_C, eosin_C=eosin * self.eosin_C)


def site_stain(rng: np.random.Generator, *, shift: float) -> Stain:
    """A site's stain: `shift` times as far from the mean as sites usually are, 0 for not at all."""

    def stain(vector: tuple[float, float, float]) -> Floats:
        turned = np.clip(np.array(vector) + shift * rng.normal(0, 0.06, 3), 0.02, None)
        strength = np.exp(shift * rng.normal(0, 0.2))
        return np.asarray(strength * turned / np.linalg.norm(turned), dtype=np.float32)

    white = WHITE + shift * rng.normal(0, 2, 3)
    return Stain(
        haematoxylin_C=stain(HAEMATOXYLIN),
        eosin_C=stain(EOSIN),
        white_C=white.clip(225, 252).astype(np.float32),
    )


def band(rng: np.random.Generator, *, side_px: int, side_um: float, width_um: float, offset: float) -> Floats:
    """A swaying band (H, W) across the slide: 1 in it, 0 beside it.

    Args:
        rng: chooses direction and sway.
        side_px: side of the slide.
        side_um: the same in um.
        width_um: width of the band.
        offset: distance of the band from the slide's centre, as a share of the side.
    """
    coarse = max(8, side_px // 8)
    row, column = (np.mgrid[:coarse, :coarse] + 0.5) / coarse - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    sway = smooth_noise(rng, (coarse, coarse), period_px=coarse / 3) * 0.04
    beside = np.abs(row * np.cos(angle) + column * np.sin(angle) - offset + sway) * side_um - width_um / 2
    beside_um = Stretched(beside.astype(np.float32), (side_px, side_px))
    found = np.zeros((side_px, side_px), dtype=np.float32)
    for window in windows(found.shape):
        if beside_um.part(window).min() < BAND_REACH_UM:
            found[window] = logistic(beside_um.at(window) / np.float32(-1.5))
    return found


def fold(painting: Painting, rng: np.random.Generator, *, mpp: float) -> Painting:
    """The same slide with a fold: a band in which the tissue lies on itself, nuclei and all."""
    side_px = len(painting.eosin_HW)
    width_um = 0.03 * side_px * mpp
    share = band(
        rng, side_px=side_px, side_um=side_px * mpp, width_um=width_um, offset=rng.uniform(-0.1, 0.1)
    )
    shift = round(width_um / mpp)

    haematoxylin, eosin = painting.haematoxylin_HW.copy(), painting.eosin_HW.copy()
    nuclei = painting.nuclei_HW.copy()
    for window in windows(share.shape):
        if not share[window].any():
            continue
        rows, columns = (np.arange(part.start, part.stop) - shift for part in window)  # below 0: from the end
        haematoxylin[window] += share[window] * painting.haematoxylin_HW[rows[:, None], columns]
        eosin[window] += share[window] * painting.eosin_HW[rows[:, None], columns]
        nuclei[window] |= (share[window] > 0.5) & painting.nuclei_HW[rows[:, None], columns]
    return Painting(haematoxylin_HW=haematoxylin, eosin_HW=eosin, nuclei_HW=nuclei)


def pen_mark(rng: np.random.Generator, *, side_px: int, mpp: float) -> Floats:
    """Ink (H, W) of one stroke along the edge of the section: 0 without, about 1 under the pen."""
    side_um = side_px * mpp
    ink = band(rng, side_px=side_px, side_um=side_um, width_um=0.06 * side_um, offset=rng.uniform(0.34, 0.40))
    streaks = stretched_noise(rng, ink.shape, period_px=max(4.0, side_px / 40))
    for window in windows(ink.shape):
        if ink[window].any():
            ink[window] *= (1 + np.float32(0.15) * streaks.at(window)).clip(0.5)
    return ink


def scan(
    painting: Painting, stain: Stain, rng: np.random.Generator, *, ink_HW: Floats | None
) -> NDArray[np.uint8]:
    """The slide as a scanner sees it (H, W, C), with pen ink over it if there is any."""
    shape = painting.eosin_HW.shape
    away = np.linspace(-1, 1, len(painting.eosin_HW), dtype=np.float32) ** 2
    ink_colour = np.array(INKS[rng.integers(len(INKS))], dtype=np.float32)
    rgb = np.empty((*shape, 3), dtype=np.uint8)
    for window in windows(shape):
        haematoxylin, eosin, seen = painting.haematoxylin_HW[window], painting.eosin_HW[window], rgb[window]
        light = 1 - np.float32(DARK_CORNERS / 2) * (away[window[0], None] + away[window[1]])
        noise = np.float32(0.5) + sensor_noise(rng, light.shape)
        for colour in range(3):
            density = stain.haematoxylin_C[colour] * haematoxylin + stain.eosin_C[colour] * eosin
            if ink_HW is not None:
                density += ink_colour[colour] * ink_HW[window]
            seen[..., colour] = (stain.white_C[colour] * light * np.exp(-density) + noise).clip(0, 255)
    return rgb


def sensor_noise(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Noise (rows, columns) in grey levels, SD SENSOR_SD: one of 256 quantiles of the normal distribution."""
    drawn = np.frombuffer(rng.bytes(math.prod(shape)), dtype=np.uint8)
    return _quantiles()[drawn].reshape(shape)


@cache
def _quantiles() -> Floats:
    levels = special.ndtri((np.arange(256) + 0.5) / 256)
    return np.asarray(SENSOR_SD / levels.std() * levels, dtype=np.float32)
