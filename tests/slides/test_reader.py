"""Pixels of slides: against coordinates that the pixels hold, against tiffslide, against OpenSlide."""

import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import openslide
import pytest
import tiffslide

from histo_ssl.slides import opened, reader
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.reader import Slide
from histo_ssl.units import MicronsPerPx, TilePx

RAMP_SIZE = (125, 127)  # odd, so that every level has lost a remainder


def spec(size_px: int, mpp: float) -> TileSpec:
    return TileSpec(size_px=TilePx(size_px), mpp=MicronsPerPx(mpp), stride_px=TilePx(size_px), min_tissue=0.5)


@pytest.fixture
def ramp_slide(write_slide) -> str:
    """Levels of 0.25, 0.5 and 1.0 um/px: red is twice the level-0 px from the left edge, green from the top.

    That is exact in 8 bits on all levels: a pixel's centre lies at (i + 0.5) * downsample.
    """
    w, h = RAMP_SIZE
    levels = []
    for downsample in (1, 2, 4):
        y, x = np.mgrid[: h // downsample, : w // downsample]
        ramp = 2 * downsample * (np.stack([x, y, np.zeros_like(x)], axis=2) + 0.5)
        levels.append((ramp * (1, 1, 0)).astype(np.uint8))
    return write_slide(levels, mpp=0.25)


def test_a_tile_at_the_scans_own_resolution_is_made_of_the_scans_own_pixels(coordinate_slide: str) -> None:
    tile = Slide(coordinate_slide).read((300, 17), spec(256, 0.5)).astype(int)
    y, x = np.mgrid[17 : 17 + 256, 300 : 300 + 256]
    np.testing.assert_array_equal(tile[..., 0] + 256 * (tile[..., 2] // 16), x)
    np.testing.assert_array_equal(tile[..., 1] + 256 * (tile[..., 2] % 16), y)


def test_a_tile_at_a_levels_own_resolution_has_the_bytes_that_tiffslide_reads(ramp_slide: str) -> None:
    # From the origin: tiffslide places regions by 127 / 63 instead of 2 and drifts by a pixel on the way.
    with tiffslide.TiffSlide(ramp_slide) as slide:
        theirs = slide.read_region((0, 0), 1, (60, 60), as_array=True)
    np.testing.assert_array_equal(Slide(ramp_slide).read((0, 0), spec(60, 0.5)), theirs)


@pytest.mark.parametrize("xy", [(8, 8), (9, 10), (11, 13), (26, 7)])
@pytest.mark.parametrize(
    ("size_px", "mpp"), [(20, 0.25), (24, 0.3), (20, 0.5), (17, 0.6), (16, 1.0), (9, 1.7)]
)
def test_a_tile_lies_where_it_was_asked_for_to_half_a_pixel(
    ramp_slide: str, xy: tuple[int, int], size_px: int, mpp: float
) -> None:
    tile_spec = spec(size_px, mpp)
    tile = Slide(ramp_slide).read(xy, tile_spec).astype(float)
    px_level0 = tile_spec.side_level0(MicronsPerPx(0.25)) / size_px
    centres = (np.arange(size_px) + 0.5) * px_level0
    # Two grey levels per level-0 pixel; rounding to 8 bits may cost one (half a level-0 pixel).
    assert np.abs(tile[..., 0] - 2 * (xy[0] + centres)[None, :]).max() <= 1
    assert np.abs(tile[..., 1] - 2 * (xy[1] + centres)[:, None]).max() <= 1


def test_tiles_that_touch_are_cut_from_one_picture(ramp_slide: str) -> None:
    slide = Slide(ramp_slide)
    left, right = slide.read((10, 10), spec(10, 0.6)), slide.read((34, 10), spec(10, 0.6))
    both = slide.read((10, 10), spec(20, 0.6))[:10]
    np.testing.assert_array_equal(np.concatenate([left, right], axis=1), both)


def test_outside_the_scan_there_is_white_glass(coordinate_slide: str) -> None:
    slide = Slide(coordinate_slide)
    inside = slide.read((0, 0), spec(20, 0.5))
    corner = slide.read((-5, -7), spec(20, 0.5))
    np.testing.assert_array_equal(corner[7:, 5:], inside[:13, :15])
    assert (corner[:7] == 255).all()
    assert (corner[:, :5] == 255).all()
    assert (slide.read((5000, 5000), spec(20, 0.5)) == 255).all()


def test_a_level_that_lost_a_remainder_shows_no_white_within_the_scan(ramp_slide: str) -> None:
    w, h = RAMP_SIZE
    tile = Slide(ramp_slide).read((w - 40, h - 40), spec(10, 1.0)).astype(int)
    assert tile[..., 2].max() == 0  # blue is zero everywhere on the scan
    # The last column is the level's last one again: up to three level-0 pixels from where it lies.
    assert np.abs(tile[0, :, 0] - 2 * (w - 40 + 4 * (np.arange(10) + 0.5))).max() <= 6


def test_the_thumbnail_divides_the_scan_evenly(ramp_slide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = RAMP_SIZE
    thumbnail = Slide(ramp_slide).thumbnail(2.0)
    assert thumbnail.shape == (16, 16, 3)  # 127 and 125 px of 0.25 um/px
    assert np.abs(thumbnail[5, 1:-1, 0] - 2 * (np.arange(1, 15) + 0.5) * w / 16).max() <= 1.5
    assert np.abs(thumbnail[1:-1, 5, 1] - 2 * (np.arange(1, 15) + 0.5) * h / 16).max() <= 1.5
    monkeypatch.setattr(reader, "BAND_PX", 100)  # ten bands instead of one
    np.testing.assert_array_equal(Slide(ramp_slide).thumbnail(2.0), thumbnail)


def test_a_thumbnail_is_never_finer_than_the_scan(ramp_slide: str) -> None:
    np.testing.assert_array_equal(
        Slide(ramp_slide).thumbnail(0.01), Slide(ramp_slide).read((0, 0), spec(127, 0.25))[:, :125]
    )


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "her2st_C2.tif"])
def test_pixels_are_those_that_openslide_reads(shared_data: Path, name: str) -> None:
    path = str(shared_data / "slides" / name)
    slide, theirs = Slide(path), openslide.OpenSlide(path)
    assert slide.size_level0 == theirs.dimensions
    for x, y in [(0, 0), (1000, 1000), (1333, 1777)]:
        ours = slide.read((x, y), spec(256, slide.mpp)).astype(int)
        other = np.asarray(theirs.read_region((x, y), 0, (256, 256)).convert("RGB")).astype(int)
        # Two JPEG decoders may round the inverse transform and the colours differently, by a few grey levels.
        assert np.abs(ours - other).max() <= 4


def test_a_scan_up_to_five_percent_coarser_is_enlarged_and_a_coarser_one_refused(
    coordinate_slide: str,
) -> None:
    enlarged = Slide(coordinate_slide, mpp=0.504).read((0, 0), spec(256, 0.5))
    x_level0 = (np.arange(200) + 0.5) * 254 / 256 - 0.5  # 256 * 0.5 / 0.504 is 254 px
    assert np.abs(enlarged[128, :200, 0] - x_level0).max() <= 1
    with pytest.raises(ValueError, match=r"0\.5 um/px asked from a scan of 0\.530 .* tiling\.mpp >= 0\.530"):
        Slide(coordinate_slide, mpp=0.53).read((0, 0), spec(256, 0.5))


@pytest.mark.parametrize("mpp", [None, 25400 / 72, 1e9])
def test_a_file_without_a_sane_um_per_px_says_how_to_state_it(write_slide, mpp: float | None) -> None:
    path = write_slide([np.zeros((64, 64, 3), np.uint8)], mpp=mpp)
    with pytest.raises(ValueError, match=r"slide\.tif.*no usable um/px.*data\.mpp_override"):
        _ = Slide(path).mpp
    assert Slide(path, mpp=0.25).mpp == 0.25
    assert Slide(path, mpp_if_unknown=0.25).mpp == 0.25


def test_what_is_stated_for_unknown_files_does_not_overrule_one_that_knows(coordinate_slide: str) -> None:
    assert Slide(coordinate_slide, mpp_if_unknown=0.25).mpp == pytest.approx(0.5)
    assert Slide(coordinate_slide, mpp=0.4, mpp_if_unknown=0.25).mpp == 0.4


def test_the_um_per_px_of_x_and_y_are_averaged_up_to_one_percent_and_refused_beyond(write_slide) -> None:
    pixels = [np.zeros((64, 64, 3), np.uint8)]
    assert Slide(write_slide(pixels, mpp=(0.5, 0.504))).mpp == pytest.approx(0.502, abs=1e-6)
    with pytest.raises(ValueError, match=r"not square.*data\.mpp_override"):
        _ = Slide(write_slide(pixels, mpp=(0.5, 0.51), name="oblong.tif")).mpp


def test_grey_slides_are_read_as_rgb_and_16_bit_ones_refused(write_slide) -> None:
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    tile = Slide(write_slide([grey], mpp=0.5)).read((0, 0), spec(64, 0.5))
    np.testing.assert_array_equal(tile, grey[..., None].repeat(3, axis=2))
    deep = write_slide([grey.astype(np.uint16)], mpp=0.5, name="deep.tif")
    with pytest.raises(ValueError, match=r"deep\.tif.*uint16, 8-bit ones are expected"):
        Slide(deep).read((0, 0), spec(64, 0.5))


def test_what_is_no_slide_is_refused_in_one_sentence_with_its_path(tmp_path: Path) -> None:
    for name, content in {"text.svs": "slide_id,path\n" * 40, "empty.svs": ""}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(
            ValueError, match=rf"{name}: cannot be read as a slide: not a TIFF file"
        ) as raised:
            _ = Slide(str(tmp_path / name)).size_level0
        assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match=r"absent\.svs: there is no such file"):
        _ = Slide(str(tmp_path / "absent.svs")).size_level0


def test_a_truncated_slide_fails_with_its_path_when_the_lost_part_is_read(coordinate_slide: str) -> None:
    content = Path(coordinate_slide).read_bytes()
    # The tiles' data lie last: half of the file keeps the header and loses the lower tiles.
    Path(coordinate_slide).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"slide\.tif: cannot be read as a slide"):
        Slide(coordinate_slide).read((400, 300), spec(256, 0.5))


