"""Files behind an address: the same bytes, each fetched once, and a word on each failure."""

import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from histo_ssl.config.choices import conf_dir
from histo_ssl.data.manifest import slide_list
from histo_ssl.slides import blocks, fetching, stores
from histo_ssl.slides.opened import open_slides
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.stores import RemoteFile, Store

from .store_server import Served, serve

CONTENT = random.Random(0).randbytes(200_000)
KB = 1024


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A store with a file `a.bin`, of which failures are not waited for."""
    monkeypatch.setattr(fetching, "PAUSE_S", 0.01)
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    with serve(folder) as server:
        yield server
    fetching._silent.clear()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Blocks of 1 KB, in a folder of the test's own."""
    for name in ("blocks", "tallies"):
        (tmp_path / name).mkdir()
    folders = {"cache_dir": str(tmp_path / "blocks"), "tallies": str(tmp_path / "tallies")}
    return Store(block_kb=1, cache_mb=1, timeout_s=10, n_tries=3, **folders)


def afresh(url: str, store: Store) -> RemoteFile:
    """The file as another process opens it: with nothing in memory."""
    stores._blocks.cache_clear()
    return RemoteFile(url, store)


def test_what_is_used_where_nobody_has_read_the_configuration_is_what_it_says() -> None:
    said = OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml").store)
    assert Store(**said) == stores.UNASKED


@pytest.mark.parametrize("block_kb", [1, 16, 1000])
def test_any_part_of_a_remote_file_is_the_part_of_the_file(
    served: Served, store: Store, block_kb: int
) -> None:
    file = RemoteFile(f"{served.address}/a.bin", replace(store, block_kb=block_kb))
    draws = np.random.default_rng(0)
    for start, n_bytes in zip(draws.integers(0, 201_000, 50), draws.integers(0, 5000, 50), strict=True):
        assert file.read_at(int(start), int(n_bytes)) == CONTENT[start : start + n_bytes]
    assert file.seek(-10, os.SEEK_END) == 199_990
    assert file.read(7) == CONTENT[-10:-3]
    assert file.read() == CONTENT[-3:]
    assert file.read(5) == b""
    buffer = bytearray(20)
    file.seek(100)
    assert file.readinto(buffer) == 20
    assert bytes(buffer) == CONTENT[100:120]
    assert file.seek(5, os.SEEK_CUR) == 125 == file.tell()


def test_neighbouring_blocks_come_in_one_request_and_never_twice(served: Served, store: Store) -> None:
    url = f"{served.address}/a.bin"
    file = RemoteFile(url, store)
    file.read_at(2 * KB + 5, 3 * KB)
    assert served.ranges == [(2 * KB, 6 * KB - 1)]
    file.fetch([(1 * KB, 2 * KB), (5 * KB, 7 * KB), (20 * KB + 1, 20 * KB + 2)])
    assert sorted(served.ranges[1:]) == [(1 * KB, 2 * KB - 1), (6 * KB, 7 * KB - 1), (20 * KB, 21 * KB - 1)]
    assert file.read_at(1 * KB, 6 * KB) == CONTENT[1 * KB : 7 * KB]
    assert afresh(url, store).read_at(1 * KB, 6 * KB) == CONTENT[1 * KB : 7 * KB]
    assert len(served.ranges) == 4
    assert served.n_sent == 7 * KB


