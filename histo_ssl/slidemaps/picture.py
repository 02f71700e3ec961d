"""A map as a picture for people: with a heading, a legend, a scale bar and a sentence on how to read it."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from histo_ssl.slidemaps.frame import Frame
from histo_ssl.slidemaps.legend import INK, Font, Legend, font_of, line_px, scale_bar, shortened

TEXT_SHARE = 55  # the image's longer side is as long as that many letters are high
SMALLEST_PX, LARGEST_PX = 11, 48  # letters
NOTE = "#57606a"
PERCENTILE_NOTE = (
    "Colours are ranks within this slide (100: the tile with the highest attention), since attention weights "
    "depend on the number of tiles; they can't be compared between slides."
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One image of the slide, as drawn in a frame."""

    image: Image.Image
    title: str


def text_px(frame: Frame) -> int:
    """Height of letters that suits an image."""
    return min(LARGEST_PX, max(SMALLEST_PX, max(frame.size_px) // TEXT_SHARE))


def picture(panels: Sequence[Panel], frame: Frame, *, legend: Legend | None, note: str) -> Image.Image:
    """Images of one frame side by side, the legend at their right, scale bar and note below them.

    Each image stands unscaled at the place that `places` says; without um/px there is no scale bar.

    Raises:
        ValueError: an image is not of the frame's size.
    """
    font = font_of(text_px(frame))
    gap = line_px(font)
    spots = places(len(panels), frame)
    right, bottom = spots[-1][0] + frame.size_px[0] + gap, spots[-1][1] + frame.size_px[1]
    key = legend.draw(frame.size_px[1], font=font) if legend else Image.new("RGB", (0, 0))
    width = right + (key.width + gap if legend else 0)
    below = _below(frame, note, width_px=width - 2 * gap, font=font)
    sheet = Image.new("RGB", (width, bottom + gap + below.height), "white")
    for panel, place in zip(panels, spots, strict=True):
        _put(sheet, panel, place=place, frame=frame, font=font)
    sheet.paste(key, (right, spots[0][1]))
    sheet.paste(below, (gap, bottom + gap // 2))
    return sheet


def places(n_panels: int, frame: Frame) -> list[tuple[int, int]]:
    """Left and top edges of the images of a picture, px."""
    gap = line_px(font_of(text_px(frame)))
    return [(gap + i * (frame.size_px[0] + gap), 2 * gap) for i in range(n_panels)]


def _put(sheet: Image.Image, panel: Panel, *, place: tuple[int, int], frame: Frame, font: Font) -> None:
    """An image at its place, its title above it."""
    if panel.image.size != frame.size_px:
        raise ValueError(
            f"the image '{panel.title}' has {panel.image.size} px, its frame {frame.size_px}; the same "
            "is expected"
        )
    sheet.paste(panel.image, place)
    title = shortened(panel.title, width_px=frame.size_px[0], font=font)
    middle = place[1] - round(0.75 * line_px(font))
    ImageDraw.Draw(sheet).text((place[0], middle), title, fill=INK, font=font, anchor="lm")


def _below(frame: Frame, note: str, *, width_px: int, font: Font) -> Image.Image:
    """The scale bar, where um/px is known, and the note in lines."""
    lines, step = _wrapped(note, width_px=width_px, font=font), round(1.3 * line_px(font))
    n_bars = 0 if frame.mpp is None else 1
    image = Image.new("RGB", (width_px, (n_bars + len(lines)) * step), "white")
    if n_bars:
        image.paste(scale_bar(frame, font=font), (0, 0))
    draw = ImageDraw.Draw(image)
    for i, text in enumerate(lines, start=n_bars):
        draw.text((0, i * step + line_px(font) / 2), text, fill=NOTE, font=font, anchor="lm")
    return image


def _wrapped(text: str, *, width_px: int, font: Font) -> list[str]:
    """The text in lines that are not wider than that."""
    n_letters = max(10, int(width_px / font.getlength("abcdefghij") * 10))
    lines = textwrap.wrap(text, n_letters)
    return [shortened(line, width_px=width_px, font=font) for line in lines]
