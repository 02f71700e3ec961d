import numpy as np
import pytest
from skimage.color import rgb_from_hed

from histo_ssl.drawing.painting import Painting
from histo_ssl.drawing.scanning import (
    DARK_CORNERS,
    EOSIN,
    HAEMATOXYLIN,
    SENSOR_SD,
    Stain,
    fold,
    pen_mark,
    scan,
    sensor_noise,
    site_stain,
)

SIDE_PX = 256


def flat(haematoxylin: float, eosin: float) -> Painting:
    full = np.ones((SIDE_PX, SIDE_PX), dtype=np.float32)
    return Painting(
        haematoxylin_HW=haematoxylin * full, eosin_HW=eosin * full, nuclei_HW=np.zeros(full.shape, dtype=bool)
    )


def stains(n: int, *, shift: float) -> list[Stain]:
    return [site_stain(np.random.default_rng([1, site]), shift=shift) for site in range(n)]


def test_colours_follow_beer_and_lambert() -> None:
    (stain,) = stains(1, shift=1.0)
    rgb = scan(flat(0.4, 0.3), stain, np.random.default_rng(0), ink_HW=None)
    middle = rgb[120:136, 120:136].mean(axis=(0, 1))  # where the lamp is brightest
    expected = [
        white * np.exp(-(h * 0.4 + e * 0.3))
        for white, h, e in zip(stain.white_C, stain.haematoxylin_C, stain.eosin_C, strict=True)
    ]
    assert middle == pytest.approx(expected, abs=0.5)  # noise of 1.1 over 256 px, and rounding
    assert rgb[0, 0].mean() == pytest.approx(np.mean(expected) * (1 - DARK_CORNERS), abs=4)


def test_without_shift_all_sites_stain_alike_and_nearly_as_skimage_has_it() -> None:
    first, second = stains(2, shift=0.0)
    assert np.array_equal(first.haematoxylin_C, second.haematoxylin_C)
    assert np.array_equal(first.white_C, second.white_C)
    theirs = rgb_from_hed[:2] / np.linalg.norm(rgb_from_hed[:2], axis=1, keepdims=True)
    assert first.haematoxylin_C @ theirs[0] > 0.999
    assert first.eosin_C @ theirs[1] > 0.93  # ours is paler in green: see EOSIN
    assert np.linalg.norm([HAEMATOXYLIN, EOSIN], axis=1) == pytest.approx([1, 1], abs=0.01)


def test_sites_differ_in_colour() -> None:
    colours = [
        scan(flat(0.3, 0.5), stain, np.random.default_rng(0), ink_HW=None).mean(axis=(0, 1))
        for stain in stains(6, shift=1.0)
    ]
    distance = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert np.median(distance) > 10  # grey levels; slides of one site differ by about 5


def test_slides_of_one_site_differ_less_than_sites() -> None:
    (stain,) = stains(1, shift=1.0)
    strength = [np.linalg.norm(stain.batch(np.random.default_rng(n)).eosin_C) for n in range(400)]
    assert np.std(np.log(strength)) == pytest.approx(0.05, rel=0.15)


def test_a_fold_doubles_the_tissue_in_a_band_and_leaves_the_rest() -> None:
    before = flat(0.4, 0.3)
    after = fold(before, np.random.default_rng(0), mpp=4.0)
    ratio = after.eosin_HW / before.eosin_HW
    assert 0.01 < (ratio > 1.9).mean() < 0.08
    assert (ratio < 1.05).mean() > 0.85
    assert ratio.max() == pytest.approx(2, abs=0.01)
    assert np.allclose(after.haematoxylin_HW / before.haematoxylin_HW, ratio, atol=1e-5)


def test_a_pen_mark_covers_a_stripe_and_darkens_all_colours_it_should() -> None:
    ink = pen_mark(np.random.default_rng(3), side_px=SIDE_PX, mpp=0.5)
    assert 0.02 < (ink > 0.5).mean() < 0.12
    (stain,) = stains(1, shift=0.0)
    rgb = scan(flat(0, 0), stain, np.random.default_rng(0), ink_HW=ink)
    assert rgb[ink > 0.7][:, 0].mean() < 60  # every ink absorbs red
    assert rgb[ink < 0.01].mean() > 230


def test_the_sensors_noise_is_normal() -> None:
    noise = sensor_noise(np.random.default_rng(0), (500, 400))
    assert noise.mean() == pytest.approx(0, abs=0.01)  # SD of the mean: 1.1 / sqrt(200,000) = 0.0025
    assert noise.std() == pytest.approx(SENSOR_SD, rel=0.01)
    assert (np.abs(noise) < SENSOR_SD).mean() == pytest.approx(0.683, abs=0.01)
