"""Arithmetic of rectangles on the levels of a pyramid: no files, no pixels.

A box has fractional edges, a window has whole ones; both are left, top, right, bottom in pixels of one image.
"""

import math

Box = tuple[float, float, float, float]
Window = tuple[int, int, int, int]
Size = tuple[int, int]  # width and height, px

FILTER_REACH_PX = 2  # Pillow's bicubic filter uses this many pixels (times the reduction) on either side


def downsample(side_level0: int, side: int) -> float:
    """Level-0 pixels per pixel of a level.

    Scanners halve and drop (or complete) the odd pixel: a side of 4443 px becomes 2221, and a pixel still
    covers 2. So a whole number that explains the two sides is taken, their ratio only where there is none.

    >>> downsample(4443, 2221), downsample(9, 5), downsample(1000, 800)
    (2.0, 2.0, 1.25)
    """
    whole_number = round(side_level0 / side)
    explains = abs(side_level0 / whole_number - side) < 1
    return float(whole_number) if explains else side_level0 / side


def whole(box: Box) -> Window:
    """The smallest window around a box.

    >>> whole((0.5, 1.0, 2.5, 3.0))
    (0, 1, 3, 3)
    """
    return math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])


def is_untouched(box: Box, size: Size) -> bool:
    """Whether an output of this size is the box's own pixels, with nothing to resample.

    >>> is_untouched((10.0, 20.0, 12.0, 22.0), (2, 2)), is_untouched((10.5, 20.0, 12.5, 22.0), (2, 2))
    (True, False)
    """
    left, top, right, bottom = whole(box)
    return all(edge == int(edge) for edge in box) and (right - left, bottom - top) == size


def with_context(box: Box, *, size: Size, level_size: Size) -> Window:
    """The pixels under a box, and those around it that the filter reaches, as far as the level goes.

    With them, tiles that touch are cut from one resampled picture, without seams.

    >>> with_context((10.0, 0.0, 20.0, 10.0), size=(5, 5), level_size=(22, 100))
    (6, 0, 22, 14)
    """
    left, top, right, bottom = whole(box)
    reach_x = math.ceil(FILTER_REACH_PX * max(1.0, (box[2] - box[0]) / size[0]))
    reach_y = math.ceil(FILTER_REACH_PX * max(1.0, (box[3] - box[1]) / size[1]))
    width, height = level_size
    return (
        min(left, max(0, left - reach_x)),
        min(top, max(0, top - reach_y)),
        max(right, min(width, right + reach_x)),
        max(bottom, min(height, bottom + reach_y)),
    )


def clipped(window: Window, size: Size) -> Window:
    """The part of a window that lies on an image of this size; empty (equal edges) where none does.

    >>> clipped((-5, 2, 30, 9), (20, 20)), clipped((30, 2, 40, 9), (20, 20))
    ((0, 2, 20, 9), (20, 2, 20, 9))
    """
    (left, top, right, bottom), (width, height) = window, size
    return (
        min(max(left, 0), width),
        min(max(top, 0), height),
        min(max(right, 0), width),
        min(max(bottom, 0), height),
    )


def enlarged(window: Window, factor: int) -> Window:
    """The same window on an image of so many times more pixels a side.

    >>> enlarged((1, 2, 3, 4), 2)
    (2, 4, 6, 8)
    """
    left, top, right, bottom = window
    return factor * left, factor * top, factor * right, factor * bottom


def is_empty(window: Window) -> bool:
    """Whether no pixel lies in a window."""
    return window[0] >= window[2] or window[1] >= window[3]


def margins(inner: Window, outer: Window) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """What `np.pad` adds to an RGB array of the inner window to get the outer one.

    >>> margins((0, 2, 20, 9), (-5, 2, 30, 10))
    ((0, 1), (5, 10), (0, 0))
    """
    return (inner[1] - outer[1], outer[3] - inner[3]), (inner[0] - outer[0], outer[2] - inner[2]), (0, 0)
