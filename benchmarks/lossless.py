"""Ways to keep a tile's pixels without a loss: bytes, and processor time to make and to read them.

    python benchmarks/lossless.py SLIDE [SLIDE ...] [--mpp 0.25]

Tiles of 256 px, resampled to 1.3 times the scan's um/px, at least 0.5; the first 36 of each slide that are
not plain glass. All candidates take turns on the same tiles, three times, in one thread, and must give the
pixels back.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import torch  # noqa: F401 (as wherever tiles are read for a network)
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.lossless import packed, unpacked
from histo_ssl.slides.reader import Slide
from histo_ssl.units import MicronsPerPx, TilePx

Tile = NDArray[np.uint8]
TILE_PX, N_TILES, N_ROUNDS, GLASS_SD = 256, 36, 3, 20.0


def _pillow(**options: object) -> Callable[[Tile], bytes]:
    def encode(tile: Tile) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, **options)  # type: ignore[arg-type]
        return stream.getvalue()

    return encode


def _webp(tile: Tile) -> bytes:
    return bytes(imagecodecs.webp_encode(tile, level=0, lossless=True, method=0))


def _jpegxl(tile: Tile) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(tile, lossless=True, effort=1, numthreads=1))


CANDIDATES: dict[str, tuple[Callable[[Tile], bytes], Callable[[bytes], Tile]]] = {
    "raw": (lambda t: t.tobytes(), lambda b: np.frombuffer(b, np.uint8).reshape(TILE_PX, TILE_PX, 3).copy()),
    "ours: difference to the row above, zstd": (packed, lambda b: unpacked(b, side_px=TILE_PX)),
    "PNG, deflate 1 (Pillow)": (
        _pillow(format="png", compress_level=1),
        lambda b: np.asarray(Image.open(io.BytesIO(b))),
    ),
    "PNG, deflate 1": (lambda t: bytes(imagecodecs.png_encode(t, 1)), imagecodecs.png_decode),
    "QOI": (lambda t: bytes(imagecodecs.qoi_encode(t)), imagecodecs.qoi_decode),
    "WebP, lossless, method 0": (_webp, imagecodecs.webp_decode),
    "JPEG-LS": (lambda t: bytes(imagecodecs.jpegls_encode(t)), imagecodecs.jpegls_decode),
    "JPEG XL, lossless, effort 1": (_jpegxl, lambda b: imagecodecs.jpegxl_decode(b, numthreads=1)),
}


def main() -> None:
    """Print a table: mean bytes over all tiles, medians of the rounds' times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--mpp", type=float, default=0.25, help="um/px of slides that do not say it")
    asked = parser.parse_args()
    tiles = [tile for path in asked.slides for tile in tiles_of(path, mpp=asked.mpp)]
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CANDIDATES}
    for _ in range(N_ROUNDS):
        for name, (encode, decode) in CANDIDATES.items():
            started = time.process_time()
            encoded = [encode(tile) for tile in tiles]
            between = time.process_time()
            decoded = [decode(data) for data in encoded]
            ended = time.process_time()
            assert all(np.array_equal(a, b) for a, b in zip(tiles, decoded, strict=True)), name
            n_bytes = sum(map(len, encoded))
            taken[name].append((n_bytes / 1e3, 1e3 * (between - started), 1e3 * (ended - between)))
    rows = {name: np.median(rounds, axis=0) / len(tiles) for name, rounds in taken.items()}
    print(
        f"{len(tiles)} tiles of {len(asked.slides)} slides: {', '.join(Path(p).name for p in asked.slides)}"
    )
    print(pd.DataFrame(rows, index=["kB", "to make, ms", "to read, ms"]).T.round(2).to_string())


def tiles_of(path: str, *, mpp: float) -> list[Tile]:
    """The first tiles of a slide that hold more than glass."""
    slide = Slide(path, mpp_if_unknown=mpp)
    wanted = MicronsPerPx(max(0.5, 1.3 * slide.mpp))
    spec = TileSpec(size_px=TilePx(TILE_PX), mpp=wanted, stride_px=TilePx(TILE_PX), min_tissue=0.0)
    (width, height), side = slide.size_level0, spec.side_level0(slide.mpp)
    found: list[Tile] = []
    for y in range(0, height - side + 1, side):
        for x in range(0, width - side + 1, side):
            tile = slide.read((x, y), spec)
            if tile.std() > GLASS_SD:
                found.append(tile)
            if len(found) == N_TILES:
                return found
    return found


if __name__ == "__main__":
    main()
