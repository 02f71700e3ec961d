"""Legends say what a map says: the same colours for the same numbers, lengths to the pixel."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from histo_ssl.slidemaps.colors import Scale, palette
from histo_ssl.slidemaps.frame import Frame, Tiles
from histo_ssl.slidemaps.legend import (
    ClassList,
    ColourBar,
    font_of,
    length_text,
    line_px,
    mark,
    scale_bar,
    scale_length_um,
    shortened,
)

FONT = font_of(12)
INK = (31, 35, 40)
SCALE = Scale(colormap="viridis", low=0.0, high=100.0)


def frame_of(width_px: int, *, mpp: float) -> Frame:
    return Frame.whole((1000, 500), size_px=(width_px, width_px // 2), slide_mpp=mpp * width_px / 1000)


def test_a_colour_bar_runs_evenly_from_high_above_to_low_below() -> None:
    bar = np.asarray(ColourBar(scale=SCALE, label="attention").draw(300, font=FONT))
    half = line_px(FONT) // 2
    column = bar[half : 300 - line_px(FONT) + half, 3]
    np.testing.assert_array_equal(column, SCALE.rgb(np.linspace(100, 0, 300 - line_px(FONT))))
    assert (bar[:half, 3] == 255).all()
    assert bar.shape[0] == 300


def test_a_colour_bar_has_its_ticks_where_their_colours_are() -> None:
    image = ColourBar(scale=SCALE, label="").draw(301, font=FONT)
    line = line_px(FONT)
    beside = np.asarray(image)[:, round(1.2 * line) + 1]  # just right of the colours
    found = np.flatnonzero((beside != 255).any(axis=1)) - line // 2
    np.testing.assert_array_equal(found, np.round(np.linspace(0, 300 - line, 5)))


def test_a_label_that_is_longer_than_its_bar_is_cut() -> None:
    short = ColourBar(scale=SCALE, label="percentile within the slide" * 9).draw(60, font=FONT)
    assert short.height == 60


@pytest.mark.parametrize(
    ("width_px", "mpp", "um"),
    [
        (1000, 4.0, 500),
        (1000, 2.5, 500),
        (1000, 2.4, 200),
        (800, 0.5, 50),
        (1500, 8.0, 2000),
        (100, 0.02, 0.2),
    ],
)
def test_a_scale_bar_is_the_longest_round_length_within_a_fifth(width_px: int, mpp: float, um: float) -> None:
    frame = frame_of(width_px, mpp=mpp)
    assert scale_length_um(frame) == pytest.approx(um)
    bar = np.asarray(scale_bar(frame, font=FONT))
    row = bar[line_px(FONT) // 2]
    n_dark = int((row == INK).all(axis=1).argmin())
    assert n_dark == round(um / mpp)
    assert 0.08 <= n_dark / width_px <= 0.2


def test_lengths_are_said_in_the_unit_that_people_use() -> None:
    texts = [length_text(um) for um in (0.2, 50, 500, 1000, 20_000)]
    assert texts == ["0.2 µm", "50 µm", "500 µm", "1 mm", "20 mm"]


def test_classes_stand_beside_their_colours_in_their_order() -> None:
    colors = palette(3)
    image = np.asarray(ClassList(names=["a", "b", "c"], colors=colors, width_px=80).draw(200, font=FONT))
    step = round(1.4 * line_px(FONT))
    np.testing.assert_array_equal(image[[3, step + 3, 2 * step + 3], 3], colors)
    assert (image[3 * step :, 3] == 255).all()


def test_classes_that_do_not_fit_are_counted_instead_of_drawn() -> None:
    height = 4 * round(1.4 * line_px(FONT))
    image = ClassList(names=list("abcdefgh"), colors=palette(8), width_px=90).draw(height, font=FONT)
    colors = {color for _, color in image.getcolors(10_000)}
    assert [tuple(color) in colors for color in palette(8).tolist()] == [True] * 3 + [False] * 5
    expected = Image.new("RGB", (90, line_px(FONT)), "white")
    ImageDraw.Draw(expected).text((0, line_px(FONT) / 2), "and 5 more", fill=INK, font=FONT, anchor="lm")
    top = 3 * round(1.4 * line_px(FONT))
    np.testing.assert_array_equal(np.asarray(image)[top : top + line_px(FONT)], np.asarray(expected))


def test_text_is_cut_to_its_width_and_set_on_one_line() -> None:
    assert shortened("two\n lines", width_px=500, font=FONT) == "two lines"
    cut = shortened("a long name of a class", width_px=60, font=FONT)
    assert cut.endswith("…")
    assert FONT.getlength(cut) <= 60 < FONT.getlength("a long name of a class")


def test_a_tile_is_framed_just_inside_its_edges() -> None:
    image = Image.new("RGB", (200, 100), (0, 0, 255))
    frame = Frame.whole((2000, 1000), size_px=(200, 100), slide_mpp=None)
    mark(image, Tiles(xy_level0=np.array([[500, 300]]), side_level0=200), frame, texts=[""], font=FONT)
    rows, columns = np.nonzero((np.asarray(image) == INK).all(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 30, 69, 49)
    inside = np.asarray(image)[34:46, 54:66]
    assert (inside == (0, 0, 255)).all()


@pytest.mark.parametrize(("x", "is_right"), [(100, True), (1750, False)])
def test_a_mark_has_its_text_where_there_is_room(x: int, is_right: bool) -> None:
    image = Image.new("RGB", (200, 100), (0, 0, 255))
    frame = Frame.whole((2000, 1000), size_px=(200, 100), slide_mpp=None)
    mark(image, Tiles(xy_level0=np.array([[x, 300]]), side_level0=200), frame, texts=["12"], font=FONT)
    columns = np.nonzero((np.asarray(image) == INK).all(axis=2))[1]
    outside = columns[(columns < x // 10) | (columns >= x // 10 + 20)]
    assert len(outside) > 5
    assert (outside > x // 10).all() == is_right
