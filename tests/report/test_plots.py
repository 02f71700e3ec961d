"""Pictures keep their budget, their proportions and their colours."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_ssl.report.plots import Picture, photograph


def image_of(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.content)), dtype=float)


@pytest.mark.parametrize("budget_bytes", [4_000, 20_000])
def test_a_picture_keeps_its_budget_and_its_proportions(tmp_path: Path, budget_bytes: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    picture = photograph(tmp_path / "noise.png", title="", alt="", max_side_px=800, budget_bytes=budget_bytes)
    height, width, _ = image_of(picture).shape
    assert len(picture.content) <= budget_bytes
    assert width <= 800
    assert width / height == pytest.approx(2, rel=0.05)  # sides are whole pixels


def test_what_was_transparent_is_white_and_the_rest_keeps_its_colour(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, 32:] = (200, 40, 120, 255)
    Image.fromarray(pixels).save(tmp_path / "half.png")
    picture = photograph(tmp_path / "half.png", title="", alt="", max_side_px=64, budget_bytes=100_000)
    image = image_of(picture)
    # JPEG: a few grey levels off, away from the edge
    np.testing.assert_allclose(image[:, :16].mean((0, 1)), 255, atol=2)
    np.testing.assert_allclose(image[:, 48:].mean((0, 1)), (200, 40, 120), atol=4)
