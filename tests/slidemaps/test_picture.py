"""A picture for people keeps the map's pixels as they are."""

import numpy as np
import pytest
from PIL import Image

from histo_ssl.slidemaps.colors import Scale
from histo_ssl.slidemaps.frame import Frame
from histo_ssl.slidemaps.legend import ColourBar
from histo_ssl.slidemaps.picture import PERCENTILE_NOTE, Panel, picture, places, text_px

SCALE = Scale(colormap="viridis", low=0.0, high=100.0)
BAR = ColourBar(scale=SCALE, label="attention, percentile within the slide")


def coordinates(width: int, height: int, *, blue: int) -> Image.Image:
    """Pixels that are their own coordinates."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns % 256, rows % 256, 0 * rows + blue], axis=2).astype(np.uint8))


@pytest.mark.parametrize("size", [(120, 90), (640, 200), (30, 300)])
def test_each_image_stands_unscaled_where_it_is_said_to(size: tuple[int, int]) -> None:
    frame = Frame.whole((6400, 2000), size_px=size, slide_mpp=0.5)
    panels = [Panel(image=coordinates(*size, blue=blue), title=f"<{blue}>" * 30) for blue in (0, 200)]
    drawn = picture(panels, frame, legend=BAR, note=PERCENTILE_NOTE)
    for panel, (x, y) in zip(panels, places(2, frame), strict=True):
        found = drawn.crop((x, y, x + size[0], y + size[1]))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(panel.image))


def test_what_is_not_known_or_asked_takes_no_room() -> None:
    known, unknown = (Frame.whole((6400, 2000), size_px=(320, 100), slide_mpp=mpp) for mpp in (0.5, None))
    panels = [Panel(image=coordinates(320, 100, blue=0), title="slide")]
    full = picture(panels, known, legend=BAR, note="Said so.")
    bare = picture(panels, unknown, legend=None, note="")
    gap = places(1, known)[0][0]
    assert bare.size == (320 + 2 * gap, 100 + 3 * gap)
    assert full.width > bare.width
    assert full.height == bare.height + 2 * round(1.3 * gap)  # a bar and a line


def test_the_same_map_gives_the_same_bytes() -> None:
    frame = Frame.whole((6400, 2000), size_px=(320, 100), slide_mpp=0.5)
    panels = [Panel(image=coordinates(320, 100, blue=0), title="Schnitt 1, größte")]
    first, second = (picture(panels, frame, legend=BAR, note="Said so.").tobytes() for _ in range(2))
    assert first == second


def test_letters_suit_the_image() -> None:
    sizes = [text_px(Frame.whole((10, 10), size_px=(side, 5), slide_mpp=None)) for side in (50, 1100, 8000)]
    assert sizes == [11, 20, 48]


def test_an_image_of_another_size_is_refused() -> None:
    frame = Frame.whole((6400, 2000), size_px=(320, 100), slide_mpp=0.5)
    with pytest.raises(ValueError, match="the image 'x' has \\(100, 320\\) px, its frame \\(320, 100\\)"):
        picture([Panel(image=coordinates(100, 320, blue=0), title="x")], frame, legend=None, note="")