def places(n: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(0)
    return [(int(x), int(y)) for x, y in random.integers(0, 400, size=(n, 2))]


def tile_bytes(slide: Slide, xy: tuple[int, int]) -> bytes:
    return slide.read(xy, spec(96, 0.6)).tobytes()


def test_eight_threads_read_the_same_bytes_as_one(coordinate_slide: str) -> None:
    slide = Slide(coordinate_slide)
    one = [tile_bytes(slide, xy) for xy in places(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(partial(tile_bytes, slide), places(64))) == one


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_read_the_same_bytes_as_this_process(coordinate_slide: str, start_method: str) -> None:
    slide = Slide(coordinate_slide)
    here = [tile_bytes(slide, xy) for xy in places(32)]  # the file is open here when workers start
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(start_method)) as pool:
        assert list(pool.map(partial(tile_bytes, slide), places(32), chunksize=4)) == here


def test_a_pickled_slide_carries_its_facts_but_no_file(coordinate_slide: str) -> None:
    slide = Slide(coordinate_slide)
    slide.read((0, 0), spec(64, 0.5))
    content = pickle.dumps(slide)
    assert len(content) < 1000
    assert pickle.loads(content).__dict__ == slide.__dict__
    assert tile_bytes(pickle.loads(content), (5, 6)) == tile_bytes(slide, (5, 6))


def test_a_thread_keeps_the_slides_open_that_it_used_last(
    write_slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "MAX_OPEN_SLIDES", 2)
    slides = [
        Slide(write_slide([np.full((64, 64, 3), i, np.uint8)], mpp=0.5, name=f"{i}.tif")) for i in range(4)
    ]

    def still_open() -> tuple[list[int], int]:
        for i in (0, 1, 0, 2, 3, 3, 1):
            assert (slides[i].read((0, 0), spec(64, 0.5)) == i).all()
        mine = opened.open_slides.slides
        handles = [slide.file for slide in mine.values()]
        return [int(Path(path).stem) for path, _ in mine], sum(not handle.closed for handle in handles)

    with ThreadPoolExecutor(1) as pool:  # a fresh thread has none open
        assert pool.submit(still_open).result() == ([3, 1], 2)


@pytest.fixture
def http_address(tmp_path: Path) -> Iterator[str]:
    """Address of a local server of the test's folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_slide_in_memory_or_behind_http_reads_as_a_local_one(
    coordinate_slide: str, http_address: str
) -> None:
    with fsspec.open("memory://slides/copy.tif", "wb") as copy:
        copy.write(Path(coordinate_slide).read_bytes())
    local = Slide(coordinate_slide)
    for address in ("memory://slides/copy.tif", f"{http_address}/slide.tif"):
        remote = Slide(address)
        assert remote.facts == local.facts
        assert tile_bytes(remote, (100, 50)) == tile_bytes(local, (100, 50))
        with pytest.raises(FileNotFoundError, match=r"absent\.tif: there is no such file"):
            _ = Slide(address.rpartition("/")[0] + "/absent.tif").size_level0
