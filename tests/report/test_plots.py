"""Curves and pictures."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_ssl.report.plots import MAX_POINTS, Picture, curves, photograph, points


def image_of(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.content)), dtype=float)


def test_many_points_are_thinned_and_the_ends_stay() -> None:
    metrics = [{"step": float(i), "loss": 2.0 * i} for i in range(10_000)]
    x, y = points(metrics, "loss")
    assert MAX_POINTS / 2 < len(x) <= MAX_POINTS + 1
    assert (x[0], x[-1]) == (0, 9_999)
    assert y == [2 * step for step in x]


def test_a_zero_is_a_point_and_a_nan_is_none() -> None:
    metrics = [{"step": 1.0, "lr": 0.0}, {"step": 2.0, "lr": float("nan")}, {"step": 3.0, "lr": 1.0}]
    assert points(metrics, "lr") == ([1.0, 3.0], [0.0, 1.0])


def test_the_drawn_curve_goes_through_the_numbers() -> None:
    metrics = [{"step": float(i), "loss": float(i**2)} for i in range(5)]
    (picture,) = curves(metrics)
    svg = picture.content.decode()
    path = re.search(r'<path d="(M[^"]+)"[^>]*stroke: #4b3f8f', svg)
    assert path is not None
    x, y = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path[1]), dtype=float).T
    # SVG's y points down; scaled to the last point, the drawing is the data
    np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), np.arange(5) / 4, atol=1e-5)
    np.testing.assert_allclose((y - y[0]) / (y[-1] - y[0]), np.arange(5) ** 2 / 16, atol=1e-5)


def test_the_words_for_a_curve_say_where_it_begins_and_ends() -> None:
    metrics = [{"step": 1.0, "loss": 6.93}, {"step": 40.0, "loss": 3.2}]
    (picture,) = curves(metrics)
    assert picture.alt == "Loss: loss from 6.93 to 3.2, steps 1 to 40."


def test_ln_k_stands_beside_the_teachers_entropy_and_the_kl() -> None:
    row = {"teacher_entropy": 5.0, "kl": 0.5, "max_entropy": 6.93147}
    (picture,) = curves([{"step": 1.0, **row}, {"step": 2.0, **row}])
    assert picture.title == "Teacher entropy and KL"
    assert "ln K from 6.93 to 6.93" in picture.alt
    assert [
        name
        for name in ("teacher entropy", "KL", "ln K")
        if f">{name}</text>" not in picture.content.decode()
    ] == []


def test_the_same_curves_give_the_same_bytes() -> None:
    metrics = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0}]
    assert curves(metrics) == curves(metrics)


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
