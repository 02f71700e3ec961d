from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from histo_ssl.views import color

# The same sums in float32, in another order: a few roundings of 6e-8 each, for values up to about 2.
ROUNDING = 2e-6
FACTORS = torch.tensor([0.0, 0.2, 0.6, 1.0, 1.4, 1.8, 3.0])  # one for each of the seven images


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (color.brightness, F.adjust_brightness),
        (color.contrast, F.adjust_contrast),
        (color.saturation, F.adjust_saturation),
    ],
)
def test_factors_act_as_in_torchvision(
    images: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor]
) -> None:
    expected = torch.stack([theirs(x, f.item()) for x, f in zip(images, FACTORS, strict=True)])
    torch.testing.assert_close(ours(images, FACTORS), expected, atol=ROUNDING, rtol=0)
    assert torch.equal(ours(images, torch.ones(7)), images)


def test_hue_moves_as_in_torchvision(images: Tensor) -> None:
    shifts = torch.tensor([-0.5, -0.2, -0.05, 0.0, 0.1, 1 / 3, 0.5])
    images[0, :, :4] = images[0, :1, :4]  # greys, which have no hue
    images[1, 1] = images[1, 0]  # ties between the largest channels
    images[2, :, :8] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]  # pure colours
    expected = torch.stack([F.adjust_hue(x, h.item()) for x, h in zip(images, shifts, strict=True)])
    # Six times the hue is rounded at up to 6 and then multiplies the chroma: 6 roundings of 5e-7.
    torch.testing.assert_close(color.hue(images, shifts), expected, atol=5e-6, rtol=0)


def test_a_third_of_the_circle_takes_red_to_green() -> None:
    red = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)
    green = color.hue(red, torch.tensor([1 / 3])).flatten()
    torch.testing.assert_close(green, torch.tensor([0.1, 0.9, 0.1]), atol=1e-6, rtol=0)


def test_grey_is_torchvisions(images: Tensor) -> None:
    expected = F.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(color.grey(images), expected, atol=ROUNDING, rtol=0)


def test_blur_is_torchvisions_with_the_same_kernel(images: Tensor) -> None:
    sigmas = torch.tensor([0.1, 0.3, 0.5, 1.0, 1.5, 1.9, 2.0])
    expected = torch.stack(
        [
            F.gaussian_blur(x, kernel_size=[13, 13], sigma=[s.item()] * 2)
            for x, s in zip(images, sigmas, strict=True)
        ]
    )
    radius_px = color.blur_radius_px(2.0)
    torch.testing.assert_close(
        color.blur(images, sigmas, radius_px=radius_px), expected, atol=ROUNDING, rtol=0
    )


def test_blur_without_width_gives_the_image_itself(images: Tensor) -> None:
    assert torch.equal(color.blur(images, torch.full((7,), 0.01), radius_px=6), images)


def test_blur_keeps_the_sum_of_a_point_in_the_middle() -> None:
    point = torch.zeros(1, 3, 33, 33)
    point[:, :, 16, 16] = 1
    spread = color.blur(point, torch.tensor([2.0]), radius_px=6)
    torch.testing.assert_close(spread.sum(dim=(2, 3)), torch.ones(1, 3), atol=1e-6, rtol=0)
    # Centre of a Gaussian of SD 2 over -6..6 and normalised: (1 / sum exp(-r^2 / 8))^2 = (1 / 5.000)^2.
    assert spread[0, 0, 16, 16].item() == pytest.approx(0.03999, abs=2e-4)


def test_solarisation_is_torchvisions(images: Tensor) -> None:
    made = color.solarise(images, threshold=0.5)
    assert torch.equal(made, F.solarize(images, 0.5))
    assert color.solarise(torch.tensor([0.25, 0.5, 0.75]), threshold=0.5).tolist() == [0.25, 0.5, 0.25]


def test_no_function_writes_into_its_input(images: Tensor) -> None:
    before = images.clone()
    for operation in (color.brightness, color.contrast, color.saturation, color.hue):
        operation(images, FACTORS)
    color.blur(images, 1 + FACTORS, radius_px=3)
    color.solarise(color.grey(images), threshold=0.5)
    assert torch.equal(images, before)
