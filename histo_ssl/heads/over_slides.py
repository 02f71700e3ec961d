"""What heads attend to all over a slide: a value for each patch of each tile, to be stored and drawn.

Attention of a tile sums to 1 whatever it shows, so that a patch has how many times an even share it draws: a
map tells where within its tiles a head looks, not which tiles it prefers. That is told by how narrow it is.

Letters: N tiles; H heads; h, w rows and columns of a tile's patches; P = N h w.
"""

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.heads.drawing import BRIGHTEST, COLORMAP, TELLING, Panel
from histo_ssl.heads.maps import narrowness
from histo_ssl.slidemaps.colors import Scale
from histo_ssl.slidemaps.frame import Frame, Tiles
from histo_ssl.slidemaps.heatmap import drawn_over, value_layer, value_map

Floats = NDArray[np.float64]
Rgb = NDArray[np.uint8]
OPACITY, MARGIN = 0.6, 0.03
NARROW_COLORMAP = "viridis"
# What numpy raises where bytes are not what they should be.
NPZ_ERRORS = (BadZipFile, EOFError, KeyError, NotImplementedError, OSError, TypeError, ValueError, zlib.error)
COORDS, SIDE, ATTENTION, NARROWNESS = "coords", "side_level0", "attention", "narrowness"


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideHeads:
    """Heads on the tiles of one slide."""

    coords: NDArray[np.int64]  # (N, 2) level-0 px
    side_level0: int
    attention_NHhw: NDArray[np.float16]  # times an even share
    narrowness_NH: NDArray[np.float32]  # bits

    @classmethod
    def of_maps(cls, maps_NHhw: Floats, *, coords: NDArray[np.int64], side_level0: int) -> Self:
        """From shares of each tile's attention, whatever they sum to."""
        even = maps_NHhw.mean(axis=(2, 3), keepdims=True)
        flat_NHL = maps_NHhw.reshape(*maps_NHhw.shape[:2], -1)
        return cls(
            coords=coords,
            side_level0=side_level0,
            attention_NHhw=(maps_NHhw / even).astype(np.float16),
            narrowness_NH=narrowness(flat_NHL).astype(np.float32),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file of these arrays.

        Raises:
            ValueError: it is none.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                found = cls(
                    coords=file[COORDS],
                    side_level0=int(file[SIDE]),
                    attention_NHhw=file[ATTENTION],
                    narrowness_NH=file[NARROWNESS],
                )
        except NPZ_ERRORS as error:
            raise ValueError(f"{path}: not a file of heads over a slide ({error})") from error
        shapes = (found.attention_NHhw.shape[:2], found.narrowness_NH.shape, found.coords.shape[:1])
        if found.attention_NHhw.ndim != 4 or len({shapes[0], shapes[1], (*shapes[2], shapes[0][-1])}) > 1:
            raise ValueError(f"{path}: not a file of heads over a slide: its arrays are of different tiles")
        return found

    def arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """To be stored."""
        return {
            COORDS: self.coords,
            SIDE: np.array(self.side_level0),
            ATTENTION: self.attention_NHhw,
            NARROWNESS: self.narrowness_NH,
        }

    @property
    def n_heads(self) -> int:
        """H."""
        return int(self.attention_NHhw.shape[1])

    def tiles(self) -> Tiles:
        """Where the tiles lie."""
        return Tiles(xy_level0=self.coords, side_level0=self.side_level0)

    def patches(self) -> Tiles:
        """Where the P patches lie; they overlap by a pixel of the scan where they can't divide it evenly."""
        h, w = self.attention_NHhw.shape[2:]
        steps = [np.floor(np.arange(n) * self.side_level0 / n).astype(np.int64) for n in (w, h)]
        xy_hw2 = np.stack(np.meshgrid(*steps), axis=-1)
        xy_P2 = (self.coords[:, None, None] + xy_hw2).reshape(-1, 2)
        return Tiles(xy_level0=xy_P2, side_level0=-(-self.side_level0 // max(h, w)))

    def pooled(self) -> list[Self]:
        """The same in coarser and coarser squares of patches, as many as divide a tile evenly; tiles last."""
        h, w = self.attention_NHhw.shape[2:]
        sides = [n for n in range(2, max(h, w) + 1) if h % n == 0 and w % n == 0]
        return [replace(self, attention_NHhw=_means(self.attention_NHhw, side=n)) for n in sides]

    def of_patches(self, head: int | None) -> Floats:
        """Attention (P,) of a head, counted from 0, or the mean of all, as times an even share."""
        chosen = self.attention_NHhw[:, head] if head is not None else self.attention_NHhw.mean(axis=1)
        return chosen.astype(np.float64).reshape(-1)

    def of_tiles(self, head: int | None) -> Floats:
        """How narrow (N,) a head is on each tile, or heads are on average; bits."""
        chosen = self.narrowness_NH[:, head] if head is not None else self.narrowness_NH.mean(axis=1)
        return chosen.astype(np.float64)

    def attention_scale(self) -> Scale:
        """Of all heads together: from 0 to what but few patches have more of."""
        highest = float(np.percentile(self.attention_NHhw, BRIGHTEST))
        return Scale(colormap=COLORMAP, low=0.0, high=max(highest, TELLING))

    def narrowness_scale(self) -> Scale:
        """Of all heads together, from 0 on."""
        return Scale(colormap=NARROW_COLORMAP, low=0.0, high=max(float(self.narrowness_NH.max()), 0.01))


def _means(attention_NHhw: NDArray[np.float16], *, side: int) -> NDArray[np.float16]:
    n, heads, h, w = attention_NHhw.shape
    squares = attention_NHhw.reshape(n, heads, h // side, side, w // side, side)
    means: NDArray[np.float32] = squares.mean(axis=(3, 5), dtype=np.float32)
    return means.astype(np.float16)


def panels_over(seen: SlideHeads, thumbnail: Rgb, *, size_level0: tuple[int, int]) -> list[Panel]:
    """The part of a slide that has tiles, as scanned and under each head and the mean of them.

    Args:
        seen: what they attend to.
        thumbnail: (h, w, 3) of the whole scan.
        size_level0: width and height of the scan, level-0 px.
    """
    whole = Frame.whole(size_level0, size_px=thumbnail.shape[1::-1], slide_mpp=None)
    frame, box = whole.around(seen.tiles(), margin=MARGIN)
    patches, scale = seen.patches(), seen.attention_scale()

    def over(head: int | None) -> Image.Image:
        layer = value_layer(value_map(seen.of_patches(head), patches, frame), scale)
        return drawn_over(thumbnail[box], layer, opacity=OPACITY, is_grey=True)

    return [
        Panel(title="as scanned", image=Image.fromarray(thumbnail[box])),
        *(Panel(title=f"head {h + 1}", image=over(h)) for h in range(seen.n_heads)),
        Panel(title="mean of heads", image=over(None)),
    ]
