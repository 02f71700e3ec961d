"""Numbers of a cloud of embeddings, against closed forms and loops from the papers' formulas."""

import math
from itertools import combinations

import pytest
import torch

from histo_ssl.tasks.cloud import alignment, feature_sd, uniformity


def test_a_cloud_in_one_point_is_not_uniform_at_all_and_has_no_spread() -> None:
    same_ND = torch.tensor([[3.0, 4.0]]).repeat(5, 1)
    assert uniformity(same_ND).item() == pytest.approx(0.0, abs=1e-6)
    assert feature_sd(same_ND).item() == pytest.approx(0.0, abs=1e-6)
    assert alignment(same_ND, 7 * same_ND).item() == pytest.approx(0.0, abs=1e-6)


def test_opposite_points_are_2_apart() -> None:
    z_ND = torch.tensor([[1.0, 0.0], [-5.0, 0.0]])
    assert uniformity(z_ND).item() == pytest.approx(-2 * 2**2)
    assert alignment(z_ND, -z_ND).item() == pytest.approx(4.0)
    # per feature: SD 1 along the first, 0 along the second, times sqrt(2)
    assert feature_sd(z_ND).item() == pytest.approx(0.5 * math.sqrt(2))


def test_uniformity_and_alignment_are_the_papers_means_over_pairs() -> None:
    g = torch.Generator().manual_seed(0)
    a_ND, b_ND = torch.randn(7, 3, generator=g), torch.randn(7, 3, generator=g)
    a, b = ([row / row.norm() for row in z] for z in (a_ND.double(), b_ND.double()))
    kernel = [math.exp(-2 * (x - y).norm().item() ** 2) for x, y in combinations(a, 2)]
    assert uniformity(a_ND).item() == pytest.approx(math.log(sum(kernel) / 21), abs=1e-6)
    squared = [(x - y).norm().item() ** 2 for x, y in zip(a, b, strict=True)]
    assert alignment(a_ND, b_ND).item() == pytest.approx(sum(squared) / 7, abs=1e-6)


def test_an_even_cloud_in_many_dimensions_is_near_its_limits() -> None:
    z_ND = torch.randn(2000, 256, generator=torch.Generator().manual_seed(0))
    # distances of random directions are sqrt(2) up to some 1 / sqrt(D)
    assert uniformity(z_ND).item() == pytest.approx(-4.0, abs=0.05)
    assert feature_sd(z_ND).item() == pytest.approx(1.0, abs=0.01)
    assert alignment(z_ND[:1000], z_ND[1000:]).item() == pytest.approx(2.0, abs=0.02)
