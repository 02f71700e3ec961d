import numpy as np
import pytest
from scipy import special

from histo_ssl.drawing.layout import resized
from histo_ssl.drawing.textures import FIBRE_SHAPE, GRAIN_PX, tiled
from histo_ssl.drawing.windows import WINDOW_PX, Stretched, logistic, windows


def test_windows_cover_each_pixel_once() -> None:
    covered = np.zeros((300, 130), dtype=int)
    for window in windows(covered.shape):
        covered[window] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("shape", [(600, 333), (128, 129), (50, 40)])  # the last is smaller than the field
def test_a_field_made_by_windows_is_the_one_that_pillow_makes_at_once(shape: tuple[int, int]) -> None:
    coarse = np.random.default_rng(0).standard_normal((2, 75, 41), dtype=np.float32)
    stretched, found = Stretched(coarse, shape), np.empty((2, *shape), dtype=np.float32)
    for window in windows(shape):
        found[:, *window] = stretched.at(window)
    expected = [resized(field, shape) for field in coarse]
    assert np.abs(found - expected).max() < 1e-5


def test_a_window_depends_on_its_part_of_the_field_alone() -> None:
    coarse = np.random.default_rng(0).standard_normal((75, 75), dtype=np.float32)
    window = list(windows((600, 600)))[6]
    before = Stretched(coarse, (600, 600)).at(window)
    part = Stretched(coarse, (600, 600)).part(window)
    rest = coarse.copy()
    rest[~np.isin(rest, part)] = 1e6
    assert np.array_equal(Stretched(rest, (600, 600)).at(window), before)
    assert part.shape == (20, 20)  # 128 px are 16 of 75, and a cubic reaches 2 further on either side


def test_noise_in_a_window_is_what_numpy_tiles() -> None:
    noise = np.random.default_rng(0).standard_normal((GRAIN_PX, GRAIN_PX), dtype=np.float32)
    shape = (GRAIN_PX + 200, 2 * GRAIN_PX)
    expected = np.tile(noise, (2, 2))[: shape[0], : shape[1]]
    for window in windows(shape):
        assert np.array_equal(tiled(noise, window), expected[window])


def test_periods_are_what_windows_and_masks_of_bits_need() -> None:
    assert GRAIN_PX % WINDOW_PX == 0
    assert all(side & (side - 1) == 0 for side in FIBRE_SHAPE)


def test_the_logistic_curve_is_scipys() -> None:
    x = np.linspace(-200, 200, 4001, dtype=np.float32)
    assert np.abs(logistic(x) - special.expit(x)).max() < 2e-7
