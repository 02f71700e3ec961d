"""Pixels of another size are Pillow's, whoever computes them."""

import sys

import numpy as np
import pytest
import torch  # noqa: F401 (must be there already)
from PIL import Image

from histo_ssl.slides import resampling
from histo_ssl.slides.resampling import resampled

SIDE = 48


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("levels", [2, 256])  # black and white alone overshoots most
def test_a_whole_reduction_has_pillows_bytes(factor: int, levels: int) -> None:
    reach = 2 * factor
    side = SIDE * factor + 2 * reach
    pixels = np.random.default_rng(factor).integers(0, levels, (side, side, 3)) * (255 // (levels - 1))
    pixels, box = pixels.astype(np.uint8), (reach, reach, side - reach, side - reach)
    assert resampling._whole_factor(pixels, box, (SIDE, SIDE)) == factor
    expected = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    made = resampled(pixels, box, size=(SIDE, SIDE))
    np.testing.assert_array_equal(made, expected)
    assert made.flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((104, 104), (4, 4, 100, 100), (47, 47)),  # not a whole factor
        ((104, 104), (4.5, 4, 100.5, 100), (48, 48)),  # not on whole pixels
        ((104, 102), (2, 4, 98, 100), (48, 48)),  # by the left edge of a scan
        ((102, 104), (4, 4, 100, 100), (48, 48)),  # by its lower edge
        ((104, 200), (4, 4, 196, 100), (48, 48)),  # of another shape
    ],
)
def test_whatever_else_is_left_to_pillow(
    shape: tuple[int, int], box: tuple[float, ...], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "_by_torch", None)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(resampled(pixels, box, size=size), expected)


def test_without_torch_the_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (104, 104, 3), dtype=np.uint8)
    by_torch = resampled(pixels, (4, 4, 100, 100), size=(SIDE, SIDE))
    monkeypatch.delitem(sys.modules, "torch")
    np.testing.assert_array_equal(resampled(pixels, (4, 4, 100, 100), size=(SIDE, SIDE)), by_torch)
