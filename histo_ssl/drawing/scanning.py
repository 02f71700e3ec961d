"""From a painted slide to the scan: stains of a site, a fold, a pen, glass, lamp and sensor.

Colours follow Beer and Lambert's law, RGB = white * exp(-(h * H + e * E)), with unit vectors h and e over
red, green and blue (Ruifrok and Johnston, Anal Quant Cytol Histol 2001; 23: 291-299). Each site has its own.

Letters: H, W the slide in px; C = 3 colours.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from histo_ssl.drawing.layout import Floats, resized, smooth_noise
from histo_ssl.drawing.painting import Painting

HAEMATOXYLIN = (0.650, 0.704, 0.286)  # Ruifrok and Johnston
# Theirs, (0.07, 0.99, 0.11), is pure dye and looks magenta; this is what NCT-CRC-HE-100K's stroma has.
EOSIN = (0.15, 0.90, 0.40)
INKS = ((2.3, 1.3, 0.3), (2.2, 0.5, 1.3), (2.0, 2.0, 1.9))  # optical densities of blue, green and black pens
WHITE = 244.0  # grey level of bare glass
BATCH_SD = 0.05  # of the logarithm of a dye's strength, between slides of one site
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
    return np.asarray(special.expit(-resized(beside.astype(np.float32), (side_px, side_px)) / 1.5))


def fold(painting: Painting, rng: np.random.Generator, *, mpp: float) -> Painting:
    """The same slide with a fold: a band in which the tissue lies on itself, nuclei and all."""
    side_px = len(painting.eosin_HW)
    width_um = 0.03 * side_px * mpp
    share = band(
        rng, side_px=side_px, side_um=side_px * mpp, width_um=width_um, offset=rng.uniform(-0.1, 0.1)
    )
    shift = round(width_um / mpp)

    def doubled(layer: Floats) -> Floats:
        return layer + share * np.roll(layer, (shift, shift), axis=(0, 1))

    return replace(
        painting,
        haematoxylin_HW=doubled(painting.haematoxylin_HW),
        eosin_HW=doubled(painting.eosin_HW),
        nuclei_HW=painting.nuclei_HW
        | ((share > 0.5) & np.roll(painting.nuclei_HW, (shift, shift), axis=(0, 1))),
    )


def pen_mark(rng: np.random.Generator, *, side_px: int, mpp: float) -> Floats:
    """Ink (H, W) of one stroke along the edge of the section: 0 without, about 1 under the pen."""
    side_um = side_px * mpp
    ink = band(rng, side_px=side_px, side_um=side_um, width_um=0.06 * side_um, offset=rng.uniform(0.34, 0.40))
    streaks = smooth_noise(rng, (side_px, side_px), period_px=max(4.0, side_px / 40))
    return np.asarray(ink * (1 + 0.15 * streaks).clip(0.5))


def scan(
    painting: Painting, stain: Stain, rng: np.random.Generator, *, ink_HW: Floats | None
) -> NDArray[np.uint8]:
    """The slide as a scanner sees it (H, W, C), with pen ink over it if there is any."""
    side = len(painting.eosin_HW)
    away = np.linspace(-1, 1, side, dtype=np.float32) ** 2
    light = 1 - DARK_CORNERS / 2 * (away[:, None] + away)
    noise = rng.standard_normal((side, side), dtype=np.float32) * np.float32(SENSOR_SD)
    ink_colour = INKS[rng.integers(len(INKS))]
    rgb = np.empty((side, side, 3), dtype=np.uint8)
    for colour in range(3):
        density = stain.haematoxylin_C[colour] * painting.haematoxylin_HW
        density += stain.eosin_C[colour] * painting.eosin_HW
        if ink_HW is not None:
            density += np.float32(ink_colour[colour]) * ink_HW
        rgb[..., colour] = (stain.white_C[colour] * light * np.exp(-density) + noise + 0.5).clip(0, 255)
    return rgb
