"""Percentiles and mixtures of planes are numpy's."""

import numpy as np
import pytest
import torch

from histo_ssl.stain.optics import darkest_glass, eight_bit, log_light, mixed, upper_quantile


@pytest.mark.parametrize("share", [0.0, 0.01, 0.037, 0.5, 1.0])
def test_the_value_that_a_share_exceeds_is_numpys_percentile_of_the_chosen_pixels(share: float) -> None:
    noise = torch.Generator().manual_seed(0)
    x_BP = torch.randn(4, 500, generator=noise)
    is_in_BP = torch.rand(4, 500, generator=noise) < torch.tensor([[1.0], [0.5], [0.1], [0.0]])
    is_in_BP[3, 7] = True  # a single pixel is every percentile
    found = upper_quantile(x_BP, is_in_BP, share=share)
    rows = zip(x_BP.double().numpy(), is_in_BP.numpy(), strict=True)
    expected = [np.quantile(x[is_in], 1 - share) for x, is_in in rows]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_planes_are_mixed_as_by_a_matrix_product() -> None:
    noise = torch.Generator().manual_seed(0)
    planes_B3P, by_BK3 = torch.randn(2, 3, 50, generator=noise), torch.randn(2, 2, 3, generator=noise)
    torch.testing.assert_close(mixed(planes_B3P, by_BK3), by_BK3 @ planes_B3P)


def test_values_of_8_bits_come_back_from_their_logarithms_and_black_is_one() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(eight_bit(log_light(values).exp_()), values.clamp(min=1))
    assert darkest_glass(white=240.0, min_density=0.15) == pytest.approx(240 / 1.161834)  # e^0.15
