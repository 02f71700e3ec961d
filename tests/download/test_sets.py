"""Whole sets: from a server on this machine to the folder that a task expects, as the command does it."""

import errno
import gzip
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histo_ssl.config.choices import conf_dir
from histo_ssl.download import sets
from histo_ssl.download.catalogue import CATALOGUE, RemoteFile, find, sets_of
from histo_ssl.download.sets import NotObtainedError, obtain

TILES = {"tiles/A/1.png": b"one", "tiles/B/2.png": b"two", "__MACOSX/x": b"rubbish"}
Obtained = Callable[..., Path]


@pytest.fixture
def tiny(site: Any, make_zip: Any) -> Any:
    """A site with the archive t.zip."""
    site.files["t.zip"] = make_zip(TILES)
    return site


def _listed(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_set_is_fetched_unpacked_and_then_left_alone(
    tiny: Any, write_catalogue: Any, tmp_path: Path
) -> None:
    public = find("tiny", write_catalogue(tiny.listed("t.zip"), root="tiles"))
    for _ in range(2):
        assert obtain(public, tmp_path / "to") == tmp_path / "to" / "tiles"
    assert _listed(tmp_path / "to") == {"tiles/A/1.png": b"one", "tiles/B/2.png": b"two"}
    assert tiny.asked == [""]


def test_a_place_where_no_folder_can_be_is_named(tiny: Any, write_catalogue: Any) -> None:
    catalogue = write_catalogue(tiny.listed("t.zip"))
    with pytest.raises(NotObtainedError, match=r"--to .*json: no folder can be made there \(File exists\)"):
        obtain(find("tiny", catalogue), catalogue)
    with pytest.raises(FileNotFoundError, match=r"none\.json: there is no such catalogue"):
        find("tiny", catalogue.with_name("none.json"))


def test_an_archive_put_there_by_hand_is_taken(tiny: Any, write_catalogue: Any, tmp_path: Path) -> None:
    public = find("tiny", write_catalogue(tiny.listed("t.zip")))
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "t.zip").write_bytes(tiny.files["t.zip"])
    obtain(public, tmp_path / "to")
    assert _listed(tmp_path / "to") == {"tiles/A/1.png": b"one", "tiles/B/2.png": b"two"}
    assert tiny.asked == []


@pytest.mark.parametrize(
    ("files", "changes", "reason"),
    [
        ({"../evil": b"x"}, {}, "a path that may lead elsewhere: '../evil'"),
        (TILES, {"most_files": 1}, "3 entries, more than the 1"),
        (TILES, {"makes": "other"}, "other is not in it"),
        (TILES, {"md5": "0" * 32}, "0{32} was expected; it was removed"),
    ],
)
def test_a_failure_names_address_checksum_and_place_and_leaves_nothing_half_made(
    tiny: Any,
    make_zip: Any,
    write_catalogue: Any,
    tmp_path: Path,
    files: Any,
    changes: dict[str, Any],
    reason: str,
) -> None:
    tiny.files["t.zip"] = make_zip(files)
    listed = {**tiny.listed("t.zip"), **changes}
    public = find("tiny", write_catalogue(listed, sums="as its record shows it"))
    with pytest.raises(NotObtainedError, match=reason) as said:
        obtain(public, tmp_path / "to")
    by_hand = (
        f"fetch {listed['url']} (MD5 {listed['md5']}, as its record shows it), put it into {tmp_path}/to as"
    )
    assert by_hand in str(said.value)
    assert set(_listed(tmp_path)) <= {"catalogue.json", "to/t.zip", "to.lock"}


def test_a_process_that_was_killed_while_it_unpacked_leaves_nothing_behind_for_long(
    tiny: Any, write_catalogue: Any, tmp_path: Path
) -> None:
    public = find("tiny", write_catalogue(tiny.listed("t.zip")))
    (tmp_path / "to" / ".tmp-tiles" / "tiles").mkdir(parents=True)
    (tmp_path / "to" / ".tmp-tiles" / "tiles" / "half").write_bytes(b"?")
    obtain(public, tmp_path / "to")
    assert _listed(tmp_path / "to") == {"tiles/A/1.png": b"one", "tiles/B/2.png": b"two"}


def test_a_set_by_hand_says_what_to_do_until_it_is_there(write_catalogue: Any, tmp_path: Path) -> None:
    public = find("tiny", write_catalogue(by_hand="register and put y.csv there", needs=["y.csv"]))
    with pytest.raises(NotObtainedError, match=r"register and put y\.csv there, in .*to; not there yet: y"):
        obtain(public, tmp_path / "to")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "y.csv").touch()
    assert obtain(public, tmp_path / "to") == tmp_path / "to"


def _h5_gz(name: str, values: Any) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file[name] = values
    return gzip.compress(stream.getvalue())


