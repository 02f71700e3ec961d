"""Files over HTTP from a server on this machine, which hangs up, has others, or can't go on."""

import random
import socket
from pathlib import Path
from typing import Any

import pytest

from histo_ssl.download import transfer
from histo_ssl.download.transfer import TransferError, fetch

CONTENT = random.Random(0).randbytes(3_000_000)  # three chunks


@pytest.fixture
def server(site: Any) -> Any:
    site.files["f.zip"] = CONTENT
    return site


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_is_not_fetched_twice(server: Any, tmp_path: Path) -> None:
    file = server.remote("f.zip", most_bytes=10**7)
    for _ in range(2):
        assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.asked == [""]
    assert _left(tmp_path) == ["f.zip"]


def test_a_transfer_goes_on_with_the_bytes_that_are_there(server: Any, tmp_path: Path) -> None:
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:1_234_567])
    assert fetch(server.remote("f.zip", most_bytes=10**7), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1234567-"]


@pytest.mark.parametrize("known", [True, False])
def test_a_server_that_hangs_up_is_asked_for_the_rest(server: Any, tmp_path: Path, known: bool) -> None:
    server.cut_after = [1_000_000, 500_000]
    changes = {} if known else {"n_bytes": None}
    assert fetch(server.remote("f.zip", most_bytes=10**7, **changes), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000000-", "bytes=1500000-"]


def test_a_body_that_gets_no_further_ends_in_a_sentence_and_keeps_what_came(
    server: Any, tmp_path: Path
) -> None:
    server.cut_after = [1_000_000, 0]
    with pytest.raises(TransferError, match=r"1,000,000 bytes are kept, and the same command goes on"):
        fetch(server.remote("f.zip", most_bytes=10**7), tmp_path)
    assert (tmp_path / "f.zip.part").read_bytes() == CONTENT[:1_000_000]
    assert fetch(server.remote("f.zip", most_bytes=10**7), tmp_path).read_bytes() == CONTENT


def test_a_whole_part_needs_no_server(server: Any, tmp_path: Path) -> None:
    (tmp_path / "f.zip.part").write_bytes(CONTENT)
    fetch(server.remote("f.zip", most_bytes=10**7), tmp_path)
    assert server.asked == []
    (tmp_path / "f.zip").rename(tmp_path / "f.zip.part")
    fetch(server.remote("f.zip", most_bytes=10**7, n_bytes=None), tmp_path)  # the server says 416
    assert server.asked == ["bytes=3000000-"]


def test_a_server_that_cannot_go_on_is_named_and_the_part_kept(server: Any, tmp_path: Path) -> None:
    server.takes_ranges = False
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:10])
    with pytest.raises(TransferError, match=r"can't go on after the 10 bytes that are here; delete \.part"):
        fetch(server.remote("f.zip", most_bytes=10**7), tmp_path)
    assert _left(tmp_path) == ["f.zip.part"]


def test_another_stretch_than_was_asked_for_is_refused(server: Any, tmp_path: Path) -> None:
    server.skips = 5
    (tmp_path / "f.zip.part").write_bytes(CONTENT[:10])
    with pytest.raises(TransferError, match="can't go on after the 10 bytes"):
        fetch(server.remote("f.zip", most_bytes=10**7), tmp_path)
    assert (tmp_path / "f.zip.part").read_bytes() == CONTENT[:10]


def test_another_content_is_refused_and_removed(server: Any, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"has the MD5 \w{32}, 0{32} was expected; it was removed"):
        fetch(server.remote("f.zip", most_bytes=10**7, md5="0" * 32), tmp_path)
    assert _left(tmp_path) == []
    (tmp_path / "f.zip.part").write_bytes(b"other")  # resumed, the whole is wrong
    with pytest.raises(TransferError, match="was expected; it was removed"):
        fetch(server.remote("f.zip", most_bytes=10**7), tmp_path)
    assert _left(tmp_path) == []


def test_a_file_put_there_by_hand_is_verified_and_left_alone(server: Any, tmp_path: Path) -> None:
    (tmp_path / "f.zip").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(TransferError, match=r"f\.zip has the MD5"):
        fetch(server.remote("f.zip"), tmp_path)
    (tmp_path / "f.zip").write_bytes(CONTENT[:-1])
    with pytest.raises(TransferError, match=r"2,999,999 bytes, 3,000,000 were expected"):
        fetch(server.remote("f.zip"), tmp_path)
    assert server.asked == []
    assert _left(tmp_path) == ["f.zip"]


def test_without_a_known_checksum_the_size_counts(server: Any, tmp_path: Path) -> None:
    assert fetch(server.remote("f.zip", md5=None, most_bytes=10**7), tmp_path).read_bytes() == CONTENT
    (tmp_path / "f.zip").unlink()
    with pytest.raises(TransferError, match="the server has 3,000,000 bytes, 2,999,999 were expected"):
        fetch(server.remote("f.zip", md5=None, n_bytes=2_999_999), tmp_path)


def test_more_than_is_allowed_is_refused_or_cut_off(server: Any, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="3,000,000 bytes, no more than 2,000,000 were expected"):
        fetch(server.remote("f.zip", n_bytes=None, most_bytes=2_000_000), tmp_path)
    server.says_length = False
    with pytest.raises(TransferError, match="has the MD5"):
        fetch(server.remote("f.zip", n_bytes=None, most_bytes=2_000_000), tmp_path)
    assert _left(tmp_path) == []


def test_what_is_not_there_or_not_reachable_is_a_sentence(server: Any, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="the server answers 404 Not Found"):
        fetch(server.remote("f.zip", url=f"{server.address}/none.zip"), tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(TransferError, match=r"no connection \(.*refused\)"):
        fetch(server.remote("f.zip", url=f"http://127.0.0.1:{port}/f.zip"), tmp_path)
    with pytest.raises(TransferError, match=r"no connection \(.*[Nn]ame"):
        fetch(server.remote("f.zip", url="http://nowhere.invalid/f.zip"), tmp_path)


def test_a_silent_server_is_given_up(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/f.zip"
        with pytest.raises(TransferError, match=r"no connection .*timed out"):
            fetch(server.remote("f.zip", url=url), tmp_path)


def test_a_file_that_the_disk_has_no_room_for_is_not_begun(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(TransferError, match=r"3,000,000 bytes are to come, .* has room for 1,000"):
        fetch(server.remote("f.zip", most_bytes=10**7), tmp_path)
    assert _left(tmp_path) == []
