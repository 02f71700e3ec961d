"""Tumours of both kinds are drawn on whole slides here, so that only their growth can tell them apart."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import structure_tensor
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histo_ssl.drawing.layout import Layout, Tissue, draw_flow
from histo_ssl.drawing.painting import LOOKS, TUMOUR_MEAN, Painting, paint
from histo_ssl.drawing.scanning import scan, site_stain

TILE_PX, MARGIN_PX = 128, 32


def painted(tissue: Tissue, *, seed: int, side_um: float = 288) -> tuple[Layout, Painting]:
    """A slide of one tissue from edge to edge, at 0.5 um/px."""
    rng = np.random.default_rng(seed)
    side = round(side_um / 4)
    layout = Layout(
        side_um=side_um,
        labels_HW=np.full((side, side), tissue, dtype=np.uint8),
        outline_HW=np.ones((side, side), dtype=np.float32),
        flow=draw_flow(rng, side, pitch_um=4.0),
    )
    return layout, paint(layout, mpp=0.5, rng=rng)


@dataclass
class TumourTiles:
    tiles: NDArray[np.uint8]  # (N, 128, 128, 3)
    is_ilc: NDArray[np.bool_]
    is_train: NDArray[np.bool_]  # other slides than the rest


@pytest.fixture(scope="module")
def tumour_tiles() -> TumourTiles:
    """16 tiles of each of 8 slides, half of them IDC, all stained at one site."""
    stain, tiles = site_stain(np.random.default_rng(0), shift=1.0), []
    for n in range(8):
        tissue = (Tissue.TUMOUR_NESTS, Tissue.SINGLE_FILES)[n % 2]
        slide = scan(painted(tissue, seed=50 + n)[1], stain, np.random.default_rng(n), ink_HW=None)
        inner = slide[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
        tiles.append(inner.reshape(4, TILE_PX, 4, TILE_PX, 3).swapaxes(1, 2).reshape(16, TILE_PX, TILE_PX, 3))
    slide_of_tile = np.repeat(np.arange(8), 16)
    return TumourTiles(np.concatenate(tiles), slide_of_tile % 2 == 1, slide_of_tile < 4)


def auc(features, data: TumourTiles) -> float:
    """AUC of a logistic regression on slides that it has not seen, both halves in turn."""
    scores = []
    for train in (data.is_train, ~data.is_train):
        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(features[train], data.is_ilc[train])
        scores.append(roc_auc_score(data.is_ilc[~train], model.decision_function(features[~train])))
    return float(np.mean(scores))


def test_the_colour_of_a_tile_does_not_give_its_class_away(tumour_tiles: TumourTiles) -> None:
    colour = tumour_tiles.tiles.mean(axis=(1, 2))
    # SD of an AUC at chance with 32 against 32 tiles is 0.07, of the mean of two 0.05
    assert auc(colour, tumour_tiles) == pytest.approx(0.5, abs=0.12)


def test_both_classes_have_the_same_mean_colour_at_one_site(tumour_tiles: TumourTiles) -> None:
    idc, ilc = (
        tumour_tiles.tiles[tumour_tiles.is_ilc == which].mean(axis=(0, 1, 2)) for which in (False, True)
    )
    assert np.abs(idc - ilc).max() < 2.5  # grey levels; the SD between tiles is 12


def test_the_texture_of_a_tile_gives_its_class_away(tumour_tiles: TumourTiles) -> None:
    red = np.log(tumour_tiles.tiles[..., 0] + 1.0)  # where haematoxylin absorbs and eosin hardly
    coarse = [ndimage.gaussian_filter(red, (0, sigma, sigma)).std(axis=(1, 2)) for sigma in (2, 4, 8, 16)]
    assert auc(np.stack(coarse, axis=1), tumour_tiles) > 0.8  # four numbers from 64 tiles go this far


@pytest.mark.parametrize("tissue", [Tissue.TUMOUR_NESTS, Tissue.SINGLE_FILES])
def test_a_tumour_has_the_mean_stains_of_every_tumour(tissue: Tissue) -> None:
    painting = painted(tissue, seed=1)[1]
    assert painting.haematoxylin_HW.mean() == pytest.approx(TUMOUR_MEAN.haematoxylin, rel=1e-3)
    assert painting.eosin_HW.mean() == pytest.approx(TUMOUR_MEAN.eosin, rel=1e-3)


def test_equal_generators_paint_equal_slides_and_others_do_not() -> None:
    first, again, other = (painted(Tissue.STROMA, seed=s, side_um=128)[1].eosin_HW for s in (3, 3, 4))
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 0.05


def coherence(painting: Painting) -> float:
    """How much of the structure has one direction, 0-1, from the structure tensor at 8 um."""
    rr, rc, cc = structure_tensor(painting.eosin_HW, sigma=16)
    return float((np.hypot(rr - cc, 2 * rc) / (rr + cc)).mean())


def test_stroma_has_a_direction_and_necrosis_has_none() -> None:
    assert coherence(painted(Tissue.STROMA, seed=1)[1]) > 0.6
    assert coherence(painted(Tissue.NECROSIS, seed=1)[1]) < 0.2


def test_streaks_of_stroma_run_along_its_fibres() -> None:
    layout, painting = painted(Tissue.STROMA, seed=2)
    rr, rc, cc = structure_tensor(painting.eosin_HW, sigma=16)
    along = 0.5 * np.arctan2(2 * rc, cc - rr) + np.pi / 2  # at right angles to the strongest gradient
    places_um = np.random.default_rng(0).uniform(40, 248, (400, 2)).astype(np.float32)
    column, row = (places_um / 0.5).astype(int).T
    assert (np.cos(along[row, column] - layout.flow.angles(places_um)) ** 2).mean() > 0.9


def test_fat_is_mostly_empty_and_its_walls_are_not() -> None:
    painting = painted(Tissue.FAT, seed=1)[1]
    assert 0.80 < (painting.eosin_HW < 0.02).mean() < 0.95
    walls = painting.eosin_HW[painting.eosin_HW > 0.25]
    assert np.median(walls) == pytest.approx(LOOKS[Tissue.FAT].eosin, rel=0.25)


def test_each_tissue_has_its_share_of_nuclei() -> None:
    share = {t: float(painted(t, seed=1)[1].nuclei_HW.mean()) for t in Tissue if t is not Tissue.GLASS}
    assert share[Tissue.LYMPHOCYTES] > 0.3
    assert share[Tissue.SINGLE_FILES] == pytest.approx(share[Tissue.TUMOUR_NESTS], rel=0.1)
    assert 0.02 < share[Tissue.STROMA] < 0.08
    assert share[Tissue.FAT] == 0
    assert share[Tissue.MUCUS] < 0.02
    assert share[Tissue.GLANDS] > 2 * share[Tissue.STROMA]
