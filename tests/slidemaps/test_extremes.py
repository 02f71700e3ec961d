"""The extreme tiles of a slide, none of them twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histo_ssl.slidemaps.extremes import extremes, ranks
from histo_ssl.slidemaps.frame import Tiles


def row(*xs: int, side: int) -> Tiles:
    return Tiles(xy_level0=np.array([[x, 0] for x in xs]), side_level0=side)


def test_touching_tiles_are_taken_by_their_scores() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.3, 0.2])
    found = extremes(scores, row(0, 10, 20, 30, 40, 50, side=10), k=2)
    assert found.top.tolist() == [1, 3]
    assert found.bottom.tolist() == [0, 5]


def test_of_overlapping_tiles_only_the_most_extreme_counts() -> None:
    # A hot spot at 100 seen by four tiles, a second at 200; a cold one at 300 seen by three, a second at 400.
    tiles = row(96, 98, 100, 104, 200, 300, 302, 304, 400, 500, side=10)
    scores = np.array([6.0, 8.0, 9.0, 7.0, 5.0, -9.0, -8.0, -7.0, -6.0, 0.0])
    found = extremes(scores, tiles, k=2)
    assert found.top.tolist() == [2, 4]
    assert found.bottom.tolist() == [5, 8]


def test_tiles_of_a_column_overlap_only_if_they_do_so_along_both_axes() -> None:
    tiles = Tiles(xy_level0=np.array([[0, 0], [5, 10], [0, 20], [9, 0], [90, 90], [0, 60]]), side_level0=10)
    found = extremes(np.array([6.0, 5.0, 4.0, 5.5, 1.0, 0.0]), tiles, k=3)
    assert found.top.tolist() == [0, 1]  # 3 overlaps 0; 2 is in the lower half
    assert found.bottom.tolist() == [5, 4, 2]


def test_few_tiles_are_shared_between_top_and_bottom() -> None:
    for n, top, bottom in ((1, [0], []), (2, [1], [0]), (3, [2, 1], [0]), (4, [3, 2], [0, 1])):
        found = extremes(np.arange(n, dtype=float), row(*range(0, 10 * n, 10), side=10), k=9)
        assert (found.top.tolist(), found.bottom.tolist()) == (top, bottom)
    none = Tiles(xy_level0=np.zeros((0, 2), dtype=int), side_level0=10)
    assert len(extremes(np.zeros(0), none, k=3).top) == 0


def test_equal_scores_are_taken_in_the_order_of_their_tiles() -> None:
    found = extremes(np.zeros(6), row(*range(0, 60, 10), side=10), k=2)
    assert (found.top.tolist(), found.bottom.tolist()) == ([0, 1], [5, 4])


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(-9, 9)), min_size=1, max_size=40),
    st.integers(1, 8),
)
def test_no_two_overlap_and_none_that_is_apart_was_passed_over(spots, k) -> None:
    xy, scores = np.array([spot[:2] for spot in spots]), np.array([spot[2] for spot in spots], dtype=float)
    found = extremes(scores, Tiles(xy_level0=xy, side_level0=7), k=k)

    def overlap(i: int, j: int) -> bool:
        return bool((np.abs(xy[i] - xy[j]) < 7).all())

    order = sorted(range(len(spots)), key=lambda i: (-scores[i], i))
    n_upper = (len(spots) + 1) // 2
    for chosen, candidates in ((found.top, order[:n_upper]), (found.bottom, order[n_upper:][::-1])):
        expected: list[int] = []
        for i in candidates:
            if len(expected) < k and not any(overlap(i, j) for j in expected):
                expected.append(i)
        assert chosen.tolist() == expected


def test_ranks_count_from_the_highest_and_equal_scores_share_the_better() -> None:
    assert ranks(np.array([2.0, 5.0, 5.0, -1.0])).tolist() == [3, 1, 1, 4]


def test_scores_without_an_order_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        extremes(np.array([1.0, np.nan]), row(0, 10, side=10), k=1)
    with pytest.raises(ValueError, match="scores of shape \\(3,\\) for 2 tiles"):
        extremes(np.zeros(3), row(0, 10, side=10), k=1)
