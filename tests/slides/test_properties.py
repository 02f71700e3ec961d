"""Grid, windows and index hold for whatever hypothesis thinks of."""

import math
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from histo_ssl.slides.grid import ROUNDING, TileSpec, tile_grid
from histo_ssl.slides.index import TileIndex, write_index
from histo_ssl.slides.windows import (
    clipped,
    downsample,
    is_empty,
    is_untouched,
    margins,
    whole,
    with_context,
)
from histo_ssl.units import MicronsPerPx, TilePx

thorough = settings(max_examples=150, deadline=None, derandomize=True)
sides = st.integers(1, 60)
masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda hw: st.lists(st.booleans(), min_size=hw[0] * hw[1], max_size=hw[0] * hw[1]).map(
        lambda values: np.array(values).reshape(hw)
    )
)


def overlap(start: int, stop: int, n: int, length: int) -> list[Fraction]:
    """How much of each of n equal parts of a length lies within start to stop, in px."""
    edges = [Fraction(i * length, n) for i in range(n + 1)]
    return [
        max(Fraction(0), min(edges[i + 1], Fraction(stop)) - max(edges[i], Fraction(start))) for i in range(n)
    ]


@thorough
@given(
    mask=masks, w=sides, h=sides, size=st.integers(1, 25), stride=st.integers(1, 25), share=st.floats(0, 1)
)
def test_the_grid_is_all_tiles_inside_the_scan_whose_exact_share_of_tissue_is_enough(
    mask: np.ndarray, w: int, h: int, size: int, stride: int, share: float
) -> None:
    half = MicronsPerPx(0.5)
    spec = TileSpec(size_px=TilePx(size), mpp=half, stride_px=TilePx(stride), min_tissue=share)
    expected = []
    for y in range(0, h - size + 1, stride):
        for x in range(0, w - size + 1, stride):
            rows = overlap(y, y + size, mask.shape[0], h)
            columns = overlap(x, x + size, mask.shape[1], w)
            covered = sum(
                r * c
                for r, line in zip(rows, mask, strict=True)
                for c, is_in in zip(columns, line, strict=True)
                if is_in
            )
            if covered >= size * size * (Fraction(share) - Fraction(ROUNDING)):
                expected.append([x, y])
    assert tile_grid(mask, spec, size_level0=(w, h), slide_mpp=half).tolist() == expected


@thorough
@given(
    mpp=st.floats(0.1, 2),
    slide_mpp=st.floats(0.1, 2),
    w=st.integers(1, 300),
    h=st.integers(1, 300),
    size=st.integers(1, 600),
)
def test_tiles_lie_inside_the_scan_at_any_resolution(
    mpp: float, slide_mpp: float, w: int, h: int, size: int
) -> None:
    spec = TileSpec(size_px=TilePx(size), mpp=MicronsPerPx(mpp), stride_px=TilePx(size), min_tissue=0)
    if slide_mpp > 1.05 * mpp:
        return
    side = spec.side_level0(MicronsPerPx(slide_mpp))
    xy = tile_grid(np.ones((3, 5), bool), spec, size_level0=(w, h), slide_mpp=MicronsPerPx(slide_mpp))
    assert len(xy) == len({tuple(place) for place in xy.tolist()}) == (w // side) * (h // side)
    assert (xy >= 0).all()
    assert (xy + side <= (w, h)).all()


@thorough
@given(k=st.integers(1, 64), n=st.integers(1, 3000), more=st.booleans(), data=st.data())
def test_a_level_that_is_reduced_by_a_whole_number_has_that_downsample(
    k: int, n: int, more: bool, data: st.DataObject
) -> None:
    side = 2 * k + n  # beyond, a remainder can't look like another whole number
    remainder = data.draw(st.integers(0, k - 1))
    assert downsample(side * k + remainder, side + (more and remainder > 0)) == k


coordinates = st.floats(-50, 150, allow_nan=False)
boxes = st.tuples(coordinates, coordinates, st.floats(0.01, 90), st.floats(0.01, 90)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
sizes = st.tuples(st.integers(1, 100), st.integers(1, 100))


@thorough
@given(box=boxes, size=sizes, level=sizes)
def test_windows_hold_what_they_must_and_no_more_than_there_is(
    box: tuple[float, float, float, float], size: tuple[int, int], level: tuple[int, int]
) -> None:
    inner, context = whole(box), with_context(box, size=size, level_size=level)
    for window in (inner, context):
        assert all(a <= b for a, b in zip(window[:2], box[:2], strict=True))
        assert all(a >= b for a, b in zip(window[2:], box[2:], strict=True))
    assert all(a <= b for a, b in zip(context[:2], inner[:2], strict=True))
    assert all(a >= b for a, b in zip(context[2:], inner[2:], strict=True))
    # What it has beyond the box lies on the level.
    assert all(a == b or a >= 0 for a, b in zip(context[:2], inner[:2], strict=True))
    assert all(a == b or a <= side for a, b, side in zip(context[2:], inner[2:], level, strict=True))
    stored = clipped(context, level)
    assert 0 <= stored[0] <= stored[2] <= level[0]
    assert 0 <= stored[1] <= stored[3] <= level[1]
    if not is_empty(stored):
        pixels = np.pad(np.zeros((stored[3] - stored[1], stored[2] - stored[0], 3)), margins(stored, context))
        assert pixels.shape == (context[3] - context[1], context[2] - context[0], 3)
    if is_untouched(box, size):
        assert inner == tuple(map(math.floor, box))


words = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12)
counts = st.lists(st.integers(0, 6), min_size=1, max_size=6)


@settings(thorough, max_examples=60)
@given(n_tiles=counts, data=st.data())
def test_an_index_gives_back_the_tiles_and_the_text_that_it_was_given(
    n_tiles: list[int], data: st.DataObject
) -> None:
    xy = [
        np.array(
            data.draw(st.lists(st.tuples(*[st.integers(0, 2**31 - 1)] * 2), min_size=n, max_size=n)), np.int32
        ).reshape(n, 2)
        for n in n_tiles
    ]
    texts = data.draw(st.lists(st.tuples(words, words), min_size=len(xy), max_size=len(xy)))
    names = ("width_px", "height_px", "n_levels", "n_unwritten", "n_bytes", "modified_ns")
    whole_numbers = st.integers(0, 2**62)
    numbers = {name: data.draw(st.lists(whole_numbers, min_size=len(xy), max_size=len(xy))) for name in names}
    status = pd.DataFrame(
        {
            "slide_id": [a for a, _ in texts],
            "label": [b for _, b in texts],
            **numbers,
            "mpp": 0.25,
            "tissue_mm2": 0.1,
            "seconds": 0.2,
            "n_tiles": n_tiles,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), status=status, xy_level0=xy)
        index = TileIndex(Path(folder))
        for i, places in enumerate(xy):
            np.testing.assert_array_equal(index.of_slide(i), places)
        assert len(index) == sum(n_tiles)
        assert index.slides["slide_id"].tolist() == [a for a, _ in texts]
        assert index.slides["label"].tolist() == [b for _, b in texts]
        for name, values in numbers.items():
            assert index.slides[name].tolist() == values
        del index
