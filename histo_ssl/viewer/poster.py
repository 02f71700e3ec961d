"""A slide with one of its maps as a PNG of any size, with legend and scale bar."""

import difflib
from pathlib import Path

from PIL import Image

from histo_ssl.folders.artifacts import write_image
from histo_ssl.slidemaps.frame import Frame
from histo_ssl.slidemaps.heatmap import drawn_over
from histo_ssl.slidemaps.picture import PERCENTILE_NOTE, Panel, picture
from histo_ssl.viewer.layers import Layer
from histo_ssl.viewer.maps import Numbers
from histo_ssl.viewer.shelf import Shelf
from histo_ssl.viewer.tables import PERCENTILE
from histo_ssl.viewer.tilesets import Shown

WIDTH_PX = 2000  # enough for a page


def write_poster(
    shelf: Shelf, to: Path, *, slide: str, layer: str, width_px: int | None, opacity: float
) -> None:
    """Write a slide, over it one of its maps where a layer is named, as a PNG.

    Args:
        shelf: where both are.
        to: the file.
        slide: its name.
        layer: the beginning of the map's title, or any part of it that no other has; "" for none.
        width_px: of the slide on the picture, the legend stands beside it; None: `WIDTH_PX`, or all.
        opacity: of the map, 0-1.

    Raises:
        ValueError: a name fits none or several, or the size can't be had.
    """
    shown = _slide_named(shelf, slide)
    if shown.reason:
        raise ValueError(shown.reason)
    w, _ = shown.size_level0
    width_px = min(WIDTH_PX, w) if width_px is None else width_px
    if not 1 <= width_px <= w or not 0 <= opacity <= 1:
        raise ValueError(
            f"--width {width_px} --opacity {opacity:g}: 1 to {w} px of {slide} and 0 to 1 are expected"
        )
    frame = Frame.of_width(shown.size_level0, width_px=width_px, slide_mpp=shown.mpp)
    thumbnail = shown.slide.thumbnail(shown.slide.mpp * w / width_px)
    frame = Frame.whole(shown.size_level0, size_px=thumbnail.shape[1::-1], slide_mpp=shown.mpp)
    if not layer:
        write_image(
            to,
            picture([Panel(image=Image.fromarray(thumbnail), title=shown.name)], frame, legend=None, note=""),
        )
        return
    chosen = _layer_named(list(shelf.layers(shown.id).values()), layer)
    found = chosen.read()
    drawn = found.layer(frame)
    image = (
        Image.fromarray(thumbnail)
        if drawn is None
        else drawn_over(thumbnail, drawn, opacity=opacity, is_grey=True)
    )
    panel = Panel(image=image, title=f"{shown.name}: {_title(chosen)}")
    is_ranked = isinstance(found.drawn, Numbers) and found.drawn.label.startswith(PERCENTILE)
    note = PERCENTILE_NOTE if is_ranked else ""
    write_image(to, picture([panel], frame, legend=found.drawn.legend(), note=note))


def _title(layer: Layer) -> str:
    return f"{layer.variant}: {layer.title}" if layer.variant else layer.title


def _slide_named(shelf: Shelf, name: str) -> Shown:
    """The slide of that name, or that number."""
    found = [shown for shown in shelf.slides.values() if name in (shown.name, shown.id)]
    if len(found) == 1:
        return found[0]
    names = [shown.name for shown in shelf.slides.values()]
    if found:
        raise ValueError(f"--png {name}: {len(found)} slides have that name; name one folder of tiles")
    close = difflib.get_close_matches(name, names, n=3) or sorted(names)[:3]
    raise ValueError(f"--png {name}: no such slide; there are {len(names)}, such as {', '.join(close)}")


def _layer_named(layers: list[Layer], name: str) -> Layer:
    titles = [_title(layer) for layer in layers]
    for fits in (str.__eq__, str.startswith, str.__contains__):
        found = [layer for layer, title in zip(layers, titles, strict=True) if fits(title, name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"--layer {name}: fits {len(found)} maps; one of {'; '.join(map(_title, found))}"
            )
    raise ValueError(f"--layer {name}: no such map; there are {'; '.join(titles) or 'none'}")
