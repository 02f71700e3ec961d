"""Curves go through their numbers, within their axes."""

import numpy as np
import pytest

from histo_ssl.report.curves import (
    BOTTOM_PX,
    LEFT_PX,
    MAX_POINTS,
    RIGHT_PX,
    TOP_PX,
    curves,
    points,
    ticks,
)


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
    (curve,) = curves(metrics)
    x, y = np.array(curve.lines[0].xy_px).T
    # SVG's y points down; from the axes' corner, the drawing is the data, to a tenth of a px
    np.testing.assert_allclose((x - LEFT_PX) / (RIGHT_PX - LEFT_PX), np.arange(5) / 4, atol=1e-3)
    top = BOTTOM_PX - (BOTTOM_PX - TOP_PX) / 1.05  # of the highest value: above it is room of a twentieth
    np.testing.assert_allclose((BOTTOM_PX - y) / (BOTTOM_PX - top), np.arange(5) ** 2 / 16, atol=1e-3)


def test_a_tick_stands_where_its_number_would_be_drawn() -> None:
    (curve,) = curves([{"step": 10.0, "loss": 0.0}, {"step": 20.0, "loss": 8.0}])
    assert [text for _, text in curve.x_ticks] == ["10", "12", "14", "16", "18", "20"]
    assert [x for x, _ in curve.x_ticks] == [56.0, 112.4, 168.8, 225.2, 281.6, 338.0]
    _, y = curve.lines[0].xy_px[1]
    assert y == next(place for place, text in curve.y_ticks if text == "8")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3e-7, 2e-7), (0.1, 123456.0), (5.0, 6.0)])
def test_ticks_are_a_few_round_numbers_within_the_axis(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 6
    assert np.ptp(np.diff(found)) < 1e-9 * (high - low)
    assert low - 1e-9 * (high - low) <= found[0] < found[-1] <= high + 1e-9 * (high - low)


@pytest.mark.parametrize("values", [[0.0, 0.0], [3.0], [-2.0, -1.0], [1e-12, 2e-12]])
def test_a_flat_short_or_negative_curve_stays_within_its_axes(values: list[float]) -> None:
    (curve,) = curves([{"step": float(i), "loss": value} for i, value in enumerate(values)])
    for x, y in curve.lines[0].xy_px:
        assert LEFT_PX <= x <= RIGHT_PX
        assert TOP_PX <= y <= BOTTOM_PX


def test_a_line_keeps_its_look_where_another_has_no_numbers() -> None:
    (both,) = curves([{"step": 1.0, "data_s": 1.0, "step_s": 2.0}])
    (one,) = curves([{"step": 1.0, "step_s": 2.0}])
    assert one.lines[0].color == both.lines[1].color != both.lines[0].color
    assert both.lines[1].legend_px > both.lines[0].legend_px + 22 + 6 * len("waiting for data")


def test_the_words_for_a_curve_say_where_it_begins_and_ends() -> None:
    metrics = [{"step": 1.0, "loss": 6.93}, {"step": 40.0, "loss": 3.2}]
    (curve,) = curves(metrics)
    assert curve.alt == "Loss: loss from 6.93 to 3.2, steps 1 to 40."


def test_ln_k_stands_beside_the_teachers_entropy_and_the_kl() -> None:
    row = {"teacher_entropy": 5.0, "kl": 0.5, "max_entropy": 6.93147}
    (curve,) = curves([{"step": 1.0, **row}, {"step": 2.0, **row}])
    assert curve.title == "Teacher entropy and KL"
    assert "ln K from 6.93 to 6.93" in curve.alt
    assert [line.name for line in curve.lines] == ["teacher entropy", "KL", "ln K"]
