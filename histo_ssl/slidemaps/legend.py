"""What says how to read a map: colour bars, lists of classes, scale bars, and marks of single tiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from histo_ssl.slidemaps.colors import Scale
from histo_ssl.slidemaps.frame import Frame, Tiles

INK, LINE = "#1f2328", "#8c959f"
N_STEPS = 4  # between the ends of a colour bar
BAR_SHARE = 0.2  # of the image's width that a scale bar has at most

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True, kw_only=True)
class ColourBar:
    """A scale from its low end, below, to its high end."""

    scale: Scale
    label: str  # written along the bar

    def draw(self, height_px: int, *, font: Font) -> Image.Image:
        """An image of that height; the bar's colours lie between half a line from its top and its bottom."""
        line = line_px(font)
        ticks = np.linspace(self.scale.low, self.scale.high, N_STEPS + 1)
        texts = [f"{tick:.4g}" for tick in ticks]
        wide = max(math.ceil(font.getlength(text)) for text in texts)
        length, thick = max(2, height_px - line), round(1.2 * line)
        image = Image.new("RGB", (thick + line // 2 + wide + line // 2 + line, height_px), "white")
        values = np.linspace(self.scale.high, self.scale.low, length)[:, None].repeat(thick, axis=1)
        image.paste(Image.fromarray(self.scale.rgb(values)), (0, line // 2))
        draw = ImageDraw.Draw(image)
        for i, text in enumerate(texts):
            y = line // 2 + round((length - 1) * (1 - i / N_STEPS))
            draw.line((thick, y, thick + line // 4, y), fill=LINE)
            draw.text((thick + line // 2, y), text, fill=INK, font=font, anchor="lm")
        words = _words(shortened(self.label, width_px=height_px, font=font), font=font)
        image.paste(words.rotate(90, expand=True), (image.width - line, (height_px - words.width) // 2))
        return image


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Names of classes beside their colours, from above in their order; what does not fit is counted."""

    names: Sequence[str]
    colors: NDArray[np.uint8]  # (K, 3)
    width_px: int  # longer names are cut

    def draw(self, height_px: int, *, font: Font) -> Image.Image:
        """An image of that height."""
        line, step = line_px(font), round(1.4 * line_px(font))
        image = Image.new("RGB", (self.width_px, height_px), "white")
        draw = ImageDraw.Draw(image)
        n_lines = max(1, height_px // step)
        n_named = len(self.names) if len(self.names) <= n_lines else n_lines - 1
        for i, name in enumerate(self.names[:n_named]):
            draw.rectangle((0, i * step, line - 1, i * step + line - 1), fill=tuple(self.colors[i].tolist()))
            text = shortened(name, width_px=self.width_px - round(1.5 * line), font=font)
            draw.text((round(1.5 * line), i * step + line / 2), text, fill=INK, font=font, anchor="lm")
        if n_named < len(self.names):
            text = f"and {len(self.names) - n_named} more"
            draw.text((0, n_named * step + line / 2), text, fill=INK, font=font, anchor="lm")
        return image


Legend = ColourBar | ClassList


def font_of(size_px: int) -> Font:
    """A sans-serif font with the letters of most of the world's alphabets: matplotlib's own."""
    return _font(size_px)


def line_px(font: Font) -> int:
    """Height of a line of text."""
    ascent, descent = font.getmetrics()
    return ascent + descent


def shortened(text: str, *, width_px: int, font: Font) -> str:
    """The text on one line, or as much of it as the width holds, and an ellipsis."""
    plain = " ".join(text.split())
    if font.getlength(plain) <= width_px:
        return plain
    while plain and font.getlength(f"{plain}…") > width_px:
        plain = plain[:-1]
    return f"{plain.rstrip()}…"


def scale_length_um(frame: Frame) -> float:
    """The longest of 1, 2 and 5 times a power of ten um that takes at most a fifth of the image's width.

    500 for an image of 1000 px at 4 um/px, where 800 um are a fifth.
    """
    assert frame.mpp is not None
    longest = BAR_SHARE * frame.size_px[0] * frame.mpp
    power = 10.0 ** math.floor(math.log10(longest))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= longest * (1 + 1e-9))


def length_text(um: float) -> str:
    """A length as people say it.

    >>> length_text(500), length_text(2000)
    ('500 µm', '2 mm')
    """
    return f"{um:g} µm" if um < 1000 else f"{um / 1000:g} mm"


def scale_bar(frame: Frame, *, font: Font) -> Image.Image:
    """A bar that is as long as `scale_length_um` on the image, to the nearest pixel, with its length."""
    um = scale_length_um(frame)
    assert frame.mpp is not None
    long, line = max(1, round(um / frame.mpp)), line_px(font)
    text = length_text(um)
    thick = max(2, line // 4)
    image = Image.new("RGB", (long + line // 2 + math.ceil(font.getlength(text)), line), "white")
    draw = ImageDraw.Draw(image)
    top = (line - thick) // 2
    draw.rectangle((0, top, long - 1, top + thick - 1), fill=INK)
    draw.text((long + line // 2, line / 2), text, fill=INK, font=font, anchor="lm")
    return image


def mark(image: Image.Image, tiles: Tiles, frame: Frame, *, texts: Sequence[str], font: Font) -> None:
    """Frame each tile on an image of `frame`, dark at its edges and white within, its text beside it."""
    draw = ImageDraw.Draw(image)
    thick = max(1, line_px(font) // 8)
    for (left, top, right, bottom), text in zip(frame.corners(tiles).round().tolist(), texts, strict=True):
        edges = (left, top, max(left, right - 1), max(top, bottom - 1))
        draw.rectangle(edges, outline="white", width=2 * thick)
        draw.rectangle(edges, outline=INK, width=thick)
        is_at_right = right + font.getlength(text) + 2 * thick < image.width
        place, anchor = ((right + thick, top), "la") if is_at_right else ((left - thick, top), "ra")
        draw.text(place, text, fill=INK, font=font, anchor=anchor, stroke_width=2, stroke_fill="white")


@cache
def _font(size_px: int) -> Font:
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


def _words(text: str, *, font: Font) -> Image.Image:
    image = Image.new("RGB", (max(1, math.ceil(font.getlength(text))), line_px(font)), "white")
    ImageDraw.Draw(image).text((0, image.height / 2), text, fill=INK, font=font, anchor="lm")
    return image
