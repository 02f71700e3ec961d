"""The verdicts that the report gives."""

import itertools
import math

import pytest

from histo_ssl.report.runs import Estimate
from histo_ssl.report.scores import ScoreRow, axis_low


def estimate(value: float, *, half: float = 0.01) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, chance=0.5)


def row(encoder: float | None, *, metric: str = "auc", half: float = 0.01, **floors: float) -> ScoreRow:
    return ScoreRow(
        protocol="weighted_k20",
        metric=metric,
        label="",
        is_primary=True,
        encoder=None if encoder is None else estimate(encoder, half=half),
        floors={subject: estimate(value, half=half) for subject, value in floors.items()},
        chance=0.5,
    )


@pytest.mark.parametrize(
    ("encoder", "colour", "random", "verdict"),
    [
        (0.9, 0.8, 0.7, "above both floors"),
        (0.81, 0.8, 0.7, "above both floors, not clearly"),  # [0.80, 0.82] touches [0.79, 0.81]
        (0.75, 0.8, 0.7, "below colour floor"),
        (0.75, 0.7, 0.8, "below random-weights floor"),
        (0.6, 0.8, 0.7, "below both floors"),
        (0.8, 0.8, 0.7, "level with colour floor"),
        (0.8, 0.8, 0.9, "level with colour floor, below random-weights floor"),
    ],
)
def test_the_verdict_names_the_floors_that_win(
    encoder: float, colour: float, random: float, verdict: str
) -> None:
    assert row(encoder, colour=colour, random=random).verdict == verdict


def test_a_floor_is_marked_exactly_when_it_is_not_below_the_encoder() -> None:
    for encoder, colour, random in itertools.product([0.5, 0.6, 0.7], repeat=3):
        marked = row(encoder, colour=colour, random=random)
        expected = [name for name, value in (("colour", colour), ("random", random)) if value >= encoder]
        assert marked.winners == expected
        assert (marked.standing == "below") == bool(expected)


def test_of_an_error_the_smaller_is_the_better() -> None:
    assert row(0.03, metric="mse", half=0.001, colour=0.06, random=0.08).verdict == "better than both floors"
    assert row(0.07, metric="mse", half=0.001, colour=0.06, random=0.08).verdict == "worse than colour floor"
    assert row(0.09, metric="mse", half=0.001, colour=0.06, random=0.08).verdict == "worse than both floors"
    assert row(0.059, metric="mse", half=0.01, colour=0.06).verdict == "better than colour floor, not clearly"


def test_of_three_floors_each_is_named() -> None:
    floors = {"colour": 0.6, "random": 0.7, "imagenet": 0.8}
    assert row(0.9, **floors).verdict == "above all floors"
    assert row(0.75, **floors).verdict == "below ImageNet-weights floor"
    assert row(0.65, **floors).verdict == "below random-weights floor, below ImageNet-weights floor"
    assert row(0.5, **floors).verdict == "below all floors"


def test_without_floors_or_without_a_score_nothing_is_claimed() -> None:
    assert row(0.9).verdict == "no floors to compare with"
    assert row(None, colour=0.8).verdict == "not scored"
    assert row(None, colour=0.8).winners == []


def test_one_floor_alone_is_called_by_its_name() -> None:
    assert row(0.9, colour=0.8).verdict == "above colour floor"


def test_without_intervals_no_overlap_is_seen() -> None:
    assert row(0.81, half=math.nan, colour=0.8, random=0.7).verdict == "above both floors"


def test_the_axis_begins_at_the_tenth_below_everything_on_it() -> None:
    assert axis_low([row(0.9, colour=0.8, random=0.74)]) == 0.5  # chance is 0.5
    assert axis_low([row(0.9, colour=0.37)]) == pytest.approx(0.3)  # the interval begins at 0.36
