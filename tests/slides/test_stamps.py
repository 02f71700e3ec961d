"""A file that is not the one that was tiled is refused, and a copy of the same bytes is not."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from histo_ssl.slides import segments
from histo_ssl.slides.grid import TileSpec
from histo_ssl.slides.opened import open_slides
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.stamps import Stamp, lies_unchanged, stamp_in
from histo_ssl.units import MicronsPerPx, TilePx

SPEC = TileSpec(size_px=TilePx(64), mpp=MicronsPerPx(0.5), stride_px=TilePx(64), min_tissue=0)
CHANGED = r"slide\.tif: .* the file has changed since it was tiled"


@pytest.fixture
def two(write_slide: Callable[..., str]) -> tuple[str, bytes, bytes]:
    """A slide file, its bytes, and the bytes of another slide of the same size."""
    contents = []
    for value in (200, 100):
        pixels = np.full((640, 640, 3), value, np.uint8)
        path = write_slide([pixels], mpp=0.5, compression=None)
        contents.append(Path(path).read_bytes())
    Path(path).write_bytes(contents[0])
    os.utime(path, ns=(0, 10**18))
    assert len(contents[0]) == len(contents[1]) > 2**20
    return path, contents[0], contents[1]


def forget() -> None:
    """What a new process begins with."""
    open_slides.slides.clear()


def value(slide: Slide) -> int:
    return int(slide.read((0, 0), SPEC)[0, 0, 0])


def test_another_file_of_the_same_size_is_refused(two: tuple[str, bytes, bytes]) -> None:
    path, _, other = two
    slide = Slide(path, known=Slide(path).stamp)
    assert value(slide) == 200
    forget()
    Path(path).write_bytes(other)
    with pytest.raises(ValueError, match=CHANGED):
        value(slide)
    assert value(Slide(path)) == 100  # whoever knows no stamp takes what is there


def test_the_same_bytes_with_another_time_are_the_same_file(two: tuple[str, bytes, bytes]) -> None:
    path, same, _ = two
    known = Slide(path).stamp
    forget()
    Path(path).write_bytes(same)
    assert Slide(path).stamp == replace(known, modified_ns=Path(path).stat().st_mtime_ns)
    assert known.modified_ns == 10**18 != Path(path).stat().st_mtime_ns
    assert value(Slide(path, known=known)) == 200
    assert lies_unchanged(path, known)


@pytest.mark.parametrize("n_bytes", [-1, 1])
def test_another_size_is_another_file(two: tuple[str, bytes, bytes], n_bytes: int) -> None:
    path, _, _ = two
    known = Slide(path).stamp
    forget()
    known = replace(known, n_bytes=known.n_bytes + n_bytes)
    assert not lies_unchanged(path, known)
    with pytest.raises(ValueError, match=CHANGED):
        value(Slide(path, known=known))


def test_a_file_that_is_overwritten_while_it_is_open_is_refused_until_it_is_itself_again(
    two: tuple[str, bytes, bytes],
) -> None:
    path, same, other = two
    slide = Slide(path, known=Slide(path).stamp)
    assert value(slide) == 200
    Path(path).write_bytes(other)
    with pytest.raises(ValueError, match=CHANGED):
        value(slide)
    Path(path).write_bytes(same)
    assert value(slide) == 200


def test_a_file_that_is_overwritten_during_a_read_gives_no_pixel(
    two: tuple[str, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, other = two
    slide, pixels = Slide(path, known=Slide(path).stamp), segments.pixels
    value(slide)

    def overwritten_first(*args: object, **options: object) -> np.ndarray:
        Path(path).write_bytes(other)
        return pixels(*args, **options)

    monkeypatch.setattr(segments, "pixels", overwritten_first)
    with pytest.raises(ValueError, match="it was written to while it was read"):
        value(slide)


def test_a_file_that_another_took_the_place_of_is_read_on_where_it_is_open(
    two: tuple[str, bytes, bytes],
) -> None:
    path, _, other = two
    slide = Slide(path, known=Slide(path).stamp)
    assert value(slide) == 200
    Path(path + ".new").write_bytes(other)
    Path(path + ".new").rename(path)
    assert value(slide) == 200  # the bytes that were tiled, still there for those who have them open
    forget()
    with pytest.raises(ValueError, match=CHANGED):
        value(slide)


def test_a_remote_file_has_the_stamp_of_its_local_copy_but_for_its_time(
    two: tuple[str, bytes, bytes],
) -> None:
    path, same, other = two
    address = "memory://stamps/slide.tif"
    with fsspec.open(address, "wb") as copy:
        copy.write(same)
    known = Slide(address).stamp
    assert replace(known, modified_ns=10**18) == Slide(path).stamp
    assert lies_unchanged(address, known)
    assert value(Slide(address, known=known)) == 200
    longer = replace(known, n_bytes=len(same) + 1)
    assert not lies_unchanged(address, longer)
    forget()
    with pytest.raises(ValueError, match=CHANGED):
        value(Slide(address, known=longer))
    with fsspec.open(address, "wb") as copy:
        copy.write(other)
    assert not lies_unchanged(address, known)
    with pytest.raises(ValueError, match=CHANGED):
        value(Slide(address, known=known))
    assert not lies_unchanged(address.replace("slide", "absent"), known)


def test_of_a_remote_file_in_an_old_status_csv_the_size_alone_is_compared(
    two: tuple[str, bytes, bytes],
) -> None:
    address = "memory://stamps/old.tif"
    with fsspec.open(address, "wb") as copy:
        copy.write(two[1])
    known = Stamp(n_bytes=len(two[1]), modified_ns=0, digest="")
    assert lies_unchanged(address, known)
    assert value(Slide(address, known=known)) == 200


def test_a_file_that_is_gone_or_no_file_is_not_unchanged(
    two: tuple[str, bytes, bytes], tmp_path: Path
) -> None:
    path, _, _ = two
    known = Slide(path).stamp
    os.mkfifo(tmp_path / "fifo")  # opening it would wait forever
    for name in ("absent.tif", "fifo", "."):
        assert not lies_unchanged(str(tmp_path / name), known)
    assert not lies_unchanged(path, None)


def test_rows_without_a_stamp_know_none() -> None:
    assert stamp_in({"slide_id": "of an older status.csv"}) is None
    assert stamp_in({"n_bytes": 0, "modified_ns": 0, "digest": ""}) is None
