from dataclasses import replace

import numpy as np
import pytest
from skimage import measure

from histo_ssl.drawing import cells
from histo_ssl.drawing.canvas import blank_canvas
from histo_ssl.drawing.cells import Blobs


def blobs(xy_um, *, half_um, angle: float) -> Blobs:
    n = len(xy_um)
    return Blobs(
        xy_um=np.float32(xy_um),
        half_um=np.tile(np.float32(half_um), (n, 1)),
        angle=np.full(n, angle, dtype=np.float32),
    )


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_a_nucleus_has_the_area_the_place_and_the_direction_it_was_asked_to_have(mpp: float) -> None:
    canvas = blank_canvas(np.random.default_rng(0), side_px=400, mpp=mpp)
    canvas = replace(canvas, uneven_PP=np.zeros_like(canvas.uneven_PP))  # borders as smooth as an ellipse's
    canvas.stamp_nuclei(cells.TUMOUR, blobs([(40.3, 61.7)], half_um=(8, 4), angle=0.6))
    (found,) = measure.regionprops(measure.label(canvas.nuclei_HW))
    row, column = found.centroid
    assert ((column + 0.5) * mpp, (row + 0.5) * mpp) == pytest.approx((40.3, 61.7), abs=0.02)
    assert found.area * mpp**2 == pytest.approx(np.pi * 8 * 4, rel=0.01)
    assert np.pi / 2 - found.orientation == pytest.approx(0.6, abs=0.01)  # skimage counts from the rows


def test_nuclei_have_the_area_of_their_ellipses_on_average() -> None:
    canvas = blank_canvas(np.random.default_rng(1), side_px=1000, mpp=0.5)
    x, y = np.meshgrid(np.arange(20, 480, 20), np.arange(20, 480, 20))
    canvas.stamp_nuclei(
        cells.LYMPHOCYTE, blobs(np.stack([x.ravel(), y.ravel()], 1), half_um=(3.4, 3.1), angle=0)
    )
    area_um2 = canvas.nuclei_HW.sum() * 0.25 / x.size
    assert area_um2 == pytest.approx(np.pi * 3.4 * 3.1, rel=0.03)


def test_the_truth_and_the_chromatin_are_the_same_nuclei() -> None:
    canvas = blank_canvas(np.random.default_rng(2), side_px=300, mpp=0.5)
    canvas.stamp_nuclei(cells.LYMPHOCYTE, blobs([(40, 40), (70, 100)], half_um=(4, 3), angle=1))
    assert canvas.chromatin_HW[canvas.nuclei_HW].min() > 0.15  # half the depth on the border, less chromatin
    far = ~measure.label(canvas.nuclei_HW).astype(bool)
    assert canvas.chromatin_HW[far].mean() < 0.01


def test_a_ghost_stains_and_is_no_nucleus() -> None:
    canvas = blank_canvas(np.random.default_rng(3), side_px=200, mpp=0.5)
    canvas.stamp_ghosts(cells.GHOST, blobs([(50, 50)], half_um=(4, 4), angle=0))
    assert canvas.chromatin_HW[100, 100] == pytest.approx(cells.GHOST.depth, rel=0.05)
    assert not canvas.nuclei_HW.any()


def test_where_bodies_overlap_the_share_stays_that_of_one() -> None:
    canvas = blank_canvas(np.random.default_rng(4), side_px=200, mpp=0.5)
    canvas.stamp_bodies(blobs([(50, 50), (51, 50), (50, 51)], half_um=(6, 6), angle=0), edge_um=1)
    assert canvas.bodies_HW.max() <= 1
    assert canvas.body_at(np.float32([[50, 50], [80, 80]])) == pytest.approx([1, 0], abs=1e-3)


def test_what_the_edge_of_the_slide_would_cut_is_left_out() -> None:
    canvas = blank_canvas(np.random.default_rng(5), side_px=200, mpp=0.5)
    canvas.stamp_holes(blobs([(1, 50), (99, 50), (50, -8), (50, 300)], half_um=(5, 5), angle=0))
    assert not canvas.holes_HW.any()


def test_many_blobs_are_stamped_as_well_as_one() -> None:
    canvas = blank_canvas(np.random.default_rng(6), side_px=300, mpp=0.5)
    canvas.stamp_holes(blobs([(75, 75)] * 500, half_um=(20, 20), angle=0))  # more than one batch
    assert canvas.holes_HW.sum() * 0.25 == pytest.approx(np.pi * 20**2, rel=0.15)
