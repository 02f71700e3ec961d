"""Reinhard's normalisation against a loop from the paper, and what must not change its result."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from histo_ssl.stain.base import restained
from histo_ssl.stain.reinhard import OPPONENTS, Reinhard

from .conftest import amounts, light, stained_tile

Make = Callable[..., Reinhard]
Floats = NDArray[np.float64]
RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])


def _lab(value: NDArray[np.float64]) -> Floats:
    """The channels of one pixel, as the paper writes them."""
    long, medium, short = np.log(RGB_TO_LMS @ np.maximum(value, 1))
    return np.array(
        [
            (long + medium + short) / np.sqrt(3),
            (long + medium - 2 * short) / np.sqrt(6),
            (long - medium) / np.sqrt(2),
        ]
    )


def _rgb(lab: Floats) -> Floats:
    """The inverse, by a solver."""
    log_lms = np.linalg.solve(np.array(OPPONENTS), lab)
    rgb: Floats = np.linalg.solve(RGB_TO_LMS, np.exp(log_lms)).clip(0, 255)
    return rgb


def _from_the_paper(tile: NDArray[np.uint8], spec: Reinhard) -> Floats:
    """One tile (S, S, 3), pixel by pixel; values before rounding."""
    pixels = tile.reshape(-1, 3).astype(float)
    is_tissue = -np.log(np.maximum(pixels, 1) / spec.white).min(axis=1) > -np.inf
    is_tissue &= -np.log(np.maximum(pixels.min(axis=1), 1) / spec.white) >= spec.min_density
    lab = np.array([_lab(pixel) for pixel in pixels[is_tissue]])
    moved = (lab - lab.mean(axis=0)) / lab.std(axis=0) * np.array(spec.sds) + np.array(spec.means)
    pixels[is_tissue] = [_rgb(pixel) for pixel in moved]
    return pixels.reshape(tile.shape)


def test_a_tile_comes_out_as_from_a_loop_over_the_paper(normaliser: Make) -> None:
    spec, tile = normaliser("reinhard"), stained_tile(32)
    tile[..., :8] = 238
    made = restained(spec, tile)
    assert not made.is_left_B.any()
    expected = _from_the_paper(tile[0].permute(1, 2, 0).numpy(), spec)
    # half a level for the rounding, the rest for 32-bit logarithms
    np.testing.assert_allclose(made.tiles[0].permute(1, 2, 0).numpy(), expected, rtol=0, atol=0.51)


def test_the_tissue_has_the_mean_and_sd_of_the_target_afterwards(normaliser: Make) -> None:
    spec = normaliser("reinhard", sds="[0.1,0.03,0.01]")  # so that no value is cut off at 0 or 255
    made = restained(spec, stained_tile(64)).tiles.flatten(2)
    assert 0 < made.min() <= made.max() < 255
    again = spec.fitted(made)
    np.testing.assert_allclose(again.means, spec.means, rtol=0, atol=2e-3)  # values of 8 bits
    np.testing.assert_allclose(again.sds, spec.sds, rtol=0.02)


def test_a_tile_like_the_target_stays_itself(normaliser: Make) -> None:
    tile = stained_tile(64)
    assert torch.equal(restained(normaliser("reinhard").fitted(tile.flatten(2)), tile).tiles, tile)


@pytest.mark.parametrize("factor", [0.7, 1.05])
def test_the_brightness_of_the_lamp_changes_nothing(normaliser: Make, factor: float) -> None:
    spec, values = normaliser("reinhard"), light(amounts(64))  # all of it is tissue, under both lamps
    difference = spec(factor * values).tiles.int() - spec(values).tiles.int()
    assert difference.abs().max() <= 1  # 1e-6 of a value that lies between two levels
    assert (difference != 0).double().mean() < 0.001


def test_glass_beside_the_tissue_changes_nothing_of_it_and_stays(normaliser: Make) -> None:
    spec, tile = normaliser("reinhard"), stained_tile(64)
    beside = torch.cat([tile, torch.full_like(tile, 238)], dim=3)
    made = restained(spec, beside).tiles
    assert torch.equal(made[..., :64], restained(spec, tile).tiles)
    assert (made[..., 64:] == 238).all()


@pytest.mark.parametrize("value", [0, 120, 238, 255])
def test_a_tile_of_one_colour_stays_bit_for_bit(normaliser: Make, value: int) -> None:
    tile = torch.full((1, 3, 64, 64), value, dtype=torch.uint8)
    made = restained(normaliser("reinhard"), tile)
    assert made.is_left_B.tolist() == [True]
    assert torch.equal(made.tiles, tile)
