"""A picture of a slide by which a person can check its tiles: thumbnail, outline of the tissue, tiles."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

LONG_SIDE_PX = 1500
OUTLINE = (0, 150, 0)  # the tissue, as broad as two pixels
TILE = (20, 60, 220)


def overlay(
    thumbnail: NDArray[np.uint8],
    mask_hw: NDArray[np.bool_],
    xy_level0: NDArray[np.int32],
    *,
    side_level0: int,
    size_level0: tuple[int, int],
) -> Image.Image:
    """The thumbnail with the tissue's outline in green and each tile's frame in blue.

    Args:
        thumbnail: (h, w, 3) of the whole scan.
        mask_hw: tissue, of the whole scan, at any resolution.
        xy_level0: (N, 2) left and top edges of the tiles, level-0 px.
        side_level0: side of their footprint, level-0 px.
        size_level0: width and height of the scan, level-0 px.

    Returns:
        An image whose longer side has at most 1500 px.
    """
    image = Image.fromarray(thumbnail)
    image.thumbnail((LONG_SIDE_PX, LONG_SIDE_PX))
    draw = ImageDraw.Draw(image)
    scale = np.array(image.size) / size_level0
    corners = np.concatenate([xy_level0 * scale, (xy_level0 + side_level0) * scale - 1], axis=1)
    for corner in corners.round().astype(int).tolist():
        draw.rectangle(corner, outline=TILE)
    mask = np.asarray(Image.fromarray(mask_hw).resize(image.size, Image.Resampling.NEAREST))
    edge = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask, border_value=1)
    image.paste(OUTLINE, mask=Image.fromarray(edge))
    return image
