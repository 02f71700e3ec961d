"""Packs: the slide's pixels to the last bit, of its own bytes where the grid allows, or a sentence."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.lossless import packed, unpacked
from histo_ssl.slides.packs import JPEG, LOSSLESS, UNREAD, Pack, Tile, as_bytes, made_of, write_pack
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.stamps import Stamp
from histo_ssl.units import MicronsPerPx, TilePx

SIDE = 64  # of a stored tile and of a tile
MADE_OF = bytes(range(16))
ON_GRID, BESIDE, AT_EDGE = [(0, 0), (64, 128)], [(10, 0), (64, 63)], [(192, 128), (-64, 0)]


def spec_of(mpp: float, *, side: int = SIDE) -> TileSpec:
    """Touching tiles."""
    return TileSpec(size_px=TilePx(side), mpp=MicronsPerPx(mpp), stride_px=TilePx(side), min_tissue=0)


def same(slide: Slide, spec: TileSpec, places: list[tuple[int, int]], path: Path) -> list[int]:
    """Pack tiles, hold what is read back against the slide; their kinds."""
    tiles = [as_bytes(slide, place, spec) for place in places]
    write_pack(path, tiles, made_of=MADE_OF)
    pack = Pack(path, n_tiles=len(places), made_of=MADE_OF, side_px=spec.size_px)
    for i, place in enumerate(places):
        np.testing.assert_array_equal(pack.read(i, place), slide.read(place, spec))
    kinds = [kind for _, kind, _ in tiles]
    assert pack.kinds(np.array(places, np.int32)).tolist() == [kinds.count(k) for k in range(3)]
    return kinds


@pytest.fixture
def smooth() -> np.ndarray:
    """(192, 224, 3) of soft colours; its last column of stored tiles is cut short."""
    y, x = np.mgrid[:192, :224] / 191
    return (
        (255 * np.stack([x, y, (np.sin(20 * x) * np.cos(15 * y) + 1) / 2], axis=2))
        .clip(0, 255)
        .astype(np.uint8)
    )


JPEGS = {
    "RGB in JPEG's YCbCr": {"compressionargs": {"level": 90, "outcolorspace": "ycbcr"}},
    "RGB as Aperio has it": {"compressionargs": {"level": 90, "outcolorspace": "rgb"}},
    "YCbCr": {"photometric": "ycbcr"},
    "YCbCr, chroma halved": {"photometric": "ycbcr", "subsampling": (2, 2)},
}


@pytest.mark.parametrize("name", JPEGS)
def test_stored_jpegs_are_packed_as_they_are_and_all_else_without_a_loss(
    write_jpeg: Callable[..., str], tmp_path: Path, name: str
) -> None:
    slide = Slide(write_jpeg(**JPEGS[name]), mpp=0.5)
    kinds = same(slide, spec_of(0.5), [*ON_GRID, *BESIDE, *AT_EDGE], tmp_path / "a.pack")
    assert kinds == [JPEG] * 2 + [LOSSLESS] * 4
    assert same(slide, spec_of(1.0), [(0, 0), (64, 0)], tmp_path / "b.pack") == [LOSSLESS] * 2  # resampled
    assert same(slide, spec_of(0.5, side=128), [(0, 0)], tmp_path / "c.pack") == [
        LOSSLESS
    ]  # four stored tiles


def test_a_jpeg_that_lacks_nothing_is_packed_byte_by_byte(write_jpeg: Callable[..., str]) -> None:
    path = write_jpeg(photometric="ycbcr")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        assert page.jpegtables is None
        start, size = page.dataoffsets[9], page.databytecounts[9]  # row 2, column 1 of 4 columns
    assert (
        as_bytes(Slide(path, mpp=0.5), (64, 128), spec_of(0.5))[2]
        == Path(path).read_bytes()[start : start + size]
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("CMU-1-Small-Region.svs", JPEG), ("TCGA-CR-7395-01A-01-TS1.svs", LOSSLESS)]
)
def test_real_slides_with_shared_tables_or_jpeg_2000_come_back_equal(
    shared_data: Path, tmp_path: Path, name: str, kind: int
) -> None:
    path = str(shared_data / "slides" / name)
    with tifffile.TiffFile(path) as tiff:
        side = tiff.pages.first.tilewidth
        assert bool(tiff.pages.first.jpegtables) == (kind == JPEG)
    places = [(side * x, side * y) for x in range(3) for y in range(3)]
    slide = Slide(path, mpp=0.5)
    assert same(slide, spec_of(0.5, side=side), places, tmp_path / "a.pack") == [kind] * 9
    assert same(slide, spec_of(1.0, side=side), places[:2], tmp_path / "b.pack") == [LOSSLESS] * 2


def test_what_was_never_written_is_packed_as_white(write_jpeg: Callable[..., str], tmp_path: Path) -> None:
    path = write_jpeg()
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["TileByteCounts"].overwrite([0, *tiff.pages[0].databytecounts[1:]])
    slide = Slide(path, mpp=0.5)
    assert same(slide, spec_of(0.5), [(0, 0), (64, 0)], tmp_path / "a.pack") == [LOSSLESS, JPEG]


def test_a_tile_that_cannot_be_read_is_left_to_its_slide(
    write_jpeg: Callable[..., str], tmp_path: Path
) -> None:
    path = write_jpeg()
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages.first.dataoffsets[0]
    with Path(path).open("r+b") as file:
        file.seek(start + 300)
        file.write(b"\xff\xd9" * 200)
    tiles = [as_bytes(Slide(path, mpp=0.5), place, spec_of(0.5)) for place in [(0, 0), (64, 0)]]
    assert [kind for _, kind, _ in tiles] == [UNREAD, JPEG]
    write_pack(tmp_path / "a.pack", tiles, made_of=MADE_OF)
    pack = Pack(tmp_path / "a.pack", n_tiles=2, made_of=MADE_OF, side_px=TilePx(SIDE))
    assert pack.read(0, (0, 0)) is None
    assert pack.read(1, (64, 0)) is not None


@pytest.fixture
def whole(write_jpeg: Callable[..., str], tmp_path: Path) -> Path:
    """A pack of two tiles, a JPEG and one without a loss."""
    slide = Slide(write_jpeg(), mpp=0.5)
    tiles = [as_bytes(slide, place, spec_of(0.5)) for place in [(0, 0), (10, 0)]]
    write_pack(tmp_path / "whole.pack", tiles, made_of=MADE_OF)
    return tmp_path / "whole.pack"


def opened(path: Path, *, n_tiles: int = 2, made_of: bytes = MADE_OF) -> Pack:
    return Pack(path, n_tiles=n_tiles, made_of=made_of, side_px=TilePx(SIDE))


def test_no_changed_byte_of_a_pack_passes(whole: Path) -> None:
    content = whole.read_bytes()
    expected = [opened(whole).read(i, (10 * i, 0)) for i in range(2)]
    for at in np.random.default_rng(0).choice(len(content), 200, replace=False):
        whole.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        told = [told_of(whole, i, expected[i]) for i in range(2)]
        assert any(told), at
        for sentence in filter(None, told):
            assert sentence.startswith(f"{whole}: ")
            assert sentence.endswith("delete it, and the same command packs its slide again")


def told_of(path: Path, i: int, expected: np.ndarray | None) -> str:
    """What is said when a tile is read; "" where it is the expected one."""
    try:
        np.testing.assert_array_equal(opened(path).read(i, (10 * i, 0)), expected)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("n_left", [0, 10, 100, -1, -200])
def test_a_pack_that_is_cut_short_is_refused_in_a_sentence(whole: Path, n_left: int) -> None:
    whole.write_bytes(whole.read_bytes()[:n_left])
    with pytest.raises(ValueError, match=r"whole.pack: not a whole pack of 2 tiles; delete it"):
        opened(whole)


def test_a_pack_of_other_tiles_is_refused_in_a_sentence(whole: Path) -> None:
    for wrong in (lambda: opened(whole, made_of=bytes(16)), lambda: opened(whole, n_tiles=1)):
        with pytest.raises(
            ValueError, match=r"whole.pack: packed of another slide file or other tiles; delete it"
        ):
            wrong()
    with pytest.raises(ValueError, match=r"its index has another tile at number 1"):
        opened(whole).read(1, (11, 0))
    with pytest.raises(ValueError, match=r"its index is of other tiles"):
        opened(whole).kinds(np.array([[0, 0], [10, 1]], np.int32))


def test_packs_are_known_by_file_and_scale_and_not_by_the_files_time() -> None:
    stamp, spec = Stamp(n_bytes=9, modified_ns=1, digest="ab"), spec_of(0.5)
    known = made_of(stamp, spec, slide_mpp=0.25)
    assert made_of(Stamp(n_bytes=9, modified_ns=2, digest="ab"), spec, slide_mpp=0.25) == known
    others = [
        made_of(Stamp(n_bytes=9, modified_ns=1, digest="ac"), spec, slide_mpp=0.25),
        made_of(stamp, spec_of(1.0), slide_mpp=0.25),
        made_of(stamp, spec, slide_mpp=0.26),
    ]
    assert known not in others


def test_writing_a_pack_takes_no_more_memory_than_a_tile(tmp_path: Path) -> None:
    def tiles() -> Iterator[Tile]:
        for i in range(64):
            yield (i, 0), LOSSLESS, bytes(1_000_000)

    tracemalloc.start()
    write_pack(tmp_path / "a.pack", tiles(), made_of=MADE_OF)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "a.pack").stat().st_size > 64_000_000
    assert most < 4_000_000  # a tile that is being made, the one before, and a buffer


@pytest.mark.parametrize("side", [1, 2, 64])
def test_pixels_come_back_from_their_bytes(side: int) -> None:
    random = np.random.default_rng(side)
    for tile in (random.integers(0, 256, (side, side, 3)), random.choice([0, 255], (side, side, 3))):
        bytes_ = packed(tile.astype(np.uint8))
        np.testing.assert_array_equal(unpacked(bytes_, side_px=side), tile)
    for wrong in (bytes_[:-3], b"", packed(np.zeros((side + 1, side + 1, 3), np.uint8))):
        with pytest.raises(ValueError, match=r"packed by zstd"):
            unpacked(wrong, side_px=side)