def test_two_that_want_the_same_at_the_same_time_fetch_it_once(served: Served, store: Store) -> None:
    url = f"{served.address}/a.bin"
    files = [afresh(url, store) for _ in range(2)]
    assert files[0].blocks is not files[1].blocks
    served.delay_s = 0.2
    threads = [threading.Thread(target=file.read_at, args=(0, 8 * KB)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served.ranges == [(0, 8 * KB - 1)]


def test_what_was_read_is_counted_over_processes(served: Served, store: Store) -> None:
    url = f"{served.address}/a.bin"
    for _ in range(2):
        afresh(url, store).read_at(0, 1500)
    counted = blocks.traffic_of(Path(store.tallies))
    assert (counted.n_asked, counted.n_sent, counted.n_requests) == (
        3000,
        2 * KB,
        3,
    )
    assert str(counted) == "stores sent 0.0 MB in 3 requests for 0.0 MB that were read"
    assert counted - counted == blocks.Traffic()


def test_the_disk_keeps_what_was_read_last_and_no_more_than_it_may(tmp_path: Path) -> None:
    for name in ("blocks", "tallies"):
        (tmp_path / name).mkdir()

    def kept() -> blocks.Blocks:
        return blocks.Blocks(tmp_path / "blocks", tallies=tmp_path / "tallies", n_bytes=100 * KB)

    writer = kept()
    for i in range(60):
        writer.keep(f"{i:02}-first", CONTENT[:KB])
        os.utime(tmp_path / "blocks" / f"{i:02}" / f"{i:02}-first", (i, i))
    assert kept().find("00-first") == CONTENT[:KB]  # which makes it the one that was read last
    for i in range(60):
        writer.keep(f"{i:02}-second", CONTENT[:KB])
    sizes = [path.stat().st_size for path in (tmp_path / "blocks").glob("*/*")]
    assert 75 * KB < sum(sizes) <= 101 * KB
    found = [kept().find(f"{i:02}-first") is not None for i in range(60)]
    assert found[0]
    assert not any(found[1:20])
    assert all(kept().find(f"{i:02}-second") for i in range(60))


def test_a_block_that_a_disk_has_damaged_is_fetched_anew(served: Served, store: Store) -> None:
    url = f"{served.address}/a.bin"
    RemoteFile(url, store).read_at(0, 2 * KB)
    first, second = (path for path in Path(str(store.cache_dir)).glob("*/*") if path.suffix != ".lock")
    first.write_bytes(bytes(first.stat().st_size))
    second.write_bytes(second.read_bytes()[:100])
    assert afresh(url, store).read_at(0, 2 * KB) == CONTENT[: 2 * KB]
    assert len(served.ranges) == 2


def test_a_disk_without_room_is_told_of_once_and_changes_no_byte(
    served: Served, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    file = afresh(f"{served.address}/a.bin", store)
    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        assert [file.read_at(i * KB, 10) for i in range(3)] == [CONTENT[i * KB :][:10] for i in range(3)]
    (said,) = caplog.messages
    assert "No space left on device" in said
    assert "store.cache_dir" in said


@pytest.mark.parametrize("faults", [[503, 429], [0, 500]])
def test_an_answer_that_fails_is_asked_for_again(served: Served, store: Store, faults: list[int]) -> None:
    served.faults = list(faults)
    file = afresh(f"{served.address}/a.bin", store)
    assert file.read_at(0, 3000) == CONTENT[:3000]
    assert len(served.ranges) == 3
    assert blocks.traffic_of(Path(store.tallies)).n_again == 2


def test_of_several_ranges_those_that_failed_are_asked_for_again(served: Served, store: Store) -> None:
    file = afresh(f"{served.address}/a.bin", store)
    served.faults = [503]
    file.fetch([(i * 10 * KB, i * 10 * KB + 1) for i in range(4)])
    assert len(served.ranges) == 5
    assert served.n_sent == 4 * KB


def test_what_can_not_pass_is_told_at_once(served: Served, store: Store) -> None:
    file = afresh(f"{served.address}/a.bin", store)
    served.faults = [403]
    with pytest.raises(OSError, match=r"^the store answered 403 Forbidden$"):
        file.read_at(0, 10)
    with pytest.raises(FileNotFoundError):
        RemoteFile(f"{served.address}/absent.bin", store)
    assert served.asked.count("HEAD") == 2


def test_a_store_that_fails_is_asked_as_often_as_said_and_then_once_until_it_answers(
    served: Served, store: Store
) -> None:
    file = afresh(f"{served.address}/a.bin", store)
    served.faults = [503] * 5
    for n_tries, words in ((3, ", 3 times in a row"), (1, ""), (1, "")):
        served.forget()
        with pytest.raises(OSError, match=f"^the store answered 503 Service Unavailable{words}$"):
            file.read_at(0, 10)
        assert len(served.ranges) == n_tries
    assert file.read_at(0, 10) == CONTENT[:10]
    served.faults = [503, 503]
    assert file.read_at(50 * KB, 10) == CONTENT[50 * KB :][:10]


def test_a_store_that_does_not_answer_in_time_is_told_of(served: Served, store: Store) -> None:
    file = afresh(f"{served.address}/a.bin", replace(store, timeout_s=0.1, n_tries=2))
    served.delay_s = 1.0
    with pytest.raises(OSError, match=r"did not answer within store\.timeout_s=0\.1, 2 times in a row"):
        file.read_at(0, 10)


def test_a_server_that_is_not_there_is_no_missing_file(store: Store, served: Served) -> None:
    with pytest.raises(OSError, match=r"^the store failed, 3 times in a row: Cannot connect to host") as told:
        RemoteFile("http://127.0.0.1:9/a.bin?X-Amz-Signature=abc", store)
    assert not isinstance(told.value, FileNotFoundError)
    assert "abc" not in str(told.value)


def test_a_small_file_is_taken_whole_from_a_server_without_ranges_and_a_large_one_refused(
    served: Served, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.knows_ranges = False
    file = afresh(f"{served.address}/a.bin", store)
    assert file.read_at(5 * KB, 10) == CONTENT[5 * KB :][:10]
    assert file.read_at(100 * KB, 90 * KB) == CONTENT[100 * KB : 190 * KB]
    assert served.n_sent == len(CONTENT)  # once
    monkeypatch.setattr(stores, "WHOLE_BYTES", len(CONTENT) - 1)
    with pytest.raises(ValueError, match="its server sends all of its 0 MB where a range is asked for"):
        RemoteFile(f"{served.address}/a.bin?again", store).read_at(0, 10)


def test_a_file_that_is_replaced_is_noticed(
    served: Served, store: Store, monkeypatch: pytest.MonkeyPatch, coordinate_slide: str
) -> None:
    monkeypatch.setattr(stores, "LOOK_S", 0.0)
    path = served.folder / "slide.tif"
    path.write_bytes(Path(coordinate_slide).read_bytes())
    url = f"{served.address}/slide.tif"
    slide = Slide(url, known=Slide(url, store=store).stamp, store=store)
    thumbnail = slide.thumbnail(1.0)
    os.utime(path, (0, 0))  # the same bytes, copied again
    np.testing.assert_array_equal(slide.thumbnail(1.0), thumbnail)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, (5, 5))
    with pytest.raises(ValueError, match=f"^{url}: .*the file has changed since it was tiled"):
        slide.thumbnail(1.0)
    open_slides.slides.clear()


@pytest.mark.parametrize(("url", "module", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_library_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = rf"reads {url}:// is not installed: pip install 'histo-ssl\[{extra}\]'"
    with pytest.raises(ValueError, match=said):
        _ = Slide(f"{url}://bucket/a.svs").facts
    for place in (
        {"root": f"{url}://bucket/slides", "manifest": None},
        {"root": None, "manifest": f"{url}://b/m.csv"},
    ):
        with pytest.raises(ValueError, match=said):
            slide_list(**place)


def test_the_slides_of_a_folder_on_a_server_are_found(served: Served) -> None:
    for name in ("one.svs", "two b.tif", "read.me"):
        (served.folder / name).write_bytes(b"x")
    slides = slide_list(root=served.address + "/", manifest=None)
    assert slides["slide_id"].tolist() == ["one", "two b"]
    assert slides["path"].tolist() == [f"{served.address}/one.svs", f"{served.address}/two%20b.tif"]


def test_a_temporary_folder_of_blocks_ends_with_the_process_that_made_it(tmp_path: Path) -> None:
    code = (
        "import os, sys; from histo_ssl.slides import stores; folder = stores.current().cache_dir; "
        "pid = os.fork(); pid or sys.exit(); os.waitpid(pid, 0); print(folder, os.path.isdir(folder))"
    )
    settings = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True
    )
    folder, was_there = done.stdout.split()
    assert folder.startswith(str(tmp_path / "histo_ssl-"))
    assert was_there == "True"
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_on_a_server_lists_what_lies_beside_it(served: Served) -> None:
    (served.folder / "m.csv").write_text("slide_id,path\none,deep/a.svs\n")
    slides = slide_list(root=None, manifest=f"{served.address}/m.csv")
    assert slides["path"].tolist() == [f"{served.address}/deep/a.svs"]


@pytest.mark.parametrize(("key", "name"), [("root", "slides/"), ("manifest", "m.csv")])
def test_lists_that_can_not_be_had_are_told_of_by_their_address(served: Served, key: str, name: str) -> None:
    for address, words in (
        (served.address, "no such file or folder"),
        ("http://127.0.0.1:9", "the store failed: "),
    ):
        url = f"{address}/{name}"
        with pytest.raises(OSError, match=f"^{url}: .*{words}"):
            slide_list(**{"root": None, "manifest": None, key: url})


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_many_ranges_at_once_bring_no_byte_twice(served: Served, store: Store, *, knows_ranges: bool) -> None:
    served.knows_ranges = knows_ranges
    file = RemoteFile(f"{served.address}/a.bin", replace(store, cache_mb=0))
    served.forget()
    wanted = [(start, start + 10) for start in range(0, len(CONTENT), 10 * KB)]
    file.fetch(wanted)
    assert served.n_sent == (len(wanted) * KB if knows_ranges else len(CONTENT))
    assert all(file.read_at(start, 10) == CONTENT[start : start + 10] for start, _ in wanted)
    assert len(served.ranges) == (len(wanted) if knows_ranges else 1)
