"""Stored tiles: what the file means, white where nothing was written, or an error; never other pixels."""

import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.segments import Limits
from histo_ssl.units import MicronsPerPx, TilePx

SIDE = 64  # of a stored tile


def whole(path: str, *, mpp: float = 0.5, side: int = 192) -> np.ndarray:
    """The slide's upper left corner, at its own um/px."""
    spec = TileSpec(size_px=TilePx(side), mpp=MicronsPerPx(mpp), stride_px=TilePx(side), min_tissue=0)
    return Slide(path, mpp=mpp).read((0, 0), spec)


def overwrite(path: str, tag: str, value: object, *, dtype: int | None = None, page: int = 0) -> None:
    """Write another value into a tag of a file."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[page].tags[tag].overwrite(value, dtype=dtype)


def change(path: str, at: int, data: bytes) -> None:
    """Write other bytes into a file."""
    with Path(path).open("r+b") as file:
        file.seek(at)
        file.write(data)


def stored(path: str, i: int) -> tuple[int, bytes]:
    """Where stored tile i begins in a file, and its bytes."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        start, size = page.dataoffsets[i], page.databytecounts[i]
    return start, Path(path).read_bytes()[start : start + size]


@pytest.fixture
def smooth() -> np.ndarray:
    """(192, 192, 3) of soft colours, in which damage to a JPEG shows."""
    y, x = np.mgrid[:192, :192] / 191
    return (255 * np.stack([x, y, (np.sin(20 * x) * np.cos(15 * y) + 1) / 2], axis=2)).astype(np.uint8)


@pytest.mark.parametrize("outcolorspace", ["ycbcr", "rgb"])
def test_jpeg_tiles_have_the_pixels_that_tifffile_decodes(
    write_jpeg: Callable[..., str], outcolorspace: str
) -> None:
    path = write_jpeg(compressionargs={"level": 90, "outcolorspace": outcolorspace})
    np.testing.assert_array_equal(whole(path), tifffile.imread(path))


def test_jpeg_tiles_of_rgb_with_shared_tables_have_the_pixels_that_tifffile_decodes(
    shared_data: Path,
) -> None:
    path = str(shared_data / "slides" / "CMU-1-Small-Region.svs")
    np.testing.assert_array_equal(whole(path, side=700), tifffile.imread(path)[:700, :700])


