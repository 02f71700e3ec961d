"""A normaliser whose target is an image of a person's choice, or the published one of the configuration."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from histo_ssl.stain.base import StainNormaliser


def fitted(*, target: str | None, normaliser: StainNormaliser) -> StainNormaliser:
    """The normaliser with the image's colours as its target.

    Args:
        target: path of an 8-bit RGB image of stained tissue; None: keep the normaliser's own target.
        normaliser: with its target in numbers.

    Raises:
        FileNotFoundError: there is no such image.
        ValueError: it is no 8-bit RGB image, or its dyes can't be told.
    """
    if target is None:
        return normaliser
    pixels = torch.from_numpy(_pixels(Path(target))).permute(2, 0, 1)
    try:
        return normaliser.fitted(pixels.flatten(1)[None])
    except ValueError as error:
        raise ValueError(f"stain.target={target}: {error}; choose another image, or null") from error


def _pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(H, W, 3) uint8."""
    if not path.is_file():
        raise FileNotFoundError(f"stain.target={path}: there is no such image; give a path, or null")
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise ValueError(f"stain.target={path}: an 8-bit RGB image is expected, not {image.mode}")
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"stain.target={path}: not an image that can be read ({error})") from error
