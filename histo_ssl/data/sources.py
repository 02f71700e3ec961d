"""Opens the tiles that a data set has listed, of whichever kind they are."""

from pathlib import Path

from histo_ssl.data.base import SOURCE, TileSource
from histo_ssl.data.images import ImageTiles
from histo_ssl.data.slides import SlideTiles
from histo_ssl.folders.artifacts import read_json

KINDS = {"images": ImageTiles, "slides": SlideTiles}


def open_source(folder: Path) -> TileSource:
    """The tiles that are listed in a tile folder."""
    facts = read_json(folder / SOURCE)
    source: TileSource = KINDS[facts.pop("kind")](folder, **facts)
    return source
