from collections import Counter

import numpy as np
import pytest

from histo_ssl.drawing.layout import (
    BENIGN_SHARES,
    Tissue,
    draw_flow,
    draw_layout,
    hexagonal,
    periodic_noise,
    raster_places,
    region_tissues,
    smooth_noise,
)


@pytest.mark.parametrize("seed", range(3))
def test_places_is_the_inverse_of_at(seed: int) -> None:
    rng = np.random.default_rng(seed)
    flow = draw_flow(rng, 200, pitch_um=4.0)
    xy_um = rng.uniform(100, 700, (500, 2)).astype(np.float32)
    back_um = flow.places(flow.at(xy_um))
    assert np.abs(back_um - xy_um).max() < 0.1  # a tenth of a um: a fifth of a pixel of a 20x scan


def test_a_step_along_the_fibre_does_not_cross_it() -> None:
    rng = np.random.default_rng(0)
    flow = draw_flow(rng, 200, pitch_um=4.0)
    xy_um = rng.uniform(100, 700, (500, 2)).astype(np.float32)
    angle = flow.angles(xy_um)
    step_um = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    (du, dv) = (flow.at(xy_um + step_um) - flow.at(xy_um)).T
    assert np.abs(dv).mean() < 0.05 * np.abs(du).mean()


def test_periodic_noise_has_unit_sd_and_fits_itself_at_its_edges() -> None:
    noise = periodic_noise(np.random.default_rng(0), (256, 128), sigma_px=(3, 6))
    assert noise.mean() == pytest.approx(0, abs=1e-5)
    assert noise.std() == pytest.approx(1, abs=1e-5)
    inner = np.abs(np.diff(noise, axis=0)).mean()
    seam = np.abs(noise[0] - noise[-1]).mean()
    assert seam == pytest.approx(inner, rel=0.35)  # 128 columns, 20 of them independent


def test_periodic_noise_has_the_correlation_of_a_gaussian_blur() -> None:
    noise = periodic_noise(np.random.default_rng(1), (512, 512), sigma_px=(4, 4))
    # white noise blurred by sigma correlates as exp(-d^2 / (4 sigma^2)) over a distance d
    correlation = (noise * np.roll(noise, 8, axis=1)).mean()
    assert correlation == pytest.approx(np.exp(-1), abs=0.05)


def test_smooth_noise_keeps_its_coarse_grid_and_changes_little_from_pixel_to_pixel() -> None:
    noise = smooth_noise(np.random.default_rng(0), (400, 400), period_px=40)
    assert np.abs(np.diff(noise, axis=1)).max() < 0.3  # SD 0.8 over 40 px
    assert 0.5 < noise.std() < 1.1


def test_hexagonal_places_have_the_density_of_their_spacing() -> None:
    points = hexagonal(np.random.default_rng(0), side_um=1000, spacing_um=20, jitter=0.1)
    inner = points[((points > 100) & (points < 900)).all(axis=1)]
    expected = 800 * 800 / (20 * 20 * np.sqrt(3) / 2)
    assert len(inner) == pytest.approx(expected, rel=0.03)


def test_regions_take_their_shares_and_the_tumour_takes_the_rest() -> None:
    counts = Counter(region_tissues(np.random.default_rng(0), 100, Tissue.SINGLE_FILES).tolist())
    expected = {int(tissue): round(100 * share) for tissue, share in BENIGN_SHARES.items()}
    assert counts == {**expected, int(Tissue.SINGLE_FILES): 30}


@pytest.mark.parametrize("n_regions", [1, 2, 5])
def test_a_slide_of_few_regions_still_has_its_tumour(n_regions: int) -> None:
    tissues = region_tissues(np.random.default_rng(0), n_regions, Tissue.TUMOUR_NESTS)
    assert len(tissues) == n_regions
    assert Tissue.TUMOUR_NESTS in tissues


def test_a_default_slide_holds_every_tissue_of_its_class_and_about_half_glass() -> None:
    glass = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        layout = draw_layout(rng, side_um=1250, region_um=230, tumour=Tissue.TUMOUR_NESTS)
        assert set(np.unique(layout.labels_HW)) == set(Tissue) - {Tissue.SINGLE_FILES}
        glass.append((layout.labels_HW == Tissue.GLASS).mean())
        assert np.array_equal(layout.labels_HW > 0, layout.outline_HW > 0)
    assert 0.25 < np.mean(glass) < 0.55


def test_the_tissue_of_a_place_is_its_pixel_in_the_label_raster_and_glass_outside() -> None:
    layout = draw_layout(np.random.default_rng(2), side_um=402, region_um=120, tumour=Tissue.SINGLE_FILES)
    places_um = raster_places(len(layout.labels_HW), pitch_um=layout.pitch_um)
    assert np.array_equal(layout.tissue(places_um), layout.labels_HW.ravel())
    assert layout.tissue(np.float32([[-1, 5], [5, 402.5]])).tolist() == [0, 0]
