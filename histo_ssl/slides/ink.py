"""Where a pen has been on a slide.

Haematoxylin and eosin both absorb green most. Ink does not: green and blue pens absorb red most, red pens
absorb blue nearly as much as green and let red through, black ones absorb more than any section. Each stroke
has a core that no tissue looks like, and a paler rest that counts only where it touches a core.

Letters: h, w are the height and width of a thumbnail in pixels, c its three channels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True, kw_only=True)
class InkSpec:
    """What tells pens from stains, in optical densities (OD) of red, green and blue and their mean."""

    min_density: float  # where less is absorbed a colour means nothing, mean OD
    green_core: float  # red over green: a green or blue pen
    green_rest: float  # red over green: the rest of such a stroke
    red_core: float  # blue over green: a red pen, if red is let through
    red_rest: float  # blue over green: the rest of such a stroke
    red_let_through: float  # red over green of a red pen, at most
    black_core: float  # mean OD: a black pen
    black_rest: float  # mean OD: the rest of such a stroke, as far as `black_reach_um` from its core
    black_reach_um: float  # dense tissue may touch a black stroke, so it does not spread further
    min_core_um2: float  # pens are broad: smaller cores are tissue


def ink_mask(density_hwc: NDArray[np.float32], spec: InkSpec, mpp: float) -> NDArray[np.bool_]:
    """Where there is ink: (h, w).

    Args:
        density_hwc: optical densities above the glass.
        spec: what tells pens from stains.
        mpp: um/px of the thumbnail.
    """
    red, green, blue = np.moveaxis(density_hwc, 2, 0)
    density = density_hwc.mean(axis=2)
    green_pen = np.where(density > spec.min_density, red / np.maximum(green, spec.min_density), 0)
    lets_red_through = (density > spec.min_density) & (red < spec.red_let_through * green)
    red_pen = np.where(lets_red_through, blue / np.maximum(green, spec.min_density), 0)
    min_core_px = spec.min_core_um2 / mpp**2
    n_steps = max(1, round(spec.black_reach_um / mpp))
    return (
        _strokes(green_pen, core=spec.green_core, rest=spec.green_rest, min_core_px=min_core_px)
        | _strokes(red_pen, core=spec.red_core, rest=spec.red_rest, min_core_px=min_core_px)
        | _strokes(
            density, core=spec.black_core, rest=spec.black_rest, min_core_px=min_core_px, n_steps=n_steps
        )
    )


def without_small(mask: NDArray[np.bool_], min_px: float) -> NDArray[np.bool_]:
    """A mask without its connected parts (4 neighbours) of fewer than `min_px` pixels."""
    labels, _ = ndimage.label(mask)
    is_kept = np.bincount(labels.ravel()) >= min_px
    is_kept[0] = False  # the background
    return np.asarray(is_kept[labels])


def _strokes(
    image_hw: NDArray[np.floating], *, core: float, rest: float, min_core_px: float, n_steps: int = 0
) -> NDArray[np.bool_]:
    """What exceeds `rest` and hangs together with a large part that exceeds `core`; 0 steps: however far."""
    cores = without_small(image_hw > core, min_core_px)
    if not cores.any():
        return cores
    return ndimage.binary_dilation(cores, EIGHT_NEIGHBOURS, mask=image_hw > rest, iterations=n_steps)
