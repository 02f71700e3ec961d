"""Which pictures go into a page, and how large: a report of many runs stays one to send around."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from histo_ssl.report.plots import Picture, photograph

log = logging.getLogger(__name__)

REPORT_BYTES = 13_000_000  # of all pages together: 52 of 250 kB
MOST_PAGE_BYTES = 2_000_000
PICTURES_SHARE = 0.375  # of a page, of which base64 makes a half; tables and maps have the other
LEAST_BYTES, MOST_BYTES = 15_000, 200_000  # of a picture; below the first, little of it can be told


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the pictures of one page may weigh together."""

    n_bytes: int

    def shared(self, n_wanted: int) -> tuple[int, int]:
        """How many pictures are shown, and the bytes that each may have.

        >>> Allowance(n_bytes=150_000).shared(2), Allowance(n_bytes=150_000).shared(30)
        ((2, 75000), (10, 15000))
        """
        n_shown = min(n_wanted, max(1, self.n_bytes // LEAST_BYTES))
        return n_shown, min(MOST_BYTES, self.n_bytes // max(1, n_shown))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A picture file that a page would like to show."""

    path: Path
    title: str
    alt: str
    max_side_px: int


def allowance(n_pages: int) -> Allowance:
    """Of each page of a report: it halves as their number doubles, in steps, so that few are drawn anew.

    >>> [allowance(n).n_bytes for n in (1, 6, 7, 13, 26, 52, 53)]
    [750000, 750000, 375000, 375000, 187500, 93750, 46875]
    """
    page_bytes = MOST_PAGE_BYTES
    while page_bytes * n_pages > REPORT_BYTES:
        page_bytes //= 2
    return Allowance(n_bytes=int(page_bytes * PICTURES_SHARE))


def photographs(wanted: Sequence[Wanted], budget: Allowance) -> dict[Path, Picture]:
    """The first pictures that there is room for, by their files; those that can't be read are left out."""
    n_shown, n_bytes = budget.shared(len(wanted))
    taken: dict[Path, Picture] = {}
    for one in wanted[:n_shown]:
        try:
            taken[one.path] = _picture(one, n_bytes)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow says of files that are no pictures
            log.warning("report: %s can't be shown (%s); make it again", one.path, error)
    return taken


def _picture(one: Wanted, n_bytes: int) -> Picture:
    """The file as it is where it is a PNG that fits, as a plot with sharp letters; else as a photograph."""
    content = one.path.read_bytes() if one.path.stat().st_size <= n_bytes else b""
    if content:
        with Image.open(one.path) as image:
            fits = image.format == "PNG" and max(image.size) <= one.max_side_px
            image.verify()
        if fits:
            return Picture(title=one.title, alt=one.alt, media_type="image/png", content=content)
    words = {"title": one.title, "alt": one.alt}
    return photograph(one.path, **words, max_side_px=one.max_side_px, budget_bytes=n_bytes)
