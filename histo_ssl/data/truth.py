"""What is known of every pixel of a slide: nuclei and tissues, by the patches of its tiles.

Rasters over the whole slide, at any resolution: `<slide_id>.png` with a value above 0 on nuclei, and label
rasters with `classes.json`, as of `data.annotations`. Generated slides have both beside them.

Letters: K phenotypes; n patches along a tile.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histo_ssl.data.annotations import patch_shares, read_classes, read_raster
from histo_ssl.data.base import TileSource
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.synthetic import ANNOTATIONS, NUCLEI

Floats = NDArray[np.float64]


class PixelTruth:
    """Shares of phenotypes in the patches of a source's tiles."""

    def __init__(self, source: TileSource, *, nuclei: str | None, tissues: str | None) -> None:
        """Look for the rasters' folders; of images nothing is known.

        Args:
            source: of the tiles.
            nuclei: folder of rasters of nuclei; None: the generated slides' own, if they are such.
            tissues: folder of label rasters, likewise.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: two phenotypes have one name.
        """
        self._source = source if isinstance(source, SlideTiles) else None
        self._slide = source.table()["slide"].to_numpy(dtype=str)
        self._coords = source.coords()
        self._nuclei = self._folder(nuclei, NUCLEI)
        self._tissues = self._folder(tissues, ANNOTATIONS)
        self._classes = read_classes(self._tissues) if self._tissues else {}
        doubled = {name for name in self.names if self.names.count(name) > 1}
        if doubled:
            raise ValueError(
                f"{self._tissues}: several phenotypes are called {', '.join(sorted(doubled))}, as nuclei are "
                "where they are known; give each class in classes.json a name of its own"
            )
        self._raster = lru_cache(maxsize=4)(_raster)

    @property
    def names(self) -> list[str]:
        """Of the K phenotypes: nuclei first, where they are known."""
        return [*([NUCLEI] if self._nuclei else []), *self._classes.values()]

    def shares(self, row: int, *, n_patches: int) -> Floats:
        """Share (K, n, n) of each patch of a tile that each phenotype covers, 0-1; NaN where nobody knows."""
        assert self._source is not None
        slide = str(self._slide[row])
        scan = self._source.scan(slide)
        parts = [(self._nuclei, [1], True), (self._tissues, list(self._classes), False)]
        found = []
        for folder, values, is_mask in parts:
            if folder is None:
                continue
            raster = self._raster(folder / f"{slide}.png", is_mask)
            found.append(
                np.full((len(values), n_patches, n_patches), np.nan)
                if raster is None
                else patch_shares(
                    raster,
                    (int(self._coords[row, 0]), int(self._coords[row, 1])),
                    values=values,
                    n_patches=n_patches,
                    side_level0=scan.side_level0,
                    size_level0=scan.slide.size_level0,
                )
            )
        return np.concatenate(found)

    def _folder(self, given: str | None, name: str) -> Path | None:
        """The folder that was given, or the one beside generated slides."""
        if given:
            if not Path(given).is_dir():
                raise FileNotFoundError(f"{given}: no such folder; one of <slide_id>.png is expected")
            return Path(given)
        if self._source is None or not len(self._slide):
            return None
        beside = Path(self._source.scan(str(self._slide[0])).slide.path).parent.parent / name
        return beside if beside.is_dir() else None


def _raster(path: Path, is_mask: bool) -> NDArray[np.uint8] | None:
    """A slide's raster, 1 on whatever a mask marks; None where there is none."""
    if not path.is_file():
        return None
    values = read_raster(path)
    return (values > 0).astype(np.uint8) if is_mask else values
