import numpy as np
import torch
from skimage.color import hed2rgb, rgb2hed, rgb_from_hed
from torch import Tensor

from histo_ssl.views.stain import DYES, stain_jitter

SKIMAGE_UNIT = 6.0  # skimage divides optical densities by that of its darkest value, -log10(1e-6)


def test_dyes_are_ruifroks_as_in_skimage() -> None:
    assert np.array_equal(np.array(DYES), rgb_from_hed)


def test_jitter_equals_a_loop_over_skimage_where_no_amount_is_negative() -> None:
    random = np.random.default_rng(0)
    images = [hed2rgb(random.uniform(0.01, 0.06, (16, 16, 3))) for _ in range(5)]
    alpha = random.uniform(0.8, 1.2, (5, 3))
    beta = random.uniform(-0.04, 0.04, (5, 3))
    expected = [
        hed2rgb(a * rgb2hed(image) + b / SKIMAGE_UNIT)
        for image, a, b in zip(images, alpha, beta, strict=True)
    ]
    made = stain_jitter(
        torch.tensor(np.array(images)).permute(0, 3, 1, 2).float(),
        alpha_N3=torch.tensor(alpha).float(),
        beta_N3=torch.tensor(beta).float(),
    )
    # The inverse of the dyes' matrix has entries up to 2: logarithms of size 3 lose some 1e-6 on the way.
    np.testing.assert_allclose(made.permute(0, 2, 3, 1).numpy(), np.array(expected), atol=1e-5)


def test_alpha_one_and_beta_zero_give_the_image_itself(images: Tensor) -> None:
    made = stain_jitter(images, alpha_N3=torch.ones(7, 3), beta_N3=torch.zeros(7, 3))
    torch.testing.assert_close(made, images.clamp(min=1e-6), atol=1e-5, rtol=0)


def test_eosin_on_glass_absorbs_by_its_density() -> None:
    glass = torch.ones(1, 3, 1, 1)
    made = stain_jitter(glass, alpha_N3=torch.ones(1, 3), beta_N3=torch.tensor([[0.0, 0.1, 0.0]]))
    expected = torch.tensor([10**-0.007, 10**-0.099, 10**-0.011])
    torch.testing.assert_close(made.flatten(), expected, atol=1e-6, rtol=0)


def test_no_dye_at_all_is_white(images: Tensor) -> None:
    assert torch.equal(
        stain_jitter(images, alpha_N3=torch.zeros(7, 3), beta_N3=torch.zeros(7, 3)), torch.ones_like(images)
    )
