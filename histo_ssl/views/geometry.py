"""Where a view looks: random resized crops, flips and quarter turns, in one antialiased resampling.

Crop, resize, flips and turn are linear and separable, so a view is Wy T Wx^T with one row of weights per
output pixel. The rows are banded: BLOCK outputs side by side read one short window of the tile, so that
each axis is a gather of windows and a batch of small matrix products, whatever the box of each view.

N: views to make, B: tiles, C: channels, S: side of a tile, s: side of a view, T: tries of a crop. On one axis
b: BLOCK, K: blocks (s / b), L: length of a window, R: sources, H: rows read, M: pixels along the other axis.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from histo_ssl.views.draws import between

BLOCK = 16  # output pixels that share a window; view sides are multiples of it
N_TRIES = 10  # torchvision's number of tries before the fallback


def triangle(x: Tensor) -> Tensor:
    """The bilinear kernel: 1 at 0, 0 from 1 on."""
    return (1 - x.abs()).clamp(min=0)


def cubic(x: Tensor) -> Tensor:
    """The cubic kernel of Keys (1981, eq. 15), a = -1/2 as in PIL and torch: 0 from 2 on."""
    x = x.abs().clamp(max=2)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far)


KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (triangle, 1.0),
    "bicubic": (cubic, 2.0),
}


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What N views look at. The source is a tile or its transpose; flips act on what is cut from it."""

    source: Tensor  # (N,) int64: index into the sources that `resample` is given
    start: Tensor  # (N, 2) float32: first row and column of the box, in tile pixels
    size: Tensor  # (N, 2) float32: its height and width, in tile pixels
    flip: Tensor  # (N, 2) bool: rows reversed, columns reversed


def random_boxes(
    area_NT: Tensor,
    ratio_NT: Tensor,
    corner_N2: Tensor,
    *,
    scale: Sequence[float],
    ratios: Sequence[float],
    tile_px: int,
) -> tuple[Tensor, Tensor]:
    """Boxes distributed as those of torchvision's RandomResizedCrop, in whole pixels.

    The first of the tries that fits into the tile is taken; if none does, the box is the whole tile, which is
    torchvision's fallback on a square image wherever `ratios` hold 1.

    Args:
        area_NT: in [0, 1), one per try: uniform in area over `scale`.
        ratio_NT: in [0, 1): width over height, uniform in its logarithm over `ratios`.
        corner_N2: in [0, 1): top and left among the places where the box fits.
        scale: lowest and highest share of the tile's area.
        ratios: lowest and highest width over height.
        tile_px: side of the tile.

    Returns:
        start (N, 2) and size (N, 2), float32, (row, column) in tile pixels. Scale (1, 1) and ratio (1, 1)
        give start (0, 0) and size (tile_px, tile_px).
    """
    px2_NT = between(area_NT, scale[0], scale[1]) * tile_px**2
    wide_NT = torch.exp(between(ratio_NT, math.log(ratios[0]), math.log(ratios[1])))
    size_NT2 = torch.stack([px2_NT / wide_NT, px2_NT * wide_NT], dim=-1).sqrt().round().clamp(min=1)
    fits_NT = (size_NT2 <= tile_px).all(dim=-1)
    first_N = fits_NT.to(torch.uint8).argmax(dim=1)
    size_N2 = size_NT2.take_along_dim(first_N[:, None, None], dim=1).squeeze(1)
    size_N2 = torch.where(fits_NT.any(dim=1, keepdim=True), size_N2, float(tile_px))
    return torch.floor(corner_N2 * (tile_px - size_N2 + 1)), size_N2


def largest_box_px(*, scale: Sequence[float], ratios: Sequence[float], tile_px: int) -> int:
    """The longest side that `random_boxes` can draw: half the tile for scale 0.25 and ratio 1."""
    longest = math.sqrt(scale[1] * max(ratios[1], 1 / ratios[0])) * tile_px
    return min(tile_px, math.ceil(longest))


def with_transposes(tiles_BCSS: Tensor) -> Tensor:
    """Tiles and their transposes as sources (2B, C, S, S): tile b at 2b, its transpose at 2b + 1."""
    return torch.stack([tiles_BCSS, tiles_BCSS.mT], dim=1).flatten(0, 1)


def random_frames(
    start_N2: Tensor, size_N2: Tensor, *, tile_N: Tensor, flip_N2: Tensor, quarters_N: Tensor
) -> Frames:
    """Frames of tiles that are turned, then flipped, among the sources of `with_transposes`.

    Args:
        start_N2: the box, see `random_boxes`.
        size_N2: the box.
        tile_N: int64, which tile each view is of.
        flip_N2: bool, whether rows and columns are reversed after the turn.
        quarters_N: int64 0-3, quarter turns counter-clockwise, as in torch.rot90 over the last two axes.

    Returns:
        Frames of N views. One quarter is the transpose with its rows reversed, two reverse both axes.
    """
    reversed_by_turn_N2 = torch.stack([(quarters_N == 1) | (quarters_N == 2), quarters_N >= 2], dim=1)
    return Frames(
        source=2 * tile_N + quarters_N % 2, start=start_N2, size=size_N2, flip=flip_N2 ^ reversed_by_turn_N2
    )


def window_px(side_px: int, *, box_px: int, interpolation: str) -> int:
    """Length of the window that holds all that BLOCK outputs read, if a box is at most `box_px` long."""
    step = box_px / side_px
    reach = KERNELS[interpolation][1] * max(step, 1.0)
    return math.ceil((BLOCK - 1) * step + 2 * reach) + 1