def _array_set(site: Any, write_catalogue: Any, number: Any) -> tuple[Any, Any]:
    """A set of five tiles in arrays, and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    site.files["x.h5.gz"], site.files["y.h5.gz"] = _h5_gz("x", pixels), _h5_gz("y", number)
    files = [{**site.listed(f"{name}.h5.gz"), "makes": f"{name}.h5"} for name in "xy"]
    arrays = {"classes": ["normal", "tumor"], "splits": {"test": ["x.h5", "y.h5"]}}
    return find("tiny", write_catalogue(*files, arrays=arrays)), pixels


def test_arrays_become_images_with_the_same_pixels_and_a_list(
    site: Any, write_catalogue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histo_ssl.download.arrays.BLOCK_TILES", 2)
    number = np.array([0, 1, 1, 0, 1]).reshape(5, 1, 1, 1)
    public, pixels = _array_set(site, write_catalogue, number)
    for _ in range(2):
        obtain(public, tmp_path / "to")
    assert len(site.asked) == 2
    rows = pd.read_csv(tmp_path / "to" / "labels.csv")
    assert rows["label"].tolist() == ["normal", "tumor", "tumor", "normal", "tumor"]
    assert rows["split"].tolist() == ["test"] * 5
    assert rows["path"][1] == "test/tumor/0000001.png"
    found = [np.asarray(Image.open(tmp_path / "to" / path)) for path in rows["path"]]
    np.testing.assert_array_equal(found, pixels)
    assert not list((tmp_path / "to").glob("*.h5*"))


@pytest.mark.parametrize("number", [np.array([0, 1, 2, 0, 1]), np.array([0, 1])])
def test_arrays_that_are_no_tiles_with_a_class_each_are_refused(
    site: Any, write_catalogue: Any, tmp_path: Path, number: Any
) -> None:
    public, _ = _array_set(site, write_catalogue, number)
    with pytest.raises(ValueError, match=r"tiles \(N, S, S, 3\) and N classes below 2 are expected"):
        obtain(public, tmp_path / "to")
    assert not (tmp_path / "to" / "labels.csv").exists()


def _command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "histo_ssl.download", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.slow
def test_the_command_ends_by_what_became_of_it(tiny: Any, write_catalogue: Any, tmp_path: Path) -> None:
    catalogue = write_catalogue(tiny.listed("t.zip"), root="tiles")
    asked = ["tiny", "--to", tmp_path / "to", "--catalogue", catalogue]
    tiny.files["t.zip"] += b"more"
    failed = _command(*asked)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: t.zip: the server has ")
    tiny.files["t.zip"] = tiny.files["t.zip"].removesuffix(b"more")
    ran = _command(*asked)
    assert ran.returncode == 0
    assert ran.stdout.endswith(f"task=tiny task.root={tmp_path}/to/tiles\n")
    unknown = _command("crc100", "--to", tmp_path)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: crc100: no such set; did you mean crc100k? there are crc100k, ")


def test_a_full_disk_is_a_sentence(
    tiny: Any, write_catalogue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from histo_ssl.download import __main__ as command

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "to" / "x"))

    monkeypatch.setattr(sets.archives, "unzip", full)
    catalogue = write_catalogue(tiny.listed("t.zip"))
    monkeypatch.setattr(sys, "argv", ["", "tiny", "--to", f"{tmp_path}/to", "--catalogue", str(catalogue)])
    with pytest.raises(SystemExit, match=r"error: .*to/x: the disk is full; make room: the same command"):
        command.main()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "../t.zip"}, "a path that may lead elsewhere"),
        ({"makes": "a/b"}, "a/b: the plain name of a file or folder is expected"),
        ({"url": "file:///etc/passwd"}, "file:///etc/passwd: an address that begins with https:// or"),
        ({"spilt": 1}, "no catalogue of data sets"),
    ],
)
def test_a_catalogue_can_name_neither_files_elsewhere_nor_other_addresses(
    tiny: Any, write_catalogue: Any, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        find("tiny", write_catalogue({**tiny.listed("t.zip"), **change}))


def test_the_catalogue_has_a_set_for_each_published_task_and_well_formed_sums() -> None:
    public = sets_of(CATALOGUE)
    own = {"images", "knn", "labelled"}  # tasks on data of one's own
    published = [
        path.stem for path in (conf_dir() / "task").glob("*.yaml") if "histo_ssl.download" in path.read_text()
    ]
    assert set(public) == {*published, "crc100k_nonorm"} - own
    for file in (file for found in public.values() for file in found.files):
        assert isinstance(file, RemoteFile)
        assert len(bytes.fromhex(file.md5 or "")) == hashlib.md5().digest_size
        assert file.url.startswith("https://zenodo.org/records/")
        assert f"/files/{file.name}?" in file.url
        assert public["crc100k"].files[1] == public["crc100k_nonorm"].files[1]
    assert json.loads(CATALOGUE.read_text())["pcam"]["files"][0]["most_bytes"] > 262_144 * 96 * 96 * 3
