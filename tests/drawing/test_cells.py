import numpy as np
import pytest
from scipy import spatial

from histo_ssl.drawing import cells
from histo_ssl.drawing.layout import Floats, Layout, Tissue, draw_flow


def uniform_layout(tissue: Tissue, *, seed: int, side_um: float = 512) -> Layout:
    side = round(side_um / 4)
    return Layout(
        side_um=side_um,
        labels_HW=np.full((side, side), tissue, dtype=np.uint8),
        outline_HW=np.ones((side, side), dtype=np.float32),
        flow=draw_flow(np.random.default_rng(seed), side, pitch_um=side_um / side),
    )


def alignment(xy_um: Floats, layout: Layout) -> float:
    """Mean of cos^2 between the fibre and the way to the nearest neighbour: 0.5 without any alignment."""
    nearest = spatial.KDTree(xy_um).query(xy_um, k=2)[1][:, 1]
    way = xy_um[nearest] - xy_um
    return float((np.cos(np.arctan2(way[:, 1], way[:, 0]) - layout.flow.angles(xy_um)) ** 2).mean())


@pytest.mark.parametrize(
    ("tissue", "places"), [(Tissue.TUMOUR_NESTS, cells.nests), (Tissue.SINGLE_FILES, cells.files)]
)
def test_both_tumours_have_the_same_number_of_cells(tissue: Tissue, places) -> None:
    layout = uniform_layout(tissue, seed=0)
    xy_um = places(layout, np.random.default_rng(1))
    assert len(xy_um) == round(4300 * 0.512**2)
    assert (layout.tissue(xy_um) == tissue).all()


def test_files_follow_the_fibres_and_nests_do_not() -> None:
    files, nests = (uniform_layout(t, seed=3) for t in (Tissue.SINGLE_FILES, Tissue.TUMOUR_NESTS))
    assert alignment(cells.files(files, np.random.default_rng(1)), files) > 0.9
    assert alignment(cells.nests(nests, np.random.default_rng(1)), nests) == pytest.approx(0.5, abs=0.08)


def test_cells_of_nests_have_more_neighbours_within_two_cells_than_cells_of_files() -> None:
    neighbours = {}
    for tissue, places in ((Tissue.TUMOUR_NESTS, cells.nests), (Tissue.SINGLE_FILES, cells.files)):
        tree = spatial.KDTree(places(uniform_layout(tissue, seed=3), np.random.default_rng(1)))
        neighbours[tissue] = (tree.count_neighbors(tree, 16) - tree.n) / tree.n
    assert neighbours[Tissue.TUMOUR_NESTS] > 1.25 * neighbours[Tissue.SINGLE_FILES]


def test_nuclei_of_a_gland_lie_on_its_ring_and_point_to_its_middle() -> None:
    turn, half_um = 0.7, np.float32([[36, 28]])
    gland = cells.Blobs(xy_um=np.float32([[100, 80]]), half_um=half_um, angle=np.float32([turn]))
    ring = cells.gland_nuclei(gland, np.random.default_rng(0))
    offset = ring.xy_um - [100, 80]
    along = offset[:, 0] * np.cos(turn) + offset[:, 1] * np.sin(turn)
    across = offset[:, 1] * np.cos(turn) - offset[:, 0] * np.sin(turn)
    radius = np.hypot(along / 36, across / 28)
    assert len(radius) == round(2 * np.pi * cells.GLAND_RING * 32 / cells.GLAND_NUCLEUS_UM)
    assert radius.mean() == pytest.approx(cells.GLAND_RING, abs=0.02)
    pointing = np.stack([np.cos(ring.angle), np.sin(ring.angle)], axis=1)
    assert np.abs((pointing * offset).sum(axis=1)) == pytest.approx(np.linalg.norm(offset, axis=1), rel=1e-4)


def test_nuclei_have_the_sizes_of_their_kind() -> None:
    blobs = cells.nuclei(
        cells.LYMPHOCYTE, np.zeros((4000, 2), np.float32), np.zeros(4000), np.random.default_rng(0)
    )
    assert np.median(2 * blobs.half_um, axis=0) == pytest.approx([6.8, 6.2], rel=0.01)
    assert np.log(blobs.half_um).std(axis=0) == pytest.approx([0.07, 0.07], rel=0.05)
