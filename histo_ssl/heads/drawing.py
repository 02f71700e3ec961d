"""Pictures of heads: attention over its tile or region, where its top mass lies, panels side by side.

H: heads; h, w: rows and columns of a map, of patches or finer; S: sides of an image in px.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from histo_ssl.heads.maps import top_mass
from histo_ssl.slidemaps.colors import Scale
from histo_ssl.slidemaps.legend import INK, font_of, line_px, shortened

Floats = NDArray[np.float64]
Rgb = NDArray[np.uint8]

COLORMAP = "inferno"
BRIGHTEST = 99.5  # percentile of a map that has the last colour,
TELLING = 2.0  # or so many times an even share, if that is more: even attention shall look faint
FAINT, STRONG = 0.1, 0.75  # opacity of the colours where attention is lowest and highest
PAPER = 0.72  # how far towards white a tile fades outside the top mass
OUTLINE = (0, 92, 200)
CELL_OVER_LINE, THICKEST_PX = 16, 3  # a cell of a map over the line around it, and that line at most
SMALLEST_OUTLINED_PX = 4  # lines around smaller cells would hide what they surround
TEXT_SHARE = 16  # a panel is as wide as that many letters are high
SMALLEST_PX, LARGEST_PX = 11, 28  # letters


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """An image with its title."""

    title: str
    image: Image.Image


def overlay(tile_SS3: Rgb, map_hw: Floats) -> Image.Image:
    """The tile in grey with attention on it, the brighter and the more opaque the more is attended to.

    Args:
        tile_SS3: RGB.
        map_hw: >= 0; its pixels divide the tile evenly. Colours begin at 0 and end at its own highest values.
    """
    height, width = tile_SS3.shape[:2]
    highest = max(float(np.percentile(map_hw, BRIGHTEST)), TELLING * float(map_hw.mean())) or 1.0
    smooth = Image.fromarray((map_hw / highest).clip(0, 1).astype(np.float32))
    share = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    colours = Scale(colormap=COLORMAP, low=0, high=1).rgb(share[..., 0].astype(np.float64))
    opacity = FAINT + (STRONG - FAINT) * share**2
    grey = np.asarray(Image.fromarray(tile_SS3).convert("L"))[..., None]
    return Image.fromarray((grey * (1 - opacity) + colours * opacity).round().astype(np.uint8))


def picked_out(tile_SS3: Rgb, mask_hw: NDArray[np.bool_]) -> Image.Image:
    """The tile in its colours where the mask is, outlined if that leaves room, and faded elsewhere."""
    height, width = tile_SS3.shape[:2]
    image = Image.fromarray(mask_hw).resize((width, height), Image.Resampling.NEAREST)
    is_in = np.asarray(image)
    grey = np.asarray(Image.fromarray(tile_SS3).convert("L"), dtype=np.float64)[..., None]
    faded = grey * (1 - PAPER) + 255 * PAPER
    picture = np.where(is_in[..., None], tile_SS3, faded).round().astype(np.uint8)
    cell_px = width / mask_hw.shape[1]
    if cell_px >= SMALLEST_OUTLINED_PX:
        thick = max(1, min(THICKEST_PX, round(cell_px / CELL_OVER_LINE)))
        picture[is_in & ~ndimage.binary_erosion(is_in, iterations=thick, border_value=1)] = OUTLINE
    return Image.fromarray(picture)


def panels_of(tile_SS3: Rgb, maps_Hhw: Floats, *, share: float) -> list[Panel]:
    """The tile, each head, their mean, and the patches that hold a share of the mean's mass."""
    mean_hw = maps_Hhw.mean(axis=0)
    heads = [Panel(title=f"head {i + 1}", image=overlay(tile_SS3, one)) for i, one in enumerate(maps_Hhw)]
    top = picked_out(tile_SS3, top_mass(mean_hw, share=share))
    return [
        Panel(title="as scanned", image=Image.fromarray(tile_SS3)),
        *heads,
        Panel(title="mean of heads", image=overlay(tile_SS3, mean_hw)),
        Panel(title=f"{share:.0%} of the mean's mass", image=top),
    ]


def top_panels(tile_SS3: Rgb, maps_Hhw: Floats, *, share: float) -> list[Panel]:
    """The patches that hold a share of each head's mass, in the tile's own colours."""
    return [
        Panel(
            title=f"head {i + 1}: {share:.0%} of its mass",
            image=picked_out(tile_SS3, top_mass(one, share=share)),
        )
        for i, one in enumerate(maps_Hhw)
    ]


def sheet(panels: Sequence[Panel], *, n_columns: int, side_px: int) -> Image.Image:
    """Panels of one size row by row under their titles, about `side_px` wide, enlarged by whole numbers."""
    width, height = panels[0].image.size
    scale = side_px / width if width > side_px else max(1, round(side_px / width))
    size = (round(scale * width), round(scale * height))
    font = font_of(min(LARGEST_PX, max(SMALLEST_PX, size[0] // TEXT_SHARE)))
    line, gap = line_px(font), line_px(font) // 2
    n_rows = -(-len(panels) // n_columns)
    across, down = size[0] + gap, size[1] + gap + round(1.5 * line)
    page = Image.new("RGB", (gap + min(n_columns, len(panels)) * across, n_rows * down + gap), "white")
    draw = ImageDraw.Draw(page)
    for i, panel in enumerate(panels):
        row, column = divmod(i, n_columns)
        left, top = gap + column * across, row * down + round(1.5 * line)
        page.paste(panel.image.resize(size, Image.Resampling.LANCZOS), (left, top))
        title = shortened(panel.title, width_px=size[0], font=font)
        draw.text((left, top - 0.75 * line), title, fill=INK, font=font, anchor="lm")
    return page


def sized(tile_SS3: Rgb, *, side_px: int) -> Rgb:
    """The tile at about that size, so that colours are drawn on it there; enlarged by whole numbers only."""
    height, width = tile_SS3.shape[:2]
    scale = side_px / max(width, height)
    size = [max(1, round((scale if scale < 1 else round(scale)) * side)) for side in (width, height)]
    return np.asarray(Image.fromarray(tile_SS3).resize((size[0], size[1]), Image.Resampling.LANCZOS))
