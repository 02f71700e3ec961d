"""Tiles made from stored JPEGs that are decoded at less than their size: another filter, the same places.

The pixels are libjpeg's at 1/2, 1/4 and 1/8, as Pillow's `draft` has them, too. Means of as many pixels
differ from them by what the bounds below say, which are those that the docs state.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from histo_ssl.config.choices import conf_dir
from histo_ssl.data.slides import SlideTiles
from histo_ssl.data.sources import open_source
from histo_ssl.slides import opened, reader, stores
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.opened import OpenSlides
from histo_ssl.slides.packs import LOSSLESS, as_bytes
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.segments import REDUCTIONS
from histo_ssl.slides.stores import Store
from histo_ssl.units import MicronsPerPx, TilePx

from .store_server import serve

MPP, STORED = 0.25, 64  # of level 0; side of a stored tile
SIZE = (331, 267)  # width and height of the drawn scan, px: odd, the last stored tiles cut short
MOST_RMSE, MOST_MEAN = 1.5, 1.0  # levels of 255, from the means of the pixels, on real tissue
MAKES = {
    "RGB in JPEG's YCbCr": {"photometric": "rgb", "compressionargs": {"level": 90, "outcolorspace": "ycbcr"}},
    "RGB as Aperio has it": {"photometric": "rgb", "compressionargs": {"level": 90, "outcolorspace": "rgb"}},
    "YCbCr, chroma halved": {"photometric": "ycbcr", "subsampling": (2, 2)},
}


def spec_of(size_px: int, mpp: float, *, scaled: bool = True) -> TileSpec:
    """Touching tiles."""
    size = TilePx(size_px)
    return TileSpec(size_px=size, mpp=MicronsPerPx(mpp), stride_px=size, min_tissue=0, scaled_jpegs=scaled)


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """Soft colours under a fine grain (H, W, 3), which a JPEG keeps most of."""
    w, h = SIZE
    y, x = np.mgrid[:h, :w] / 60
    soft = np.stack([np.sin(x) * np.cos(y), np.cos(2 * x), np.sin(y + x)], axis=2)
    grain = np.random.default_rng(0).normal(0, 6, (h, w, 1))
    return (130 + 90 * soft + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture
def write(picture: NDArray[np.uint8], tmp_path: Path) -> Callable[..., str]:
    """A function that writes the picture as a slide of 0.25 um/px, of JPEG tiles unless told otherwise."""

    def written(name: str = "slide.tif", *, levels: tuple[int, ...] = (1,), **options: object) -> str:
        options = {"compression": "jpeg", "tile": (STORED, STORED), "metadata": None, **options}
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            for i, by in enumerate(levels):
                h, w = (side // by for side in picture.shape[:2])
                level = np.asarray(Image.fromarray(picture).resize((w, h), Image.Resampling.BOX))
                mpp = by * MPP
                tiff.write(
                    level,
                    **{"subfiletype": int(i > 0), "photometric": "rgb", **options},
                    resolution=(1e4 / mpp, 1e4 / mpp),
                    resolutionunit="CENTIMETER",
                )
        return str(tmp_path / name)

    return written


def _drafted(slide: Slide, place: tuple[int, int], by: int) -> NDArray[np.uint8]:
    """A stored tile at less than its size, by Pillow."""
    stored = slide.stored_jpeg(place, spec_of(STORED, MPP))
    assert stored is not None
    with Image.open(io.BytesIO(stored)) as image:
        image.draft("RGB", (STORED // by, STORED // by))
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("by", REDUCTIONS)
@pytest.mark.parametrize("make", MAKES)
def test_pixels_are_those_of_the_stored_jpegs_at_that_size(write, make: str, by: int) -> None:
    slide, n = Slide(write(**MAKES[make])), 2
    rows = [
        np.concatenate([_drafted(slide, (x, y), by) for x in range(0, n * STORED, STORED)], axis=1)
        for y in range(0, n * STORED, STORED)
    ]
    tile = slide.read((0, 0), spec_of(n * STORED // by, by * MPP))
    np.testing.assert_array_equal(tile, np.concatenate(rows))


@pytest.mark.parametrize("by", REDUCTIONS)
@pytest.mark.parametrize("make", MAKES)
def test_pixels_are_means_of_the_scans_within_the_stated_bounds(write, make: str, by: int) -> None:
    slide = Slide(write(**MAKES[make]))
    side = 240 // by
    whole = slide.read((0, 0), spec_of(240, MPP)).astype(float)
    means = whole.reshape(side, by, side, by, 3).mean((1, 3))
    off = slide.read((0, 0), spec_of(side, by * MPP)) - means
    assert np.sqrt((off**2).mean()) < 2 * MOST_RMSE  # sharper colours, and more grain, than tissue has
    assert np.abs(off).mean() < 2 * MOST_MEAN
    assert abs(off.mean()) < 0.5  # libjpeg rounds each pixel once


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("CMU-1-Small-Region.svs", (240, 240)),
        ("her2st_C2.tif", (5200, 4160)),
        ("her2st_C6.tif", (4320, 5408)),
    ],
)
@pytest.mark.parametrize("by", [2, 4])
def test_the_bounds_hold_on_real_slides(
    shared_data: Path, name: str, place: tuple[int, int], by: int
) -> None:
    path = str(shared_data / "slides" / name)
    slide, side = Slide(path, mpp=MPP), 1920
    of_level_0 = {name: getattr(slide.facts, name)[:1] for name in ("sizes", "downsamples", "hold_reduced")}
    slide.__dict__["facts"] = replace(slide.facts, **of_level_0)  # as if it had no other
    whole = slide.read(place, spec_of(side, MPP)).astype(float)
    means = whole.reshape(side // by, by, side // by, by, 3).mean((1, 3))
    off = slide.read(place, spec_of(side // by, by * MPP)) - means
    tissue = np.ptp(means, axis=2) > 20
    assert tissue.mean() > 0.1
    assert np.sqrt((off[tissue] ** 2).mean()) < MOST_RMSE
    assert np.abs(off[tissue]).mean() < MOST_MEAN


@pytest.mark.parametrize("place", [(0, 0), (64, 64), (63, 18), (17, 5), (131, 100)])
@pytest.mark.parametrize(("mpp", "slide_mpp"), [(0.5, 0.25), (0.5, 0.2485), (0.5, 0.262), (0.7, 0.25)])
def test_tiles_show_the_same_place_as_without(write, place, mpp: float, slide_mpp: float) -> None:
    slide = Slide(write(**MAKES["YCbCr, chroma halved"]), mpp=slide_mpp)
    spec = spec_of(48, mpp)
    scaled = slide.read(place, spec).astype(float)
    without = slide.read(place, replace(spec, scaled_jpegs=False)).astype(float)
    # shifted by half a pixel of the tile, the soft colours alone would differ by more
    assert np.abs(scaled.mean((0, 1)) - without.mean((0, 1))).max() < 1
    assert np.sqrt(((scaled - without) ** 2).mean()) < 6


def test_tiles_that_touch_are_cut_from_one_picture(write) -> None:
    slide = Slide(write(levels=(1, 4)))
    for x, y in [(0, 0), (33, 8)]:
        left, right = (slide.read((x + dx, y), spec_of(32, 0.5)) for dx in (0, 64))
        both = slide.read((x, y), spec_of(64, 0.5))[:32]
        np.testing.assert_array_equal(np.concatenate([left, right], axis=1), both)


def test_beyond_the_scan_there_is_glass(write) -> None:
    slide, spec = Slide(write()), spec_of(32, 0.5)
    assert (slide.read((SIZE[0] + 64, 0), spec) == 255).all()
    tile = slide.read((SIZE[0] - 31, SIZE[1] - 31), spec)  # of which 16 px and a half lie on the scan
    assert (tile[:17, 17:] == 255).all()
    assert (tile[17:] == 255).all()
    assert (tile[:15, :15] < 255).any(axis=2).all()


def test_a_level_that_is_as_coarse_is_read_as_it_is(write) -> None:
    slide = Slide(write(levels=(1, 4)))
    for mpp in (MPP, 4 * MPP):
        spec = spec_of(32, mpp)
        np.testing.assert_array_equal(
            slide.read((64, 0), spec), slide.read((64, 0), replace(spec, scaled_jpegs=False))
        )
        assert not slide.gains_by_scaled_jpegs(replace(spec, scaled_jpegs=False))
    assert slide.gains_by_scaled_jpegs(spec_of(32, 0.5, scaled=False))
    assert not slide.gains_by_scaled_jpegs(spec_of(32, 0.5))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "deflate"},
        {"compression": "aperio_jp2000_rgb"},
        {"compression": None},
        {"tile": (48, 80), "compression": "deflate"},
        {"tile": None, "rowsperstrip": 20},  # JPEG strips, whose height is no multiple of 8
    ],
    ids=str,
)
def test_what_holds_no_smaller_images_is_read_as_ever(write, options: dict[str, object]) -> None:
    slide, spec = Slide(write(**options)), spec_of(40, 0.5)
    assert slide.facts.hold_reduced == (False,)
    np.testing.assert_array_equal(
        slide.read((11, 20), spec), slide.read((11, 20), replace(spec, scaled_jpegs=False))
    )
    assert not slide.gains_by_scaled_jpegs(replace(spec, scaled_jpegs=False))


def test_sizes_of_one_stored_tile_are_kept_apart(write) -> None:
    path = write(**MAKES["YCbCr, chroma halved"])
    specs = [spec_of(40, by * MPP) for by in (1, 2, 4, 1, 2)]
    alone = [pickle.loads(pickle.dumps(Slide(path))).read((3, 3), spec) for spec in specs]
    slide = Slide(path)
    for _ in range(2):
        for spec, expected in zip(specs, alone, strict=True):
            np.testing.assert_array_equal(slide.read((3, 3), spec), expected)


def test_damage_is_an_error_at_any_size(write) -> None:
    path = Path(write())
    with tifffile.TiffFile(path) as tiff:
        start, size = tiff.pages[0].dataoffsets[1], tiff.pages[0].databytecounts[1]
    content = bytearray(path.read_bytes())
    content[start + size // 2 : start + size] = bytes(size - size // 2)
    path.write_bytes(content)
    slide = Slide(str(path))
    slide.read((0, 0), spec_of(32, 0.5))
    for by in (1, *REDUCTIONS):
        with pytest.raises(ValueError, match="cannot be read as a slide"):
            slide.read((64, 0), spec_of(64 // by, by * MPP))


def test_a_tile_that_was_never_written_is_glass(write) -> None:
    path = Path(write())
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages[0].tags
        for name in ("TileOffsets", "TileByteCounts"):
            tags[name].overwrite([0, *tags[name].value[1:]])
    tile = Slide(str(path)).read((0, 0), spec_of(64, 0.5))
    assert (tile[:32, :32] == 255).all()
    assert (tile[:32, 32:] < 255).any()


def test_a_slide_opened_by_its_outline_gives_the_same(write, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = OpenSlides()
    for module in (opened, reader):
        monkeypatch.setattr(module, "open_slides", fresh)
    monkeypatch.setattr(opened, "MAX_OPEN_SLIDES", 1)
    paths = [write("a.tif"), write("b.tif", levels=(1, 4))]
    slides = [Slide(path, known=Slide(path).stamp) for path in paths]
    spec = spec_of(40, 0.5)
    first = [slide.read((11, 9), spec) for slide in slides]
    assert fresh.outlines
    for slide, expected in zip(slides, first, strict=True):
        np.testing.assert_array_equal(slide.read((11, 9), spec), expected)


def test_a_remote_slide_gives_the_same_and_is_fetched_before(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spec, place = write(levels=(1, 4)), spec_of(64, 0.5), (70, 66)
    folders = {name: str(tmp_path / name) for name in ("cache_dir", "tallies")}
    for folder in folders.values():
        Path(folder).mkdir()
    monkeypatch.setattr(stores._InUse, "made", None)
    with serve(tmp_path) as server:
        store = Store(block_kb=1, cache_mb=1, timeout_s=10, n_tries=3, **folders)
        slide = Slide(f"{server.address}/{Path(path).name}", store=store)
        slide.fetch([place], spec)
        server.forget()
        np.testing.assert_array_equal(slide.read(place, spec), Slide(path).read(place, spec))
        assert not server.ranges


def test_packs_hold_what_is_read(write) -> None:
    slide, spec = Slide(write()), spec_of(32, 0.5)
    assert slide.stored_jpeg((0, 0), spec) is None  # its pixels are one stored JPEG's, but reduced
    _, kind, _ = as_bytes(slide, (0, 0), spec)
    assert kind == LOSSLESS


def test_a_tile_folder_remembers_it(write, tmp_path: Path, tiling) -> None:
    path = write(levels=(1, 4))
    folders = {}
    for scaled in (False, True):
        folder = folders[scaled] = tmp_path / f"tiles-{scaled}"
        folder.mkdir()
        asked = replace(tiling, size_px=32, stride_px=32, min_tissue=0.0, scaled_jpegs=scaled)
        values = OmegaConf.load(conf_dir() / "data" / "slides.yaml")
        data = instantiate(values, root=path)
        data.tile(asked, folder=folder, home=tmp_path, n_processes=0, slide_timeout_s=60)
    sources = {scaled: open_source(folder) for scaled, folder in folders.items()}
    for scaled, source in sources.items():
        assert isinstance(source, SlideTiles)
        again: SlideTiles = pickle.loads(pickle.dumps(source))
        assert again.spec.scaled_jpegs == scaled
        expected = Slide(path).read(tuple(source.coords()[3]), spec_of(32, 0.5, scaled=scaled))
        np.testing.assert_array_equal(again.read(3), expected)
    assert not np.array_equal(sources[False].read(3), sources[True].read(3))
    rows = sources[False].training_rows()
    assert "tiling.scaled_jpegs=true" in sources[False].faster(rows)
    assert "scaled_jpegs" not in sources[True].faster(rows)