def band(
    start_N: Tensor, size_N: Tensor, flip_N: Tensor, *, side_px: int, box_px: int, interpolation: str
) -> tuple[Tensor, Tensor]:
    """Weights of one axis, equal to torch's antialiased resize of the cropped pixels.

    Args:
        start_N: where the box starts, in tile pixels, whole or not; pixels with their centre outside weigh
            nothing.
        size_N: length of the box in tile pixels, 1 <= size <= box_px.
        flip_N: bool, whether the outputs come in reversed order.
        side_px: number of outputs, a multiple of BLOCK.
        box_px: the longest box that may come.
        interpolation: a name in KERNELS.

    Returns:
        first (N, K) int64, the tile pixel where each block's window starts (it may be outside of the tile),
        and weights (N, K, L, b) float32 that sum to 1 over L. A box as long as the view has one weight of 1
        per output.
    """
    kernel, radius = KERNELS[interpolation]
    device = start_N.device
    output_s = torch.arange(side_px, device=device)
    output_Ns = torch.where(flip_N[:, None], side_px - 1 - output_s, output_s)
    step_N = size_N / side_px
    stretch_N = step_N.clamp(min=1)
    centre_Ns = start_N[:, None] + step_N[:, None] * (output_Ns + 0.5)
    centre_NK1b = centre_Ns.view(len(centre_Ns), -1, 1, BLOCK)
    first_NK = torch.floor(centre_NK1b.amin(dim=(2, 3)) - radius * stretch_N[:, None])
    window_L = torch.arange(window_px(side_px, box_px=box_px, interpolation=interpolation), device=device)
    pixel_NKL1 = (first_NK[:, :, None] + window_L + 0.5)[..., None]
    start_N111, end_N111 = start_N[:, None, None, None], (start_N + size_N)[:, None, None, None]
    weights = kernel((pixel_NKL1 - centre_NK1b) / stretch_N[:, None, None, None])
    weights = weights * ((pixel_NKL1 > start_N111) & (pixel_NKL1 < end_N111))
    return first_NK.long(), weights / weights.sum(dim=2, keepdim=True)


def contract(
    x: Tensor, source_N: Tensor, first_NK: Tensor, weights_NKLb: Tensor, *, left_N: Tensor, n_columns: int
) -> Tensor:
    """Weighted sums of the rows of each view's source, left as columns: (R, C, H, W) -> (N, C, M, s).

    Two calls resample both axes and bring them back into order.

    Args:
        x: R sources, any dtype that float32 holds.
        source_N: int64, the source of each view.
        first_NK: see `band`.
        weights_NKLb: see `band`.
        left_N: int64, the first of the columns that each view takes.
        n_columns: M, how many it takes.
    """
    _, n_channels, n_rows, row_length = x.shape
    n_views, n_blocks, n_window, block = weights_NKLb.shape
    row_NKL = (first_NK[:, :, None] + torch.arange(n_window, device=x.device)).clamp(0, n_rows - 1)
    plane_NC = source_N[:, None] * n_channels + torch.arange(n_channels, device=x.device)
    row_NKLC = row_NKL[..., None] + plane_NC[:, None, None, :] * n_rows
    place_NKLC = row_NKLC * row_length + left_N[:, None, None, None]
    pieces = x.contiguous().as_strided((x.numel() - n_columns + 1, n_columns), (1, 1))  # from each pixel on
    windows = pieces.index_select(0, place_NKLC.flatten()).float()
    windows = windows.view(n_views * n_blocks, n_window, n_channels * n_columns)
    blocks = torch.bmm(windows.mT, weights_NKLb.flatten(0, 1))
    return blocks.view(n_views, n_blocks, n_channels, n_columns, block).permute(0, 2, 3, 1, 4).flatten(3)


def resample(sources: Tensor, frames: Frames, *, side_px: int, box_px: int, interpolation: str) -> Tensor:
    """What each frame looks at, as a square of `side_px`.

    The sums run over values of 0 to 255, which even TF32 products hold exactly: an identity stays one.

    Args:
        sources: (R, C, S, S) uint8.
        frames: N frames, their boxes inside of the tile.
        side_px: side of the views, a multiple of BLOCK.
        box_px: the longest side of a box that may come, see `largest_box_px`.
        interpolation: a name in KERNELS.

    Returns:
        (N, C, s, s) float32 in [0, 1]; what the cubic kernel overshoots is cut, as in 8-bit images. A box
        of `side_px` gives its pixels / 255.
    """
    (top_N, left_N), (height_N, width_N) = frames.start.unbind(1), frames.size.unbind(1)
    rows_flipped_N, columns_flipped_N = frames.flip.unbind(1)
    axis = partial(band, side_px=side_px, box_px=box_px, interpolation=interpolation)
    n_read = min(box_px + 1, sources.shape[-1])  # columns that a box can reach, wherever in a pixel it starts
    read_N = left_N.long().clamp(max=sources.shape[-1] - n_read)
    columns = contract(
        sources, frames.source, *axis(top_N, height_N, rows_flipped_N), left_N=read_N, n_columns=n_read
    )
    own_N = torch.arange(len(columns), device=columns.device)
    weights = axis(left_N - read_N, width_N, columns_flipped_N)
    view = contract(columns, own_N, *weights, left_N=torch.zeros_like(own_N), n_columns=side_px)
    return view.div_(255).clamp_(0, 1)
