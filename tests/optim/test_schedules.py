"""Schedules against values computed by hand."""

import math

import pytest

from histo_ssl.optim.schedules import cosine, linear, warmup_cosine


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.04), (0.25, 0.0475), (1.0, 0.07), (1.5, 0.07)])
def test_linear_is_a_line_that_stays_at_its_end(progress: float, expected: float) -> None:
    assert linear(0.04, 0.07, progress=progress) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.04),
        (1 / 3, 0.4 - 0.36 * 0.75),  # (1 + cos 60 degrees) / 2 = 3/4 of the way is left
        (0.5, 0.22),
        (1.0, 0.4),
        (2.0, 0.4),
    ],
)
def test_cosine_raises_weight_decay_as_in_dino(progress: float, expected: float) -> None:
    assert cosine(0.04, 0.4, progress=progress) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.0),
        (0.05, 0.5),
        (0.1, 1.0),
        (0.5, 0.1 + 0.9 * (1 + math.cos(math.pi * 4 / 9)) / 2),  # 0.4 of the 0.9 after the warm-up
        (0.55, 0.55),
        (1.0, 0.1),
    ],
)
def test_warmup_cosine_climbs_to_its_peak_then_falls(progress: float, expected: float) -> None:
    assert warmup_cosine(1.0, 0.1, warmup=0.1, progress=progress) == pytest.approx(expected, rel=1e-12)


def test_without_warmup_the_peak_comes_first() -> None:
    assert warmup_cosine(2.0, 0.0, warmup=0.0, progress=0.0) == 2.0


def test_a_warmup_through_all_of_training_is_a_line() -> None:
    assert warmup_cosine(2.0, 0.0, warmup=1.0, progress=0.5) == 1.0
    assert warmup_cosine(2.0, 0.0, warmup=1.0, progress=1.0) == 2.0
