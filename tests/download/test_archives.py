"""Archives that strangers made: what is taken out of them, and what they can't do."""

import gzip
import io
import stat
import zipfile
from pathlib import Path

import pytest

from histo_ssl.download.archives import ArchiveError, gunzip, safe_path, unzip

LIMITS = {"most_bytes": 10_000, "most_files": 5}


def _entry(name: str, *, mode: int = 0, system: int = 3) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("x")
    entry.filename = name  # as it is: the constructor would tidy it up
    entry.external_attr = mode << 16
    entry.create_system = system
    return entry


def _archive(folder: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> Path:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries:
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def _everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    files = {"A/b.tif": b"12", "A/c/d.tif": bytes(5000), "e": b""}
    archive = _archive(
        tmp_path, (_entry("A/"), b""), *((_entry(name), content) for name, content in files.items())
    )
    assert unzip(archive, tmp_path / "out", **LIMITS) == 3
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "A/../../x", "/x", "//x", "A//x", "./x", "A/./x", "..", "C:/x", "C:x", "A\\..\\x"),
        *("A/x\n", "A/\x1b[2J", "", "A/../x"),
    ],
)
def test_a_path_that_may_lead_elsewhere_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    archive = _archive(tmp_path, (_entry("A/good.tif"), b"1"), (_entry(name), b"evil"))
    with pytest.raises(ArchiveError, match="a path that may lead elsewhere"):
        unzip(archive, tmp_path / "out", **LIMITS)
    assert _everything(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_are_refused_before_anything_is_written(tmp_path: Path, kind: int) -> None:
    link = _entry("A/link", mode=kind | 0o777)
    archive = _archive(tmp_path, (link, b"/etc"), (_entry("A/link/passwd"), b"evil"))
    with pytest.raises(ArchiveError, match="a link or device, not a file: 'A/link'"):
        unzip(archive, tmp_path / "out", **LIMITS)
    assert _everything(tmp_path) == ["a.zip"]


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    archive = _archive(tmp_path, (_entry("A/", mode=stat.S_IFLNK | 0o777), b"/etc"))
    with pytest.raises(ArchiveError, match="a link or device"):
        unzip(archive, tmp_path / "out", **LIMITS)


def test_no_file_gets_a_mode_that_an_archive_asks_for(tmp_path: Path) -> None:
    archive = _archive(tmp_path, (_entry("x", mode=stat.S_IFREG | stat.S_ISUID | 0o777), b"1"))
    unzip(archive, tmp_path / "out", **LIMITS)
    assert (tmp_path / "out" / "x").stat().st_mode & (stat.S_ISUID | 0o111) == 0


def test_more_content_or_files_than_stated_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    bomb = _archive(tmp_path, (_entry("zeros"), bytes(10_001)))
    assert bomb.stat().st_size < 200
    with pytest.raises(ArchiveError, match="10,001 bytes when unpacked, more than the 10,000 that"):
        unzip(bomb, tmp_path / "out", **LIMITS)
    many = _archive(tmp_path, *((_entry(f"{i}"), b"") for i in range(6)))
    with pytest.raises(ArchiveError, match="6 entries, more than the 5 that"):
        unzip(many, tmp_path / "out", **LIMITS)
    assert _everything(tmp_path) == ["a.zip"]


def test_an_archive_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    path = _archive(tmp_path, (_entry("zeros"), bytes(9_000)))
    content = path.read_bytes()
    assert content.count((9_000).to_bytes(4, "little")) == 2  # in the file's own header and in the directory
    path.write_bytes(content.replace((9_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError, match="a broken archive"):
        unzip(path, tmp_path / "out", **LIMITS)
    written = tmp_path / "out" / "zeros"
    assert written.stat().st_size <= 10


@pytest.mark.parametrize(
    ("names", "sentence"),
    [(["A/x", "A/x"], "two files of the name 'A/x'"), (["A", "A/x"], "a file and a folder of the name 'A'")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_would_overwrite_each_other_are_refused(
    tmp_path: Path, names: list[str], sentence: str
) -> None:
    archive = _archive(tmp_path, *((_entry(name), b"1") for name in names))
    with pytest.raises(ArchiveError, match=sentence):
        unzip(archive, tmp_path / "out", **LIMITS)


def test_what_is_there_already_is_not_unpacked_into(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path)
    with pytest.raises(FileExistsError):
        unzip(_archive(tmp_path, (_entry("x"), b"1")), tmp_path / "out", **LIMITS)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_a_changed_or_cut_archive_is_refused(tmp_path: Path, where: float) -> None:
    entries = [(_entry(f"A/{i}"), bytes(range(256)) * 8) for i in range(3)]
    good = _archive(tmp_path, *entries).read_bytes()
    at = int(where * len(good))
    for i, bad in enumerate((good[:at], good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])):
        (tmp_path / "bad.zip").write_bytes(bad)
        try:
            unzip(tmp_path / "bad.zip", tmp_path / f"out{i}", **LIMITS)
        except ArchiveError:
            continue
        for entry, content in entries:  # a byte that means nothing, such as a date's
            assert (tmp_path / f"out{i}" / entry.filename).read_bytes() == content


def test_gzip_is_written_up_to_its_limit(tmp_path: Path) -> None:
    archive = tmp_path / "x.h5.gz"
    archive.write_bytes(gzip.compress(bytes(10_000)))
    gunzip(archive, tmp_path / "x.h5", most_bytes=10_000)
    assert (tmp_path / "x.h5").read_bytes() == bytes(10_000)
    with pytest.raises(ArchiveError, match="more content than the 9,999 bytes"):
        gunzip(archive, tmp_path / "y.h5", most_bytes=9_999)
    archive.write_bytes(gzip.compress(b"123")[:-4])
    with pytest.raises(ArchiveError, match="a broken archive"):
        gunzip(archive, tmp_path / "z.h5", most_bytes=9_999)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    content = bytearray(_archive(tmp_path, (_entry("x"), b"1")).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags in both headers
        content[content.index(signature) + offset] |= 1
    (tmp_path / "b.zip").write_bytes(io.BytesIO(content).getvalue())
    with pytest.raises(ArchiveError, match=r"a broken archive .*password"):
        unzip(tmp_path / "b.zip", tmp_path / "out", **LIMITS)


def test_a_safe_path_is_the_path() -> None:
    assert safe_path("A b/10A0_CRC-Prim-HE-07_014.tif_Row_1.tif").parts == (
        "A b",
        "10A0_CRC-Prim-HE-07_014.tif_Row_1.tif",
    )