@pytest.mark.parametrize("tag", ["TileOffsets", "TileByteCounts"])
def test_tiles_that_were_never_written_are_white_and_counted(
    write_slide, limits: Limits, smooth: np.ndarray, tag: str
) -> None:
    path = write_slide([smooth], mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        values = list(tiff.pages.first.tags[tag].value)
    values[4] = values[8] = 0  # the middle one, and the last
    overwrite(path, tag, values)
    expected = smooth.copy()
    expected[64:128, 64:128] = expected[128:, 128:] = 255
    np.testing.assert_array_equal(whole(path), expected)
    assert Slide(path).n_unwritten(limits) == 2


def test_a_damaged_jpeg_tile_is_an_error_where_tifffile_shows_grey(
    write_jpeg: Callable[..., str], smooth: np.ndarray
) -> None:
    path = write_jpeg(compressionargs={"level": 90})
    intact = whole(path)
    start, data = stored(path, 4)
    change(path, start + len(data) * 3 // 4, bytes(len(data) // 4))
    assert not np.array_equal(tifffile.imread(path), intact)  # and not a word
    with pytest.raises(ValueError, match=r"slide\.tif: cannot be read as a slide: .*(Corrupt|Premature)"):
        whole(path)
    np.testing.assert_array_equal(whole(path, side=64), intact[:64, :64])  # its neighbours are as they were


@pytest.mark.parametrize(
    ("compression", "at", "size"),
    [("jpeg", b"\xff\xc0", ">HH"), ("jpeg2000", b"\xff\x4f\xff\x51", ">II")],
)
def test_a_stored_tile_that_claims_to_be_huge_is_refused_before_it_is_decoded(
    write_jpeg: Callable[..., str], compression: str, at: bytes, size: str
) -> None:
    path = write_jpeg(compression=compression)
    start, data = stored(path, 0)
    skipped = {"jpeg": 5, "jpeg2000": 8}[compression]  # from the marker to height and width
    change(path, start + data.index(at) + skipped, struct.pack(size, 60_000, 60_000))
    started = time.process_time()
    with pytest.raises(ValueError, match=r"a stored tile is 60000 x 60000 px, 64 x 64 expected"):
        whole(path)
    assert time.process_time() - started < 1  # decoding 3.6 gigapixels takes minutes and 43 GB


def test_aperios_ycbcr_jpeg_2000_has_the_colours_that_openslide_shows(
    shared_data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ycbcr.svs"
    path.write_bytes((shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs").read_bytes())
    path.chmod(0o644)
    overwrite(str(path), "Compression", 33003)  # its RGB planes taken for YCbCr, by both
    ours = whole(str(path), mpp=0.25, side=512)
    theirs = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (512, 512)).convert("RGB"))
    assert np.abs(ours.astype(int) - theirs).max() <= 2  # rounding of the colour matrix


@pytest.mark.parametrize(
    ("tag", "value", "said"),
    [
        ("PhotometricInterpretation", 0, "its colours are MINISWHITE"),
        ("PhotometricInterpretation", 3, "its colours are PALETTE"),
        ("PhotometricInterpretation", 6, "its colours are YCBCR"),
        ("Compression", 34887, "its compression is LERC"),
        ("PlanarConfiguration", 2, ""),
        ("SamplesPerPixel", 16_387, ".*16387 channels, grey or RGB is expected"),
    ],
)
def test_what_would_show_other_colours_than_it_means_is_refused(
    write_slide, smooth: np.ndarray, tag: str, value: int, said: str
) -> None:
    path = write_slide([smooth], mpp=0.5)
    overwrite(path, tag, value)
    with pytest.raises(ValueError, match=rf"slide\.tif: cannot be read as a slide: {said}"):
        whole(path)


@pytest.mark.parametrize(
    ("tag", "change", "said"),
    [
        ("TileOffsets", lambda v: [2**31, *v[1:]], "1 of 9 stored tiles lie beyond the file's end"),
        ("TileByteCounts", lambda v: [*v[:8], 2**32 - 1], "1 of 9 stored tiles lie beyond the file's end"),
        ("TileOffsets", lambda v: [v[1] + 1, *v[1:]], "stored tiles overlap others"),
        ("ImageWidth", lambda v: v + 64, "lists 9 offsets and 9 sizes of stored tiles, 12 are expected"),
        ("ImageLength", lambda v: 2**32 - 1, r"192 x 4294967295 px, more than 1e\+11 px .*max_gigapixels"),
        ("TileLength", lambda v: 64 * 10**5, r"64 x 6400000 px, .*data\.max_segment_megapixels"),
    ],
)
def test_a_list_of_tiles_that_cannot_be_is_refused_without_decoding_any(
    write_slide, limits: Limits, smooth: np.ndarray, tag: str, change: Callable, said: str
) -> None:
    path = write_slide([smooth], mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        value = tiff.pages.first.tags[tag].value
    overwrite(path, tag, change(value), dtype=4)
    if "gigapixels" in said:
        limits = replace(limits, slide_px=1e11)
    with pytest.raises(ValueError, match=said):
        Slide(path).n_unwritten(limits)


def test_tiles_that_are_one_and_the_same_in_the_file_are_no_damage(
    write_slide, limits: Limits, smooth: np.ndarray
) -> None:
    path = write_slide([smooth], mpp=0.5)
    for tag in ("TileOffsets", "TileByteCounts"):
        with tifffile.TiffFile(path) as tiff:
            value = tiff.pages.first.tags[tag].value
        overwrite(path, tag, [value[0], value[0], *value[2:]])
    assert Slide(path).n_unwritten(limits) == 0
    np.testing.assert_array_equal(whole(path)[:64, 64:128], smooth[:64, :64])


@pytest.mark.parametrize("bigtiff", [False, True])
def test_pages_that_lead_back_to_themselves_are_refused(
    tmp_path: Path, smooth: np.ndarray, bigtiff: bool
) -> None:
    path = str(tmp_path / "loop.tif")
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tiff:
        for image in (smooth, smooth[::2, ::2]):
            tiff.write(image, tile=(SIDE, SIDE), photometric="rgb", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[1]
        end = last.offset + tiff.tiff.tagnosize + tiff.tiff.tagsize * len(last.tags)
        back = struct.pack(tiff.tiff.offsetformat, first)
    change(path, end, back)  # after the last page comes the first again
    with pytest.raises(ValueError, match=r"loop\.tif: .* its pages lead back to one another"):
        _ = Slide(path).facts


def test_a_page_that_is_its_own_level_is_read_once(write_slide, smooth: np.ndarray) -> None:
    path = write_slide([smooth, smooth[::2, ::2]], mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        change(path, tiff.pages.first.tags["SubIFDs"].valueoffset, struct.pack("<I", tiff.pages.first.offset))
    np.testing.assert_array_equal(whole(path), smooth)
    assert Slide(path).n_levels == 1


def test_an_ome_tiff_that_names_another_file_does_not_get_it_opened(
    tmp_path: Path, smooth: np.ndarray
) -> None:
    path = tmp_path / "slide.ome.tif"
    for name, pixels in {"other.tif": 255 - smooth, "slide.ome.tif": smooth}.items():
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb", tile=(SIDE, SIDE))
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.pages.first.description
    np.testing.assert_array_equal(whole(str(path)), smooth)
    named = '<TiffData IFD="0" PlaneCount="1"><UUID FileName="other.tif">urn:uuid:0</UUID></TiffData>'
    overwrite(str(path), "ImageDescription", xml.replace('<TiffData IFD="0" PlaneCount="1"/>', named))
    np.testing.assert_array_equal(whole(str(path)), smooth)


def test_the_areas_of_a_leica_scan_lie_where_they_were_scanned_on_white(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    areas = [random.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(2)]
    places = [(16, 32), (128, 100)]  # x and y on a slide of 256 x 192 px of 0.5 um
    path = tmp_path / "slide.scn"
    with tifffile.TiffWriter(path) as tiff:
        for i, area in enumerate(areas):
            description = scn_description(places) if i == 0 else None
            options = {"compression": "deflate", "photometric": "rgb", "metadata": None}
            tiff.write(area, tile=(32, 32), description=description, **options)
    expected = np.full((192, 192, 3), 255, np.uint8)
    for (x, y), area in zip(places, areas, strict=True):
        part = expected[y : y + 64, x : x + 96]
        part[...] = area[: part.shape[0], : part.shape[1]]
    slide = Slide(str(path))
    assert (slide.size_level0, slide.mpp) == ((256, 192), 0.5)
    np.testing.assert_array_equal(whole(str(path)), expected)


def scn_description(places: list[tuple[int, int]]) -> str:
    """What a Leica scanner says of two areas of 96 x 64 px; lengths in nm."""
    images = "".join(
        f'<image name="area{i}"><creationDate>2020</creationDate><device model="x" version="1"/>'
        f'<pixels sizeX="96" sizeY="64"><dimension sizeX="96" sizeY="64" r="0" ifd="{i}"/>'
        f'<dimension sizeX="96" sizeY="64" r="1" ifd="{i}"/></pixels>'
        f'<view sizeX="48000" sizeY="32000" offsetX="{500 * x}" offsetY="{500 * y}"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>"
        "<illuminationSettings><numericalAperture>0.7</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        for i, (x, y) in enumerate(places)
    )
    namespace = "http://www.leica-microsystems.com/scn/2010/10/01"
    return (
        f'<?xml version="1.0"?><scn xmlns="{namespace}"><collection sizeX="128000" sizeY="96000">{images}'
        "</collection></scn>"
    )
