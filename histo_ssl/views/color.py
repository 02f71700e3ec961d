"""How a view is coloured: torchvision's colour functions on float images, with one parameter per view.

Images x and results are (N, 3, s, s) float32, red, green, blue in [0, 1]; parameters are (N,) float32. No
function writes into its input. Torch's `where` is some 20 times slower than `lerp` on a CPU, hence the
choices by a weight of 0 or 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601 as torchvision rounds it
TINY = 1e-9  # less than the chroma of any colour that is not grey
SIGMAS = 3.0  # the blur kernel reaches this far: 99.7 % of a Gaussian


def per_view(p_N: Tensor) -> Tensor:
    """Parameters shaped to multiply images."""
    return p_N[:, None, None, None]


def luma(x: Tensor) -> Tensor:
    """Grey values (N, 1, s, s). White is 0.9999, since torchvision's weights sum to that."""
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def grey(x: Tensor) -> Tensor:
    """Luma in all three channels."""
    return luma(x).expand_as(x)


def brightness(x: Tensor, factor_N: Tensor) -> Tensor:
    """The image times its factor. Factor 1 gives the image itself, 0 black."""
    return (x * per_view(factor_N)).clamp_(0, 1)


def contrast(x: Tensor, factor_N: Tensor) -> Tensor:
    """The image away from the mean of its luma. Factor 1 gives the image itself, 0 that mean everywhere."""
    mean = luma(x).mean(dim=(1, 2, 3), keepdim=True)
    return (x * per_view(factor_N)).add_(mean * (1 - per_view(factor_N))).clamp_(0, 1)


def saturation(x: Tensor, factor_N: Tensor) -> Tensor:
    """The image away from its luma. Factor 1 gives the image itself, 0 its grey."""
    return (x * per_view(factor_N)).add_(luma(x) * (1 - per_view(factor_N))).clamp_(0, 1)


def hue(x: Tensor, shift_N: Tensor) -> Tensor:
    """The image with its hue (of HSV) moved round the colour circle, a whole turn being 1.

    Value and saturation stay, hence the least and the largest channel too; the hue, in sixths of the circle
    from red, is each channel's place between them (A. R. Smith, "Color gamut transform pairs", SIGGRAPH
    1978). A shift of 1/3 takes red to green.
    """
    red, green, blue = x.unbind(1)
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    from_green = torch.add(blue - red, chroma, alpha=2)
    from_blue = torch.add(red - green, chroma, alpha=4)
    not_red, not_green = (high - red).sign_(), (high - green).sign_()
    sixths = torch.lerp(green - blue, torch.lerp(from_green, from_blue, not_green), not_red)
    sixths = sixths.div_(chroma.clamp(min=TINY)).add_(6 * shift_N[:, None, None])
    sixths = sixths.sub_((sixths / 6).floor_().mul_(6))
    shifted = torch.empty_like(x)
    for channel, sector, sign, offset in ((0, 3, 1, -1), (1, 2, -1, 2), (2, 4, -1, 2)):
        place = (sixths - sector).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(low, place, chroma, out=shifted[:, channel])
    return shifted.clamp_(0, 1)


def blur_radius_px(sigma: float) -> int:
    """Half-width of the blur kernel for the largest sigma (px) that may come: 6 for 2 px, a kernel of 13."""
    return math.ceil(SIGMAS * sigma)


def averaged(x: Tensor, taps_NR: Tensor, *, dim: int) -> Tensor:
    """Pixels averaged with those along `dim`, mirrored at the edges; tap r weighs the two that are r away."""
    radius, side = taps_NR.shape[1] - 1, x.shape[dim]
    mirrored = F.pad(x, (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0), mode="reflect")
    total = x * per_view(taps_NR[:, 0])
    for r in range(1, radius + 1):
        pair = mirrored.narrow(dim, radius - r, side) + mirrored.narrow(dim, radius + r, side)
        total.addcmul_(pair, per_view(taps_NR[:, r]))
    return total


def blur(x: Tensor, sigma_N: Tensor, *, radius_px: int) -> Tensor:
    """Gaussian blur, mirrored at the edges. With sigma near 0 it gives the image itself.

    Args:
        x: images; side > radius_px.
        sigma_N: standard deviation in px, > 0.
        radius_px: half-width of the kernel of 2 radius + 1 px, see `blur_radius_px`.
    """
    offset_R = torch.arange(radius_px + 1, device=x.device)
    weights_NR = torch.exp(-0.5 * (offset_R / sigma_N[:, None]) ** 2)
    taps_NR = weights_NR / (2 * weights_NR.sum(dim=1, keepdim=True) - weights_NR[:, :1])
    return averaged(averaged(x, taps_NR, dim=2), taps_NR, dim=3).clamp_(0, 1)


def solarise(x: Tensor, *, threshold: float) -> Tensor:
    """Values at or above the threshold turned over: 0.25 stays, 0.75 becomes 0.25 at threshold 0.5."""
    return torch.where(x >= threshold, 1 - x, x)
