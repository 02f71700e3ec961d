"""A slide that was closed is opened again without being parsed: the same tiles, or the same refusal."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from histo_ssl.slides import files, opened, reader
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.opened import OpenSlides
from histo_ssl.slides.outlines import OutlinedSlide
from histo_ssl.slides.reader import Slide
from histo_ssl.units import MicronsPerPx, TilePx

SIDE = 64  # of a stored tile
PX = 4 * SIDE


def _spec(mpp: float) -> TileSpec:
    return TileSpec(size_px=TilePx(SIDE), mpp=MicronsPerPx(mpp), stride_px=TilePx(SIDE), min_tissue=0)


@pytest.fixture
def n_parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that tells how often a file was parsed, where one slide is open at a time."""
    calls, parse = [], files.OpenSlide.__init__

    def count(*args: object) -> None:
        calls.append(1)
        parse(*args)

    monkeypatch.setattr(files.OpenSlide, "__init__", count)
    monkeypatch.setattr(opened, "MAX_OPEN_SLIDES", 1)
    fresh = OpenSlides()
    for module in (opened, reader):
        monkeypatch.setattr(module, "open_slides", fresh)
    return lambda: len(calls)


def _known(path: str) -> Slide:
    """A slide as one reads it that was tiled."""
    return Slide(path, known=Slide(path).stamp)


def _noise(seed: int, side_px: int = PX) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


Write = Callable[..., str]


def _written(write_slide: Write, folder: Path, *, kind: str) -> list[str]:
    """Two slides of two levels that differ."""
    if kind in ("jpeg", "deflate", "grey"):
        names = [(f"{kind}{i}.tif", [_noise(i), _noise(i + 10, PX // 4)]) for i in (0, 1)]
        if kind == "grey":
            names = [(name, [level[..., 0] for level in levels]) for name, levels in names]
        how = "deflate" if kind == "deflate" else "jpeg"
        return [write_slide(levels, mpp=0.5, name=name, compression=how) for name, levels in names]
    paths = [folder / f"{kind}{i}.tif" for i in (0, 1)]
    how = {"big": {"bigtiff": True}, "other endian": {"byteorder": ">"}}[kind]
    options: dict[str, object] = {"tile": (SIDE, SIDE), "compression": "jpeg", "photometric": "ycbcr"}
    options |= {"subsampling": (2, 2), "resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    for i, path in enumerate(paths):
        with tifffile.TiffWriter(path, **how) as tiff:
            for level in (_noise(i), _noise(i + 10, PX // 4)):
                tiff.write(level, metadata=None, **options)
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("kind", "is_outlined"),
    [("jpeg", True), ("grey", True), ("big", True), ("other endian", True), ("deflate", False)],
)
def test_tiles_of_slides_that_were_closed_are_what_they_were(
    write_slide: Write, tmp_path: Path, n_parsed: Callable[[], int], kind: str, is_outlined: bool
) -> None:
    slides = [_known(path) for path in _written(write_slide, tmp_path, kind=kind)]
    n_at_first = n_parsed()
    wanted = [
        (xy, mpp) for xy in ((0, 0), (SIDE, 2 * SIDE), (37, 91), (PX - 20, PX - 20)) for mpp in (0.5, 2)
    ]
    first = [[slide.read(xy, _spec(mpp)) for xy, mpp in wanted] for slide in slides]
    assert not np.array_equal(first[0], first[1])
    n_before = n_parsed()
    for i, (xy, mpp) in enumerate(wanted):
        for slide, tiles in zip(slides, first, strict=True):
            np.testing.assert_array_equal(slide.read(xy, _spec(mpp)), tiles[i])
            (there,) = opened.open_slides.slides.values()
            assert isinstance(there, OutlinedSlide) == is_outlined
    assert n_before == n_at_first + 2
    assert n_parsed() - n_before == (0 if is_outlined else 2 * len(wanted))
    assert slides[0].stamp.n_bytes == Path(slides[0].path).stat().st_size  # which is asked of the parsed file


def test_a_file_that_was_replaced_while_it_was_closed_is_read_anew_or_refused(
    write_slide: Write, tmp_path: Path, n_parsed: Callable[[], int]
) -> None:
    path, other = _written(write_slide, tmp_path, kind="jpeg")
    any_file, known = Slide(path), _known(path)
    for slide in (any_file, known, Slide(other), any_file, known):
        old = slide.read((0, 0), _spec(0.5))
    Slide(other).read((0, 0), _spec(0.5))  # closes the first
    assert [name for name, _ in opened.open_slides.outlines] == [path]
    Path(path).write_bytes(Path(other).read_bytes())
    os.utime(path, ns=(1, 1))
    new = any_file.read((0, 0), _spec(0.5))
    np.testing.assert_array_equal(new, Slide(other).read((0, 0), _spec(0.5)))
    assert not np.array_equal(new, old)
    with pytest.raises(ValueError, match="the file has changed since it was tiled"):
        known.read((0, 0), _spec(0.5))
    Path(path).unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}: there is no such file"):
        any_file.read((0, 0), _spec(0.5))


def test_of_thousands_of_slides_no_more_is_kept_than_the_bound(
    write_slide: Write, tmp_path: Path, n_parsed: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "MAX_OUTLINES", 3)
    path, _ = _written(write_slide, tmp_path, kind="jpeg")
    slides = []
    for i in range(6):
        os.link(path, tmp_path / f"link{i}.tif")
        slides.append(_known(str(tmp_path / f"link{i}.tif")))
    n_at_first = n_parsed()
    for slide in slides:
        slide.read((0, 0), _spec(0.5))
    assert [Path(name).stem for name, _ in opened.open_slides.outlines] == ["link2", "link3", "link4"]
    slides[2].read((0, 0), _spec(0.5))
    assert n_parsed() == n_at_first + 6
    slides[0].read((0, 0), _spec(0.5))
    assert n_parsed() == n_at_first + 7
