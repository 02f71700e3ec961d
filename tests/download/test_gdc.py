"""Manifests of slides, by a server on this machine that answers as the GDC's API does, or otherwise."""

import hashlib
import json
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from histo_ssl.data.manifest import slide_list
from histo_ssl.download import gdc
from histo_ssl.download.barcodes import wanted_slides
from histo_ssl.download.gdc import listed
from histo_ssl.download.manifest import write_manifest
from histo_ssl.download.sets import NotObtainedError

ADDRESS = "/files"
STUDY = Path(__file__).resolve().parents[3] / "shared" / "data" / "seed_paper"


def _slide(i: int) -> str:
    return f"TCGA-{'AB'[i % 2]}2-A{i:03}-01Z-00-DX1.{uuid.UUID(int=i + 1)}".upper()


def _hit(i: int) -> dict[str, Any]:
    """What the API says of a file (Search and Retrieval, `files` endpoint)."""
    name = f"{_slide(i)}.svs"
    return {
        **{"id": str(uuid.UUID(int=900 + i)), "file_id": str(uuid.UUID(int=900 + i)), "file_name": name},
        **{"md5sum": hashlib.md5(name.encode()).hexdigest(), "file_size": 10**9 + i, "state": "released"},
    }


@dataclass
class Gdc:
    """What the mimic lists, and how it answers."""

    address: str = ""
    hits: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    raw: bytes | None = None  # sent in place of an answer
    total: int | None = None  # said in place of the number of files
    released: threading.Event | None = None  # waited for before the answer

    def page(self, asked: dict[str, Any]) -> bytes:
        content = asked["filters"]["content"]
        assert (asked["filters"]["op"], content["field"], asked["format"]) == ("in", "file_name", "json")
        found = sorted(
            (hit for hit in self.hits if hit["file_name"] in content["value"]), key=lambda hit: hit["file_id"]
        )
        start, size = asked["from"], asked["size"]
        hits = [
            {name: hit[name] for name in ("id", *asked["fields"].split(",")) if name in hit}
            for hit in found[start : start + size]
        ]
        total = len(found) if self.total is None else self.total
        pagination = {"count": len(hits), "total": total, "size": size, "from": start}
        return json.dumps({"data": {"hits": hits, "pagination": pagination}, "warnings": {}}).encode()


