"""Pictures as bytes small enough to travel inside the report: photographs, plots of many points."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

LOOKS = (("#4b3f8f", "-"), ("#c2501f", "--"), ("#57606a", ":"))  # of a panel's lines: no need to see colours
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": "#57606a",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
}
JPEG_QUALITY = 82
SHRINK = 0.9  # of the side that would just do, when a picture is over its budget


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image with the words for those who can't see it."""

    title: str
    alt: str
    media_type: str
    content: bytes


def photograph(path: Path, *, title: str, alt: str, max_side_px: int, budget_bytes: int) -> Picture:
    """A picture file as a JPEG within `max_side_px` and `budget_bytes`; white where it was transparent."""
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    flat.thumbnail((max_side_px, max_side_px))
    content = _jpeg(flat)
    while len(content) > budget_bytes and max(flat.size) > 1:
        share = SHRINK * min(1.0, math.sqrt(budget_bytes / len(content)))
        flat = flat.resize((max(1, int(flat.width * share)), max(1, int(flat.height * share))))
        content = _jpeg(flat)
    return Picture(title=title, alt=alt, media_type="image/jpeg", content=content)


def png(figure: Figure) -> bytes:
    """A figure with many points, which would be a large SVG; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
    return stream.getvalue()
