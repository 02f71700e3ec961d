"""Which part of a slide is tissue: stained, coloured, textured, and no ink.

Colours are compared in optical density, OD = log10(glass / I), where stains add up (Beer-Lambert law) and a
tint means the same in thick and in thin sections. "Density" is the mean OD of red, green and blue, "colour"
the largest minus the smallest: saturation, on that scale.

Letters: h, w are the height and width of the thumbnail in pixels, c its three channels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histo_ssl.slides.ink import EIGHT_NEIGHBOURS, InkSpec, ink_mask, without_small

Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]

N_BINS = 256  # of the histogram on which Otsu's threshold is sought
MIN_WINDOW_PX = 5  # fewer pixels say little about structure
MIN_SAY = 0.1  # of a region: fewer pixels do not speak for it
# log10(256 / (I + 1)): finite for black, 0 for white
DENSITY_OF_VALUE = np.log10(256 / np.arange(1, 257)).astype(np.float32)
PADDING = 254  # scanners fill what they did not scan with pure white, which says nothing of the glass


@dataclass(frozen=True, kw_only=True)
class TissueSpec:
    """What counts as tissue."""

    mpp: float  # resolution of the thumbnail, um/px
    smooth_um: float  # standard deviation of the Gaussian that takes noise away
    max_glass: float  # glass is no denser than this, and grey, OD
    min_glass_share: float  # of the slide: with less the glass is taken for pure white, 0-1
    min_density: float  # Otsu's threshold is kept above this: glass alone has no tissue, OD
    max_density: float  # ... and below this: pale tissue beside dark is tissue, OD
    min_colour: float  # dust, bubbles and shadows are grey, OD
    min_tint: float  # the same for pale tissue, averaged over the window of its structure, OD
    structure_um: float  # side of the window in which structure is measured
    min_structure: float  # standard deviation of detail in it; a stained background has less, OD
    region_um: float  # side of the region most of which has structure, if it is tissue that is paler still
    max_background: float  # what is denser needs no structure to be tissue (blood, colloid), OD
    min_area_um2: float  # smaller specks are dropped
    max_hole_um2: float  # smaller holes are filled: fat cells, capillaries
    ink: InkSpec


def tissue_mask(thumbnail: NDArray[np.uint8], spec: TissueSpec, mpp: float) -> Mask:
    """Where a slide shows tissue.

    Args:
        thumbnail: (h, w, 3) RGB.
        spec: what counts as tissue.
        mpp: um/px of the thumbnail; differs from `spec.mpp` for a scan that is coarser.

    Returns:
        (h, w); nowhere true on pure glass.
    """
    window_px = _odd_px(spec.structure_um, mpp)
    sharp_hwc = _above_glass(DENSITY_OF_VALUE[thumbnail], spec)
    structure_hw = structure(sharp_hwc.mean(axis=2), window_px)
    sigma_px = spec.smooth_um / mpp
    smooth_hwc = ndimage.gaussian_filter(sharp_hwc, (sigma_px, sigma_px, 0))
    ink = ink_mask(smooth_hwc, spec.ink, mpp)
    dense = _dense(smooth_hwc, structure_hw, spec)
    tint_hw = ndimage.uniform_filter(np.ptp(smooth_hwc, axis=2), window_px)
    pale = _pale(
        structure_hw > spec.min_structure,
        is_tinted=tint_hw > spec.min_tint,
        explained=dense | ink,
        window_px=window_px,
        region_px=_odd_px(spec.region_um, mpp),
    )
    mask = without_small((dense | pale) & ~ink, spec.min_area_um2 / mpp**2)
    return ~without_small(~mask, spec.max_hole_um2 / mpp**2) & ~ink


def _pale(has_structure: Mask, *, is_tinted: Mask, explained: Mask, window_px: int, region_px: int) -> Mask:
    """Tissue as pale as glass, such as fat and mucus: tinted regions most of which have their own structure.

    Beside dense tissue and ink every window sees structure and colour, so their surroundings have no say.
    """
    explained = ndimage.binary_dilation(explained, EIGHT_NEIGHBOURS, iterations=window_px // 2 + 2)
    n_with = ndimage.uniform_filter((has_structure & ~explained).astype(np.float32), region_px)
    n_all = ndimage.uniform_filter((~explained).astype(np.float32), region_px)
    pale = is_tinted & (n_with > np.maximum(n_all, MIN_SAY) / 2)
    # Where glass follows, a window has seen the region's edge from half its side away.
    inner = ndimage.binary_erosion(
        pale | explained, EIGHT_NEIGHBOURS, iterations=window_px // 2, border_value=1
    )
    return np.asarray(pale & inner)


def _dense(density_hwc: Plane, structure_hw: Plane, spec: TissueSpec) -> Mask:
    """Tissue that absorbs and is coloured, and has structure unless it absorbs much."""
    density_hw = density_hwc.mean(axis=2)
    threshold = np.clip(otsu(density_hw), spec.min_density, spec.max_density)
    is_background = (structure_hw < spec.min_structure) & (density_hw < spec.max_background)
    return np.asarray(
        (density_hw > threshold) & (np.ptp(density_hwc, axis=2) > spec.min_colour) & ~is_background
    )


def otsu(values: NDArray[np.floating]) -> float:
    """The threshold that leaves the largest variance between the two classes it makes (Otsu 1979, eq. 14).

    Returns:
        0.5 for as many zeros as ones (the middle of all thresholds that part them); where all values are the
        same, that value.
    """
    if np.ptp(values) == 0:
        return float(values.flat[0])
    counts, edges = np.histogram(values, bins=N_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    n_below, sum_below = counts.cumsum()[:-1], (counts * centres).cumsum()[:-1]
    n_above, sum_above = counts.sum() - n_below, (counts * centres).sum() - sum_below
    # The first and the last bin hold the extremes, so neither class is ever empty.
    between = n_below * n_above * (sum_below / n_below - sum_above / n_above) ** 2
    return float(edges[1:-1][np.isclose(between, between.max())].mean())


def local_deviation(image_hw: Plane, window_px: int) -> Plane:
    """Standard deviation in the square window around each pixel: (h, w), 0 where the image is flat."""
    mean = ndimage.uniform_filter(image_hw, window_px)
    square = ndimage.uniform_filter(image_hw * image_hw, window_px)
    return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0)))


def structure(density_hw: Plane, window_px: int) -> Plane:
    """Standard deviation of the fine detail in the square window around each pixel: (h, w).

    Detail is what a Gaussian of a quarter of the window takes away, so that a slope has none: near 0 for a
    haze that fades slowly, 0.02 and more for pale tissue, OD.
    """
    detail_hw = density_hw - ndimage.gaussian_filter(density_hw, window_px / 4)
    return local_deviation(detail_hw, window_px)


def _above_glass(density_hwc: Plane, spec: TissueSpec) -> Plane:
    """Optical densities less those of bare glass, the median of what is bright and grey; 0 at least."""
    is_glass = (
        (density_hwc.mean(axis=2) < spec.max_glass)
        & (np.ptp(density_hwc, axis=2) < spec.min_colour)
        & (density_hwc.max(axis=2) > DENSITY_OF_VALUE[PADDING])
    )
    if is_glass.mean() < spec.min_glass_share:
        return density_hwc
    return np.asarray(np.maximum(density_hwc - np.median(density_hwc[is_glass], axis=0), 0))


def _odd_px(side_um: float, mpp: float) -> int:
    """Side of a centred window in pixels."""
    return max(MIN_WINDOW_PX, 2 * round((side_um / mpp - 1) / 2) + 1)
