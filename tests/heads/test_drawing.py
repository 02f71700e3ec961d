"""Pictures of heads: what is attended to is bright and keeps its place, what holds no mass fades."""

import numpy as np
from PIL import Image

from histo_ssl.heads.chart import DIVERGING, Chart, draw
from histo_ssl.heads.drawing import (
    OUTLINE,
    PAPER,
    Panel,
    overlay,
    panels_of,
    picked_out,
    sheet,
    sized,
    top_panels,
)

TILE = np.full((64, 64, 3), (180, 60, 160), np.uint8)
ONE = np.zeros((4, 4))
ONE[1, 2] = 1.0  # rows 16 to 32, columns 32 to 48


def test_an_overlay_is_brightest_where_attention_is_highest() -> None:
    grey = int(np.asarray(Image.fromarray(TILE).convert("L"))[0, 0])
    seen = np.asarray(overlay(TILE, ONE)).astype(int)
    assert seen[24, 40].sum() > seen[24, 8].sum() + 150
    assert np.abs(seen[56, 8] - 0.9 * grey).max() <= 2  # black at an opacity of .1
    y, x = np.unravel_index(seen.sum(axis=2).argmax(), (64, 64))
    assert (16 <= y < 32, 32 <= x < 48) == (True, True)


def test_even_attention_looks_fainter_than_a_peak_and_the_same_everywhere() -> None:
    even, peak = (np.asarray(overlay(TILE, one)).astype(int).sum(axis=2) for one in (np.ones((4, 4)), ONE))
    assert even.std() == 0
    assert even[24, 40] < peak[24, 40] - 150


def test_a_map_of_nothing_is_drawn_all_the_same() -> None:
    assert np.asarray(overlay(TILE, np.zeros((4, 4)))).std(axis=(0, 1)).max() == 0


def test_the_top_mass_keeps_its_colours_within_an_outline_and_the_rest_fades() -> None:
    seen = np.asarray(picked_out(TILE, ONE > 0))
    grey = int(np.asarray(Image.fromarray(TILE).convert("L"))[0, 0])
    assert seen[24, 40].tolist() == TILE[0, 0].tolist()
    assert seen[16, 40].tolist() == list(OUTLINE)
    assert seen[8, 8].tolist() == [round(grey * (1 - PAPER) + 255 * PAPER)] * 3


def test_a_tile_has_a_panel_for_itself_each_head_their_mean_and_the_top_mass() -> None:
    panels = panels_of(TILE, np.stack([ONE, 1 - ONE]), share=0.6)
    titles = ["as scanned", "head 1", "head 2", "mean of heads", "60% of the mean's mass"]
    assert [panel.title for panel in panels] == titles
    assert [panel.title for panel in top_panels(TILE, ONE[None], share=0.5)] == ["head 1: 50% of its mass"]


def test_a_sheet_shows_every_panel_unchanged_but_for_its_scale() -> None:
    panels = [Panel(title=str(i), image=Image.new("RGB", (32, 32), (i * 40, 0, 0))) for i in range(5)]
    page = np.asarray(sheet(panels, n_columns=3, side_px=64))
    for i in range(5):
        assert (page == (i * 40, 0, 0)).all(axis=2).sum() >= 64 * 64


def test_small_tiles_are_enlarged_by_whole_numbers_and_large_ones_made_to_fit() -> None:
    assert sized(TILE, side_px=250).shape == (256, 256, 3)
    assert sized(TILE, side_px=70).shape == (64, 64, 3)
    assert sized(np.zeros((100, 400, 3), np.uint8), side_px=40).shape == (10, 40, 3)


def test_cells_that_are_too_small_have_no_outline() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 8:24] = True
    assert not (np.asarray(picked_out(TILE, mask)) == OUTLINE).all(axis=2).any()


def test_a_chart_is_the_same_twice_and_marks_what_was_not_measured() -> None:
    chart = Chart(
        title="t",
        rows=["a", "b"],
        columns=["x"],
        values=np.array([[0.9], [np.nan]]),
        is_framed=np.array([[True], [False]]),
        low=0.0,
        high=1.0,
        label="AUC",
        colormap=DIVERGING,
    )
    first, second = (np.asarray(draw(chart)) for _ in range(2))
    assert (first == second).all()
    assert ((first[..., 2] > first[..., 0].astype(int) + 40).sum()) > 500  # purple: above the middle