def _handler(mimic: Gdc) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            mimic.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if mimic.released is not None:
                mimic.released.wait(timeout=20)
            body = mimic.page(mimic.asked[-1]) if mimic.raw is None else mimic.raw
            self.send_response(mimic.status)
            self.end_headers()
            if mimic.released is None:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def mimic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gdc]:
    found = Gdc()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(found)) as server:
        found.address = f"http://127.0.0.1:{server.server_port}{ADDRESS}"
        monkeypatch.setattr(gdc, "FILES", found.address)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Seven slides in the layout of the study's list, two classes that count and one that doesn't."""
    kinds = ["IDC", "ILC", "IDC", "MDLC", "IDC", "ILC", "IDC"]
    rows = [f"{_slide(i)[:12]},{_slide(i)}.svs,50.0,X{i},{kind}" for i, kind in enumerate(kinds)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["case_id,slide_id,age,site,oncotree_code", *rows]) + "\n")
    return path


@pytest.mark.parametrize("page_files", [1, 3, 7, 500])
def test_every_file_comes_once_and_in_the_order_of_the_names_whatever_the_page(
    mimic: Gdc, monkeypatch: pytest.MonkeyPatch, page_files: int
) -> None:
    monkeypatch.setattr(gdc, "PAGE_FILES", page_files)
    mimic.hits = [_hit(i) for i in range(7)]
    names = [f"{_slide(i)}.svs" for i in (4, 0, 6, 2, 1, 5, 3)]
    files = listed(names, address=mimic.address)
    assert [file.name for file in files] == names
    assert sum(file.n_bytes for file in files) == 7 * 10**9 + 21
    assert [asked["from"] for asked in mimic.asked] == list(range(0, 7, page_files))


def test_the_manifest_is_the_one_of_gdc_client_and_the_list_is_one_of_ours(
    mimic: Gdc, labels: Path, tmp_path: Path
) -> None:
    mimic.hits = [_hit(i) for i in range(7) if i != 4]
    written = write_manifest(labels, tmp_path / "to", classes=["IDC", "ILC"], address=mimic.address)
    assert (written.n_slides, written.n_bytes, written.absent) == (5, 5 * 10**9 + 14, [_slide(4)])
    lines = (tmp_path / "to" / "gdc_manifest.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["id", "filename", "md5", "size", "state"]
    assert lines[2].split("\t") == [
        *("00000000-0000-0000-0000-000000000385", f"{_slide(1)}.svs"),
        *(hashlib.md5(f"{_slide(1)}.svs".encode()).hexdigest(), "1000000001", "released"),
    ]
    for line in lines[1:]:  # as gdc-client leaves them
        file_id, name = line.split("\t")[:2]
        (tmp_path / "to" / file_id / "logs").mkdir(parents=True)
        (tmp_path / "to" / file_id / name).touch()
    slides = slide_list(root=None, manifest=str(tmp_path / "to" / "slides.csv"))
    assert slides["slide_id"].tolist() == [_slide(i) for i in (0, 1, 2, 5, 6)]
    assert slides["label"].tolist() == ["IDC", "ILC", "IDC", "ILC", "IDC"]
    assert slides["site"].tolist() == ["X0", "X1", "X2", "X5", "X6"]
    assert slides["patient_id"].tolist() == [_slide(i)[:12] for i in (0, 1, 2, 5, 6)]


def test_split_files_name_their_slides_once_with_patients_and_sites_from_barcodes(
    mimic: Gdc, tmp_path: Path
) -> None:
    mimic.hits = [_hit(i) for i in range(5)]
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "splits_0.csv").write_text(
        f",train,val,test\n0,{_slide(0)},{_slide(1)},{_slide(2)}\n1,{_slide(3)},,\n"
    )
    (folder / "splits_1.csv").write_text(f",train,val,test\n0,{_slide(2)},{_slide(0)},{_slide(4)}\n")
    (folder / "splits_0_bool.csv").write_text(f",train,val,test\n{_slide(0)},True,False,False\n")
    write_manifest(folder, tmp_path / "all", classes=[], address=mimic.address)
    write_manifest(folder / "splits_1.csv", tmp_path / "one", classes=[], address=mimic.address)
    found, one = (
        pd.read_csv(tmp_path / name / "slides.csv", keep_default_na=False) for name in ("all", "one")
    )
    assert sorted(found["slide_id"]) == sorted(map(_slide, range(5)))
    assert sorted(one["slide_id"]) == sorted(map(_slide, (0, 2, 4)))
    assert found["patient_id"].tolist() == [name[:12] for name in found["slide_id"]]
    assert found["site"].tolist() == [name[5:7] for name in found["slide_id"]]
    assert found["label"].tolist() == [""] * 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": 500, "raw": b"{}"}, "the answer is 500 Internal Server Error; give the command again"),
        ({"raw": b"<html>"}, r"the answer is not the one expected \(JSONDecodeError"),
        ({"raw": b"\xff\xfe\x00"}, "the answer is not the one expected"),
        ({"raw": b"[]"}, r"the answer is not the one expected \(TypeError"),
        ({"raw": b'{"data": {"hits": []}}'}, r"not the one expected \(KeyError: 'pagination'\)"),
        ({"raw": b" " * 2_000}, "more than 1,000 bytes"),
        ({"total": 9}, "sends 7 of 9 files and no more"),
        (
            {"hits": [_hit(0), {**_hit(0), "file_id": str(uuid.UUID(int=7))}]},
            "has several files TCGA-A2-A000",
        ),
        ({"hits": [{**_hit(0), "md5sum": "0"}]}, "no file: Listed"),
        ({"hits": [{**_hit(0), "file_size": "9"}]}, "no file: Listed"),
        ({"hits": [{**_hit(0), "file_size": -9}]}, "no file: Listed"),
        ({"hits": [{**_hit(0), "state": "a\tb"}]}, "no file: Listed"),
        ({"hits": [{**_hit(0), "file_id": "../x"}]}, "no file: Listed"),
        ({"hits": [{k: v for k, v in _hit(0).items() if k != "md5sum"}]}, r"KeyError: 'md5sum'"),
    ],
)
def test_another_answer_ends_in_a_sentence_and_writes_nothing(
    mimic: Gdc, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, sentence: str
) -> None:
    monkeypatch.setattr(gdc, "MOST_BYTES", 1_000 if changes.get("raw", b"").isspace() else gdc.MOST_BYTES)
    mimic.hits = [_hit(i) for i in range(7)]
    for name, value in changes.items():
        setattr(mimic, name, value)
    with pytest.raises(NotObtainedError, match=sentence):
        write_manifest(labels, tmp_path / "to", classes=[], address=mimic.address)
    assert not (tmp_path / "to").exists()


def test_a_file_that_was_not_asked_for_is_none_of_ours(mimic: Gdc) -> None:
    hits = [_hit(0), {**_hit(1), "file_name": "../../x"}]
    pagination = {"total": 2}
    mimic.raw = json.dumps({"data": {"hits": hits, "pagination": pagination}}).encode()
    with pytest.raises(NotObtainedError, match=r"has \.\./\.\./x, which was not asked for"):
        listed([f"{_slide(0)}.svs"], address=mimic.address)


def test_a_server_that_does_not_answer_is_given_up(
    mimic: Gdc, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gdc, "TIMEOUT_S", 0.2)
    mimic.released = threading.Event()
    with pytest.raises(
        NotObtainedError, match=r"no connection \(timed out\); give this command on a machine"
    ):
        write_manifest(labels, tmp_path / "to", classes=[], address=mimic.address)
    mimic.released.set()


def test_where_nobody_listens_the_sentence_says_what_to_do(labels: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}{ADDRESS}"
        with pytest.raises(
            NotObtainedError, match=r"no connection \(.*refused\); give this command on a mach"
        ):
            write_manifest(labels, tmp_path / "to", classes=[], address=address)


def test_a_list_of_which_the_gdc_has_nothing_writes_nothing(mimic: Gdc, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(NotObtainedError, match=rf"lists none of its 7 slides \({_slide(0)}, .* and 4 more\)"):
        write_manifest(labels, tmp_path / "to", classes=[], address=mimic.address)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("content", "classes", "sentence"),
    [
        ("a,b\n1,2\n", [], r"no column slide_id \(nor train, val, test, as split files have\); found a, b"),
        ("slide_id\n", [], "lists no slide"),
        ("slide_id\nx.svs\ny\nx\n", [], "slides listed twice: x"),
        ("slide_id,n\n,1\n", [], "'' is no name of a slide"),
        ("slide_id\n../../etc\n", [], r"'\.\./\.\./etc' is no name of a slide"),
        ("slide_id,label\nx,IDC\n", ["IDC", "LBC"], "no slide of LBC in .*; its labels are IDC"),
        ("slide_id\nx\n", ["IDC"], "no slide of IDC in .*; it has no labels"),
        ("", [], "no CSV"),
    ],
)
def test_a_list_that_names_no_slides_is_refused_before_anybody_is_asked(
    mimic: Gdc, tmp_path: Path, content: str, classes: list[str], sentence: str
) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        write_manifest(tmp_path / "list.csv", tmp_path / "to", classes=classes, address=mimic.address)
    assert mimic.asked == []


@pytest.mark.skipif(not STUDY.exists(), reason="the study's lists are not beside the project")
def test_the_studys_labels_and_its_split_files_name_the_same_875_slides() -> None:
    labelled = wanted_slides(STUDY / "labels.csv", classes=["IDC", "ILC"])
    split = wanted_slides(STUDY / "splits_run" / "1.00", classes=[])
    assert labelled["label"].value_counts().to_dict() == {"IDC": 726, "ILC": 149}
    assert sorted(labelled["slide_id"]) == split["slide_id"].tolist()
    for name in ("patient_id", "site"):  # as listed, and as read from barcodes
        assert labelled.set_index("slide_id")[name].sort_index().tolist() == split[name].tolist()
    assert split["patient_id"].nunique() == 837


def test_a_missing_list_and_an_empty_folder_are_named(mimic: Gdc, tmp_path: Path) -> None:
    for source, sentence in ((tmp_path / "x.csv", "no such list of slides"), (tmp_path, r"no splits_0\.csv")):
        with pytest.raises(FileNotFoundError, match=sentence):
            write_manifest(source, tmp_path / "to", classes=[], address=mimic.address)


def test_a_list_of_ones_own_is_not_overwritten_and_the_same_again_is_no_matter(
    mimic: Gdc, labels: Path, tmp_path: Path
) -> None:
    mimic.hits = [_hit(i) for i in range(7)]
    own = labels.rename(tmp_path / "slides.csv")
    before = own.read_text()
    with pytest.raises(NotObtainedError, match=r"slides\.csv: another one is there; move it, or say --to"):
        write_manifest(own, tmp_path, classes=[], address=mimic.address)
    assert own.read_text() == before
    assert not (tmp_path / "gdc_manifest.txt").exists()
    for _ in range(2):
        assert write_manifest(own, tmp_path / "to", classes=[], address=mimic.address).n_slides == 7


def _say(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Callable[[], None]:
    from histo_ssl.download import __main__ as command

    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
    return command.main


def test_the_command_counts_slides_and_bytes_and_names_those_that_are_absent(
    mimic: Gdc, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mimic.hits = [_hit(i) for i in (0, 1, 2, 5)]
    folder = tmp_path / "brca slides"
    _say(monkeypatch, "gdc", "--slides", labels, "--classes", "IDC,ILC", "--to", folder)()
    assert capsys.readouterr().out.splitlines() == [
        "the GDC does not list 2 of 6 slides (withdrawn, or under another name; its portal finds them by "
        "their barcodes):",
        *(_slide(4), _slide(6)),
        f"'{folder}/gdc_manifest.txt': 4 slides, 4,000,000,008 bytes",
        f"next: gdc-client download -m '{folder}/gdc_manifest.txt' -d '{folder}'",
        f"then: python -m histo_ssl method=... backbone=... data=slides data.manifest='{folder}/slides.csv'",
    ]


def test_the_command_ends_in_one_sentence(
    mimic: Gdc, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mimic.status = 503
    with pytest.raises(SystemExit, match=r"error: .*the answer is 503 Service Unavailable"):
        _say(monkeypatch, "gdc", "--slides", labels, "--to", tmp_path / "to")()
    for arguments in (["gdc"], ["crc100k", "--slides", labels]):
        with pytest.raises(SystemExit, match="2"):
            _say(monkeypatch, *arguments)()
    said = capsys.readouterr().err
    assert "gdc needs --slides" in said
    assert "--slides belongs to gdc" in said
