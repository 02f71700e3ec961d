"""Macenko's normalisation against a loop from the paper, and against mixtures of which all is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from histo_ssl.stain.base import restained
from histo_ssl.stain.macenko import Macenko

from .conftest import DYES, LARGEST, WHITE, amounts, light, stained_tile

Make = Callable[..., Macenko]
Floats = NDArray[np.float64]


def _from_the_paper(tile: NDArray[np.uint8], spec: Macenko) -> Floats:
    """Macenko et al., ISBI 2009, section 2, one tile (S, S, 3) in plain numpy; values before rounding."""
    density = -np.log(np.maximum(tile.reshape(-1, 3).astype(float), 1) / spec.white)
    tissue = density[(density >= spec.min_density).all(axis=1)]
    _, _, directions = np.linalg.svd(tissue, full_matrices=False)
    plane = directions[:2] * np.array([[np.sign(directions[0].sum())], [1.0]])
    angles = [np.arctan2(plane[1] @ pixel, plane[0] @ pixel) for pixel in tissue]
    percentiles = 100 * spec.angle_tail, 100 * (1 - spec.angle_tail)
    dyes = [np.cos(a) * plane[0] + np.sin(a) * plane[1] for a in np.percentile(angles, percentiles)]
    dyes = np.array(sorted(dyes, key=lambda dye: -dye[0])).T
    largest = np.percentile(
        np.linalg.lstsq(dyes, tissue.T, rcond=None)[0], 100 * (1 - spec.amount_tail), axis=1
    )
    amount = np.linalg.lstsq(dyes, density.T, rcond=None)[0] * (np.array(spec.amounts) / largest)[:, None]
    values: Floats = spec.white * np.exp(-(np.array(spec.dyes).T @ amount))
    return values.T.reshape(tile.shape).clip(0, 255)


def _noisy_tile(seed: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    tile = stained_tile(48, seed=seed).float()
    tile[..., :16] = 238.0
    return (tile + 4 * torch.randn(tile.shape, generator=noise)).clamp(0, 255).round().to(torch.uint8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tile_comes_out_as_from_a_loop_over_the_paper(normaliser: Make, seed: int) -> None:
    spec, tile = normaliser("macenko"), _noisy_tile(seed)
    made = restained(spec, tile)
    assert not made.is_left_B.any()
    expected = _from_the_paper(tile[0].permute(1, 2, 0).numpy(), spec)
    # half a level for the rounding, the rest for 32-bit densities
    np.testing.assert_allclose(made.tiles[0].permute(1, 2, 0).numpy(), expected, rtol=0, atol=0.51)


def test_the_dyes_and_amounts_of_a_mixture_are_found(normaliser: Make) -> None:
    amount_2P = amounts(64)
    found = normaliser("macenko").measure(light(amount_2P))
    assert found.is_found_B.item()
    torch.testing.assert_close(found.dyes_B23[0], DYES, rtol=0, atol=1e-5)  # float32 densities
    torch.testing.assert_close(found.amount_B2[0].tolist(), list(LARGEST), rtol=0, atol=1e-5)
    unmixed = found.unmix_B23[0] @ found.density_B3P[0].double()
    torch.testing.assert_close(unmixed, amount_2P, rtol=0, atol=1e-5)


def test_a_mixture_comes_out_in_the_dyes_and_amounts_of_the_target(normaliser: Make) -> None:
    spec, amount_2P = normaliser("macenko"), amounts(64)
    gain = torch.tensor(spec.amounts).double() / torch.tensor(LARGEST).double()
    expected = light(gain[:, None] * amount_2P, dyes=torch.tensor(spec.dyes).double())
    made = restained(spec, stained_tile(64)).tiles.flatten(2)
    # an input rounded to 8 bits tells the dyes to some 0.5 / 50 of a density
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=2.0)


def test_a_tile_like_the_target_stays_itself_within_rounding(normaliser: Make) -> None:
    tile = stained_tile(64)
    spec = normaliser("macenko").fitted(tile.flatten(2))
    difference = restained(spec, tile).tiles.int() - tile.int()
    assert difference.abs().max() <= 1
    assert (difference != 0).double().mean() < 0.05


@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_a_thicker_section_and_another_lamp_come_out_the_same(normaliser: Make, factor: float) -> None:
    amount_2P = amounts(64)
    spec = normaliser("macenko", min_density=0.05)  # below every pixel of either
    expected = spec(light(amount_2P)).tiles.int()
    thick = spec(light(factor * amount_2P)).tiles.int()
    assert (thick - expected).abs().max() <= 1  # 1e-6 of a value that lies between two levels
    lamp = normaliser("macenko", min_density=0.05, white=factor * WHITE)
    found = lamp.measure(light(amount_2P, white=factor * WHITE))
    torch.testing.assert_close(found.dyes_B23[0], DYES, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.amount_B2[0].tolist(), list(LARGEST), rtol=0, atol=1e-5)


def test_glass_beside_the_tissue_changes_nothing_of_it(normaliser: Make) -> None:
    spec, tile = normaliser("macenko"), stained_tile(64)
    beside = torch.cat([tile, torch.full_like(tile, 238)], dim=3)
    made = restained(spec, beside).tiles
    assert torch.equal(made[..., :64], restained(spec, tile).tiles)
    assert (made[..., 64:] >= 235).all()


def _dyes_apart(degrees: float) -> torch.Tensor:
    """Two dyes around the middle of ours, so far apart."""
    middle = DYES.mean(0) / DYES.mean(0).norm()
    across = DYES[0] - (DYES[0] @ middle) * middle
    turn = torch.tensor([degrees / 2, -degrees / 2]).double().deg2rad()[:, None]
    return turn.cos() * middle + turn.sin() * across / across.norm()


DEGENERATE: dict[str, Any] = {
    "glass": torch.full((1, 3, 64, 64), 244, dtype=torch.uint8),
    "black": torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    "white": torch.full((1, 3, 64, 64), 255, dtype=torch.uint8),
    "one dye": stained_tile(64, dyes=DYES[[0, 0]]),
    "dyes 5 degrees apart": stained_tile(64, dyes=_dyes_apart(5.0)),
    "a grey scan": stained_tile(64).float().mean(1, keepdim=True).expand(1, 3, 64, 64).to(torch.uint8),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_tile_whose_dyes_cannot_be_told_stays_bit_for_bit(normaliser: Make, name: str) -> None:
    tile = DEGENERATE[name]
    made = restained(normaliser("macenko"), tile)
    assert made.is_left_B.tolist() == [True]
    assert torch.equal(made.tiles, tile)


@pytest.mark.parametrize(("degrees", "is_left"), [(7.0, True), (9.0, False)])
def test_dyes_count_as_two_from_the_stated_angle_on(normaliser: Make, degrees: float, is_left: bool) -> None:
    tile = light(amounts(64), dyes=_dyes_apart(degrees))
    assert normaliser("macenko")(tile).is_left_B.item() is is_left


@pytest.mark.parametrize(("n_columns", "is_left"), [(3, True), (4, False)])
def test_tissue_counts_from_the_stated_share_on(normaliser: Make, n_columns: int, is_left: bool) -> None:
    tile = torch.full((1, 3, 64, 64), 240, dtype=torch.uint8)
    pixels = stained_tile(64).flatten(2)[..., :: 64 // n_columns][..., : 64 * n_columns]
    tile[..., :n_columns] = pixels.reshape(1, 3, 64, n_columns)
    made = restained(normaliser("macenko"), tile)  # 0.05 of 64 columns are 3.2
    assert made.is_left_B.item() is is_left
    assert torch.equal(made.tiles, tile) is is_left


@pytest.mark.parametrize(("max_gain", "is_left"), [(1.2, True), (1.3, False)])
def test_no_dye_is_multiplied_by_more_than_the_stated_gain(
    normaliser: Make, max_gain: float, is_left: bool
) -> None:
    made = restained(normaliser("macenko", max_gain=max_gain), stained_tile(64))
    assert made.is_left_B.item() is is_left  # 1.9705 / 1.6 = 1.232
