"""Heads over a slide: where patches lie, what is stored, and that the picture has it at its place."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from histo_ssl.heads.over_slides import SlideHeads, panels_over
from histo_ssl.slidemaps.frame import Frame
from histo_ssl.slidemaps.heatmap import value_map

SIDE = 40


def _seen(side: int = SIDE) -> SlideHeads:
    """Three tiles, 4 x 4 patches, 2 heads: the first looks at one corner, the second everywhere alike."""
    maps = np.full((3, 2, 4, 4), 0.9 / 16)
    maps[:, 0] = 0
    maps[:, 0, 0, 3] = 0.5  # upper right
    coords = np.array([[0, 0], [side, 0], [2 * side, side]])
    return SlideHeads.of_maps(maps, coords=coords, side_level0=side)


def _bytes(seen: SlideHeads) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **dict(seen.arrays()))  # type: ignore[arg-type]
    return content.getvalue()


def test_attention_is_told_as_times_an_even_share_and_narrowness_in_bits() -> None:
    seen = _seen()
    assert seen.n_heads == 2
    assert seen.attention_NHhw[1, 0, 0].tolist() == [0, 0, 0, 16]
    assert seen.attention_NHhw[:, 1] == pytest.approx(1, abs=1e-3)
    assert seen.narrowness_NH == pytest.approx(np.array([[4, 0]] * 3), abs=1e-6)
    assert seen.of_tiles(None).tolist() == [2, 2, 2]
    assert seen.of_patches(None).max() == pytest.approx(8.5, abs=1e-2)


@pytest.mark.parametrize("side", [40, 42])  # divided evenly by 4 or not
def test_every_patch_lies_where_it_was_seen(side: int) -> None:
    seen = _seen(side)
    frame = Frame.whole((3 * side, 2 * side), size_px=(3 * side, 2 * side), slide_mpp=None)
    drawn = value_map(seen.of_patches(0), seen.patches(), frame)
    expected: NDArray[np.bool_] = np.zeros((2 * side, 3 * side), dtype=bool)
    for x, y in seen.coords:
        expected[y : y + side, x : x + side] = True
    assert ((drawn.covered > 0.999) == expected).all()  # no gap between patches, none beyond a tile
    quarter = side // 4
    assert (drawn.values[1 : quarter - 1, side - quarter + 1 : side - 1] == 16).all()
    assert (drawn.values[quarter + 2 : side, :side] == 0).all()


def test_coarser_squares_have_the_mean_of_their_patches() -> None:
    halves, tiles = _seen().pooled()
    assert halves.attention_NHhw[0, 0].tolist() == [[0, 4], [0, 0]]
    assert tiles.attention_NHhw == pytest.approx(1, abs=1e-3)
    assert (halves.patches().side_level0, tiles.patches().side_level0) == (SIDE // 2, SIDE)


def test_what_is_stored_is_read_again_and_anything_else_refused(tmp_path: Path) -> None:
    path, seen = tmp_path / "s.npz", _seen()
    path.write_bytes(_bytes(seen))
    again = SlideHeads.read(path)
    assert again.side_level0 == SIDE
    for name, array in seen.arrays().items():
        assert (again.arrays()[name] == array).all()
    other = SlideHeads(
        coords=seen.coords[:2],
        side_level0=SIDE,
        attention_NHhw=seen.attention_NHhw,
        narrowness_NH=seen.narrowness_NH,
    )
    for content in (b"", b"no", _bytes(seen)[:200], _bytes(other)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a file of heads over a slide"):
            SlideHeads.read(path)


def test_panels_are_the_part_with_tiles_under_each_head() -> None:
    thumbnail = np.full((4 * SIDE, 8 * SIDE, 3), 200, np.uint8)
    panels = panels_over(_seen(), thumbnail, size_level0=(8 * SIDE, 4 * SIDE))
    assert [panel.title for panel in panels] == ["as scanned", "head 1", "head 2", "mean of heads"]
    sizes = {panel.image.size for panel in panels}
    assert len(sizes) == 1
    assert sizes.pop()[0] < 4 * SIDE  # cut to three tiles and a margin
    head = np.asarray(panels[1].image).astype(int)
    bright = head[1 : SIDE // 4 - 1, 3 * SIDE // 4 + 1 : SIDE - 1].sum(axis=-1).mean()
    assert bright > head[SIDE // 2 : SIDE - 1, 1 : SIDE // 2].sum(axis=-1).mean() + 100
