"""Pixels of a window as an image of another size, by Pillow's antialiased bicubic filter.

Where the window is 2 or 4 times as fine, its weights are whole multiples of 1/256 and 1/4096, which the
16-bit weights of torch's 8-bit resize hold exactly: the bytes are Pillow's, in a sixth of the time. So torch
does it where it is imported already (reading slides does not import it), and tiles are the same either way.

Letters: h, w are the height and width of an image in pixels.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.slides.windows import FILTER_REACH_PX, Box, Size

EXACT = (2, 4)  # reductions whose weights torch holds exactly


def resampled(pixels: NDArray[np.uint8], box: Box, *, size: Size) -> NDArray[np.uint8]:
    """The part of an image in a box, at another size.

    Args:
        pixels: (h, w, 3), the box and what the filter reaches around it, as far as there is anything.
        box: in pixels of it.
        size: width and height of the result.
    """
    if "torch" in sys.modules and _whole_factor(pixels, box, size) in EXACT:
        return _by_torch(pixels, size, sys.modules["torch"])
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=box))


def _whole_factor(pixels: NDArray[np.uint8], box: Box, size: Size) -> int:
    """How many pixels a side become one; 0 unless that is whole and all that the filter reaches is there.

    At the scan's edge something is missing, and what is there weighs more, by shares that are not exact.
    """
    (w, h), (height, width) = size, pixels.shape[:2]
    factor = round((box[2] - box[0]) / w)
    reach = FILTER_REACH_PX * factor
    inner: Box = (reach, reach, reach + w * factor, reach + h * factor)
    is_complete = width == inner[2] + reach and height == inner[3] + reach
    return factor if is_complete and box == inner else 0


def _by_torch(pixels: NDArray[np.uint8], size: Size, torch: Any) -> NDArray[np.uint8]:
    """The same with all around it, from which the result is cut."""
    (w, h), rim = size, FILTER_REACH_PX
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    wide = (h + 2 * rim, w + 2 * rim)
    made = torch.nn.functional.interpolate(x, size=wide, mode="bicubic", antialias=True)[0]
    return np.ascontiguousarray(made.permute(1, 2, 0).numpy()[rim:-rim, rim:-rim])
