"""The slides of a finished tile folder, as they are shown: files, tiles, and the tiles' labels."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_ssl.data.base import SOURCE
from histo_ssl.data.slides import LABELS
from histo_ssl.folders.artifacts import fingerprint, read_json
from histo_ssl.slidemaps.frame import Tiles
from histo_ssl.slidemaps.heatmap import NO_CLASS
from histo_ssl.slides.index import TileIndex
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.stamps import stamp_in
from histo_ssl.units import MicronsPerPx, TilePx, level0_side
from histo_ssl.viewer.maps import Classes, TileMap

KNOWN = {"patient_id": "patient", "site": "site", "label": "label", "split": "split"}
UNKNOWN_MPP = 1.0  # stands in where nobody knows um/px: pixels can be shown, lengths can't


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A slide, or why it can't be shown."""

    id: str  # of its address on the page; another one for another file
    name: str
    slide: Slide
    size_level0: tuple[int, int]
    mpp: float | None  # um/px of level 0; None: unknown
    facts: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @classmethod
    def of_file(cls, path: Path) -> "Shown":
        """A slide file that belongs to no run."""
        name, status = path.name, path.stat()
        mark = fingerprint([str(path.resolve()), status.st_size, status.st_mtime_ns])
        slide = Slide(str(path), mpp_if_unknown=UNKNOWN_MPP)
        try:
            size, mpp = slide.size_level0, slide.mpp
        except (ValueError, OSError) as error:
            return cls(id=mark, name=path.stem, slide=slide, size_level0=(1, 1), mpp=None, reason=str(error))
        known = mpp if slide.facts.mpp_xy else None
        return cls(id=mark, name=path.stem, slide=slide, size_level0=size, mpp=known, facts={"file": name})


class TileSet:
    """The tiles that slides of a folder were cut into.

    Raises:
        FileNotFoundError: the folder lists no tiles of slides.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._facts: dict[str, Any] = read_json(folder / SOURCE)
        if self._facts["kind"] != "slides":
            raise FileNotFoundError(
                f"{folder}: its tiles are image files, of which there is no slide to show"
            )
        self.index = TileIndex(folder)
        self.number = {str(name): i for i, name in enumerate(self.index.slides["slide_id"])}

    @property
    def has_labels(self) -> bool:
        """Whether tiles have labels of their own."""
        return bool(self._facts["classes"])

    def shown(self, name: str) -> Shown:
        """A slide of the folder."""
        row: dict[Any, Any] = self.index.slides.iloc[self.number[name]].to_dict()
        known = stamp_in(row)
        facts = {word: str(row[column]) for column, word in KNOWN.items() if row.get(column)}
        is_read = not row["reason"]
        return Shown(
            id=fingerprint([name, row["path"], row["n_bytes"], str(row["digest"])]),
            name=name,
            slide=Slide(row["path"], mpp=row["mpp"] if is_read else None, known=known),
            size_level0=(int(row["width_px"]), int(row["height_px"])) if is_read else (1, 1),
            mpp=row["mpp"] if is_read else None,
            facts={**facts, "tiles": f"{row['n_tiles']:,}"} if is_read else facts,
            reason=row["reason"],
        )

    def side_level0(self, name: str) -> int:
        """Side of a slide's tiles on the scan, px."""
        slide_mpp = MicronsPerPx(self.index.slides["mpp"].iloc[self.number[name]])
        tile_px, mpp = TilePx(self._facts["tile_px"]), MicronsPerPx(self._facts["mpp"])
        return level0_side(tile_px, mpp=mpp, slide_mpp=slide_mpp)

    def tile_map(self, name: str) -> TileMap:
        """The labels of a slide's tiles; where there are none, where the tiles lie."""
        i = self.number[name]
        tiles = Tiles(xy_level0=self.index.of_slide(i).astype(np.int64), side_level0=self.side_level0(name))
        if self._labels is None:
            one = Classes(classes=np.zeros(len(tiles), np.int64), names=["tile"], label="tile")
            return TileMap(tiles=tiles, drawn=one, known={})
        of_slide = slice(self.index.offsets[i], self.index.offsets[i + 1])
        labels = np.asarray(self._labels[of_slide], dtype=np.int64)
        names = self._facts["classes"]
        labels = np.where((labels >= 0) & (labels < len(names)), labels, NO_CLASS)
        return TileMap(tiles=tiles, drawn=Classes(classes=labels, names=names, label="label"), known={})

    @cached_property
    def _labels(self) -> NDArray[np.integer] | None:
        if not self.has_labels:
            return None
        return np.asarray(np.load(self.folder / LABELS, mmap_mode="r", allow_pickle=False))
