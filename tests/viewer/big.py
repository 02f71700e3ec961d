"""A large slide in seconds: a few JPEG tiles again and again, on every level of its pyramid."""

from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIDE_PX, MPP, FACTOR, TIFF_TILE_PX = 20_000, 0.25, 4, 256
KINDS = 16  # different tiles


def texture(seed: int) -> NDArray[np.uint8]:
    """Cells on a pink ground: 256 px square, as detailed as tissue."""
    rng = np.random.default_rng(seed)
    spots = Image.fromarray((rng.random((64, 64)) > 0.8).astype(np.uint8) * 255).resize((256, 256))
    depth = np.asarray(spots.filter(ImageFilter.GaussianBlur(1.5)))[..., None] / 255
    pink, violet = np.array([232, 170 + 3 * seed, 205]), np.array([96, 70, 150])
    return (
        (pink * (1 - depth) + violet * depth + rng.normal(0, 3, (256, 256, 3))).clip(0, 255).astype(np.uint8)
    )


def write_large_slide(path: Path) -> None:
    """A pyramid of 20,000 px square at 0.25 um/px, levels 4 apart, JPEG within."""
    options = {"colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "444"}
    tiles = [bytes(imagecodecs.jpeg8_encode(texture(i), level=80, **options)) for i in range(KINDS)]
    side, mpp = SIDE_PX, MPP
    with tifffile.TiffWriter(path) as tiff:
        while side >= TIFF_TILE_PX:
            tiff.write(
                _again(tiles, n=-(-side // TIFF_TILE_PX)),
                shape=(side, side, 3),
                dtype="uint8",
                subfiletype=0 if side == SIDE_PX else 1,
                photometric="ycbcr",
                subsampling=(1, 1),
                tile=(TIFF_TILE_PX, TIFF_TILE_PX),
                compression="jpeg",
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            side, mpp = side // FACTOR, mpp * FACTOR


def _again(tiles: list[bytes], *, n: int) -> Iterator[bytes]:
    return (tiles[(column // 2 + 3 * (row // 2)) % len(tiles)] for row in range(n) for column in range(n))
