"""Part `reading`: tiles of a JPEG-tiled pyramid, on one core, against OpenSlide and tiffslide.

The slide is drawn by our own painting and scanning, 0.25 um/px, stored tiles of 256 px, YCbCr with halved
chroma as scanners write it, levels a factor of 4 apart. 12,288 px square are 2,304 stored tiles: far more
than caches hold (OpenSlide's 128, ours 341), so that random places are no test of them. Before anything is
timed all three must have given the same pixels; with `tiling.scaled_jpegs`, another filter, the means of
what the peers read, within an RMSE of 2.5 of 255.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch  # noqa: F401 (as wherever tiles are read for a network; reading itself does not import it)
from contests import CannotRunError, Contest, Ratio, compete
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.drawing.layout import Tissue, draw_layout
from histo_ssl.drawing.painting import paint
from histo_ssl.drawing.scanning import scan, site_stain
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.reader import Slide
from histo_ssl.units import MicronsPerPx, TilePx

DRAWN_PX, SIDE_PX, TILE_PX, LEVEL_FACTOR = 2048, 12_288, 256, 4
MPP, JPEG_QUALITY = 0.25, 80
N_TILES, N_ROUNDS = 192, 7  # per round
# Of 255, between scaled JPEGs and means of the pixels; half a pixel beside the place it is 7. Tissue has 1.3.
MOST_RMSE = 2.5
EDGE_PX = 4  # of a resampled tile: what the filter reaches beyond the tile, which a peer's crop does not have

Filter = Image.Resampling
Place = tuple[int, int]  # left and top in level-0 px
Read = Callable[[Place], NDArray[np.uint8]]


@dataclass(frozen=True)
class Case:
    """Places in the order in which they are read, and how."""

    places: list[Place]
    targets: dict[str, float | None]
    factor: int = 1  # pixels of level 0 that are one of the tile's, along each side
    scaled_jpegs: bool = False


def measure(device: str) -> list[Ratio]:
    """Ratios of all cases."""
    if device != "cpu":
        raise CannotRunError("slides are read on the CPU; `make bench` measures that")
    try:
        from openslide import OpenSlide
    except ImportError as error:
        raise CannotRunError(f"OpenSlide is not here ({error}); install histo_ssl[bench]") from error
    from tiffslide import TiffSlide

    with drawn_slide() as path, _one_core(), OpenSlide(path) as by_openslide, TiffSlide(path) as by_tiffslide:
        ours = Slide(str(path))
        openslide = {1: _of_openslide(by_openslide, 1), 2: _of_openslide(by_openslide, 2)}
        tiffslide = {1: _of_tiffslide(by_tiffslide, 1), 2: _of_tiffslide(by_tiffslide, 2)}
        rows: list[Ratio] = []
        for name, case in _cases().items():
            spec = TileSpec(
                size_px=TilePx(TILE_PX),
                mpp=MicronsPerPx(case.factor * MPP),
                stride_px=TilePx(TILE_PX),
                min_tissue=0.0,
                scaled_jpegs=case.scaled_jpegs,
            )
            reads: dict[str, Read] = {
                "ours": lambda xy, spec=spec: ours.read(xy, spec),  # type: ignore[misc]
                "OpenSlide": openslide[case.factor],
                "tiffslide": tiffslide[case.factor],
            }
            if case.scaled_jpegs:
                check_means(reads["ours"], case, _of_openslide(by_openslide, case.factor, Filter.BOX))
            else:
                check_pixels(reads, case.places, edge_px=0 if case.factor == 1 else EDGE_PX)
            rows += compete(_contest(name, reads, case))
        return rows


def _cases() -> dict[str, Case]:
    grid = _grid(step_px=TILE_PX, offset_px=0)
    beside = _grid(step_px=TILE_PX, offset_px=TILE_PX // 2 - 20)
    rng = np.random.default_rng(0)
    anywhere = [(int(x), int(y)) for x, y in rng.integers(0, SIDE_PX - TILE_PX, (len(grid), 2))]
    halved = _grid(step_px=2 * TILE_PX, offset_px=0)
    apart = [halved[i] for i in rng.permutation(len(halved))]
    of_40x = "40x read as 20x"
    return {
        "grid order": Case(grid, {"OpenSlide": 4.0, "tiffslide": 4.0}),
        "grid order, off the stored grid": Case(beside, {"OpenSlide": None, "tiffslide": None}),
        "random places": Case(anywhere, {"OpenSlide": 1.5, "tiffslide": 2.0}),
        of_40x: Case(halved, {"OpenSlide": 2.5, "tiffslide": None}, factor=2),
        f"{of_40x}, shuffled": Case(apart, {"OpenSlide": None, "tiffslide": None}, factor=2),
        f"{of_40x}, scaled JPEGs": Case(
            halved, {"OpenSlide": 2.5, "tiffslide": None}, factor=2, scaled_jpegs=True
        ),
        f"{of_40x}, scaled JPEGs, shuffled": Case(
            apart, {"OpenSlide": 2.5, "tiffslide": None}, factor=2, scaled_jpegs=True
        ),
    }


def _grid(*, step_px: int, offset_px: int) -> list[Place]:
    edges = range(offset_px, SIDE_PX - step_px + 1, step_px)
    return [(x, y) for y in edges for x in edges]


def _contest(name: str, reads: dict[str, Read], case: Case) -> Contest:
    places = case.places

    def work(read: Read) -> Callable[[int], None]:
        def read_some(i: int) -> None:
            start = i * N_TILES
            for j in range(start, start + N_TILES):
                read(places[j % len(places)])

        return read_some

    return Contest(
        part="reading",
        case=name,
        n_items=N_TILES,
        item="tile",
        ours=work(reads["ours"]),
        peers={peer: work(read) for peer, read in reads.items() if peer != "ours"},
        targets=case.targets,
        n_rounds=N_ROUNDS,
    )


def check_pixels(reads: dict[str, Read], places: list[Place], *, edge_px: int) -> None:
    """Stop unless all give the same pixels at 64 of the places, resampled ones up to the tile's edge."""
    inner = slice(edge_px, TILE_PX - edge_px)
    for place in places[:: max(1, len(places) // 64)]:
        tiles = {name: read(place) for name, read in reads.items()}
        for name, tile in tiles.items():
            if not np.array_equal(tile[inner, inner], tiles["ours"][inner, inner]):
                raise AssertionError(f"{name} and we read other pixels at {place}")


def check_means(ours: Read, case: Case, means: Read) -> None:
    """Stop unless tiles at 64 of the places are means of a peer's pixels, by the median of their RMSE."""
    places = case.places[:: max(1, len(case.places) // 64)]
    rmse = np.median([np.sqrt(((ours(place).astype(float) - means(place)) ** 2).mean()) for place in places])
    if rmse > MOST_RMSE:
        raise AssertionError(f"scaled JPEGs are an RMSE of {rmse:.2f} off the means of the pixels")


def _of_openslide(slide: Any, factor: int, by: Filter = Filter.BICUBIC) -> Read:
    def read(place: Place) -> NDArray[np.uint8]:
        side = factor * TILE_PX
        return _reduced(slide.read_region(place, 0, (side, side)).convert("RGB"), factor, by)

    return read


def _of_tiffslide(slide: Any, factor: int) -> Read:
    def read(place: Place) -> NDArray[np.uint8]:
        side = factor * TILE_PX
        pixels: NDArray[np.uint8] = slide.read_region(place, 0, (side, side), as_array=True)
        return pixels if factor == 1 else _reduced(Image.fromarray(pixels), factor, Filter.BICUBIC)

    return read


def _reduced(image: Image.Image, factor: int, by: Filter) -> NDArray[np.uint8]:
    """The tile as users resize it; bicubic is the filter that ours has."""
    return np.asarray(image if factor == 1 else image.resize((TILE_PX, TILE_PX), by), np.uint8)


@contextmanager
def _one_core() -> Iterator[None]:
    """Keeps this process, whose peers start threads, to one core where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def drawn_slide() -> Iterator[Path]:
    """The slide, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_scan(path, np.tile(drawn(), (SIDE_PX // DRAWN_PX, SIDE_PX // DRAWN_PX, 1)))
        path.read_bytes()  # into the system's cache: the disk is not what is compared
        yield path


def drawn() -> NDArray[np.uint8]:
    """A drawn scan (DRAWN_PX, DRAWN_PX, 3) of tissue all over."""
    rng = np.random.default_rng(7)
    layout = draw_layout(rng, side_um=DRAWN_PX * MPP, region_um=150.0, tumour=Tissue.TUMOUR_NESTS)
    return scan(paint(layout, mpp=MPP, rng=rng), site_stain(rng, shift=1.0), rng, ink_HW=None)


def write_scan(path: Path, rgb: NDArray[np.uint8], *, finest_mpp: float = MPP) -> None:
    """Write an image (H, W, 3) as a pyramid of JPEG tiles, its finest level of so many um/px."""
    level, mpp = Image.fromarray(rgb), finest_mpp
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        while True:
            tiff.write(
                np.asarray(level),
                subfiletype=0 if mpp == finest_mpp else 1,
                photometric="ycbcr",
                subsampling=(2, 2),
                tile=(TILE_PX, TILE_PX),
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                resolution=(1e4 / mpp, 1e4 / mpp),  # px per cm
                resolutionunit="CENTIMETER",
                metadata=None,
                maxworkers=1,
            )
            if min(level.size) <= 2 * TILE_PX:
                return
            level, mpp = level.reduce(LEVEL_FACTOR), mpp * LEVEL_FACTOR
