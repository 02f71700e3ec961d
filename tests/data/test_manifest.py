"""The slide list: what is found, and what is refused with the rows named."""

import csv
import math
import os
import shutil
import tempfile
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histo_ssl.data.manifest import COLUMNS, slide_list, slide_listing, stated_mpp


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.svs, deep/b.TIF and notes.txt."""
    for name in ("a.svs", "deep/b.TIF", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def manifest(folder: Path, text: str) -> str:
    (folder / "list.csv").write_text(text)
    return str(folder / "list.csv")


def test_a_folder_is_searched_through_for_slides(folder: Path) -> None:
    slides = slide_list(root=str(folder), manifest=None)
    assert slides.columns.tolist() == list(COLUMNS)
    assert slides["slide_id"].tolist() == ["a", "b"]
    assert slides["path"].tolist() == [str(folder / "a.svs"), str(folder / "deep" / "b.TIF")]
    assert slides["patient_id"].tolist() == ["", ""]
    assert (slides[["site", "label", "split"]] == "").all(axis=None)


def test_a_glob_finds_what_it_matches(folder: Path) -> None:
    assert slide_list(root=f"{folder}/*", manifest=None)["slide_id"].tolist() == ["a"]
    assert slide_list(root=f"{folder}/**/*.TIF", manifest=None)["slide_id"].tolist() == ["b"]


def test_a_folder_in_memory_is_searched_like_a_local_one() -> None:
    for name in ("one.svs", "deep/two.tif", "read.me"):
        with fsspec.open(f"memory://list-of-slides/{name}", "wb") as file:
            file.write(b"x")
    slides = slide_list(root="memory://list-of-slides", manifest=None)
    assert slides["slide_id"].tolist() == ["two", "one"]  # in the order of their paths
    with fsspec.open(slides["path"][1], "rb") as file:
        assert file.read() == b"x"


def test_an_empty_folder_says_which_suffixes_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no slide there; files ending in \.svs, \.tif, .*looked for"
    ):
        slide_list(root=str(tmp_path), manifest=None)


def test_a_manifest_keeps_its_extra_columns_and_its_text_as_text(folder: Path) -> None:
    path = manifest(folder, "slide_id,stage,path,label\n007,II,a.svs,NA\n8,,deep/b.TIF,1\n")
    slides = slide_list(root=None, manifest=path)
    assert slides.columns.tolist() == [*COLUMNS, "stage"]
    assert slides["slide_id"].tolist() == ["007", "8"]
    assert slides["label"].tolist() == ["NA", "1"]
    assert slides["stage"].tolist() == ["II", ""]
    assert slides["path"].tolist() == [f"{folder}/a.svs", f"{folder}/deep/b.TIF"]  # from the CSV's own folder
    pd.testing.assert_frame_equal(slide_list(root=path, manifest=None), slides)


def test_the_patient_of_a_tcga_barcode_is_its_first_12_characters(folder: Path) -> None:
    barcode = "TCGA-A1-A0SB-01Z-00-DX1.B34C"
    places = ("a.svs", "deep/b.TIF", "notes.txt")
    people = zip((barcode, "TCGA-A1-A0SB-01A-TS1", "TCGA-oddity"), places, ("", "P9", ""), strict=True)
    rows = "slide_id,path,patient_id\n" + "".join(f"{','.join(row)}\n" for row in people)
    slides = slide_list(root=None, manifest=manifest(folder, rows))
    assert slides["patient_id"].tolist() == ["TCGA-A1-A0SB", "P9", ""]


def test_brackets_in_the_name_of_a_folder_are_no_glob_and_an_empty_root_is_none(folder: Path) -> None:
    (folder / "deep").rename(folder / "x [2021]")
    assert slide_list(root=f"{folder}/x [2021]", manifest=None)["slide_id"].tolist() == ["b"]
    with pytest.raises(ValueError, match=r"data\.root is empty"):
        slide_list(root="", manifest=None)


def test_addresses_are_not_looked_for_on_the_disk(folder: Path) -> None:
    path = manifest(folder, "slide_id,path\na,a.svs\nfar,https://example.org/far.svs\n")
    assert slide_list(root=None, manifest=path)["path"].tolist()[1] == "https://example.org/far.svs"


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            "slide,path\na,a.svs\n",
            r"no column slide_id; found slide, path, expected slide_id, path and optionally patient_id",
        ),
        (
            "slide_id,path\na,a.svs\na,deep/b.TIF\n",
            r"slide_id is not unique; found: a = .*a\.svs, a = .*b\.TIF$",
        ),
        ("slide_id,path\na,gone.svs\nb,a.svs\n", r"files that do not exist: a = .*gone\.svs$"),
        ("slide_id,path\n,a.svs\n", r"slides without a slide_id: .*a\.svs$"),
        ("slide_id,path\nx/y,a.svs\n", r"a slide_id names files, so it has no slash; found: x/y$"),
        ("slide_id,path\n", r"lists no slide"),
        (
            "slide_id,path,patient_id,split\na,a.svs,P1,train\nb,a.svs,P1,test\nc,a.svs,P2,test\n",
            r"all of a patient belongs to one split; found: P1 in test/train$",
        ),
        (
            "slide_id,path,patient_id,split\na,a.svs,P1 ,train\nb,deep/b.TIF,P1,test\n",
            r"all of a patient belongs to one split; found: P1 in test/train$",
        ),
        (
            "slide_id,path,patient_id,split\na,a.svs,P1,\nb,deep/b.TIF,P1,test\n",
            r"all of a patient belongs to one split; found: P1 in no split/test$",
        ),
        (
            "slide_id,path,patient_id,split\na,a.svs,P1,train\nb,a.svs,P2,test\n",
            r"one file is listed as several slides: a = .*a\.svs, b = .*a\.svs$",
        ),
        (
            "slide_id,path,Patient_ID\na,a.svs,P1\n",
            r"the column 'Patient_ID' would not count; did you mean patient_id\? rename it$",
        ),
    ],
)
def test_a_faulty_manifest_is_refused_with_its_rows_named(folder: Path, rows: str, complaint: str) -> None:
    path = manifest(folder, rows)
    with pytest.raises(ValueError, match=complaint) as raised:
        slide_list(root=None, manifest=path)
    assert str(raised.value).startswith(path)
    assert "\n" not in str(raised.value)


def test_an_error_names_five_rows_and_counts_the_others(folder: Path) -> None:
    rows = "".join(f"s{i},gone{i}.svs\n" for i in range(8))
    with pytest.raises(ValueError, match=r"s4 = [^,]*gone4\.svs and 3 more$"):
        slide_list(root=None, manifest=manifest(folder, f"slide_id,path\n{rows}"))


def test_a_missing_manifest_and_a_missing_choice_are_refused(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.csv: there is no such CSV"):
        slide_list(root=None, manifest=str(folder / "absent.csv"))
    for root, path in ((None, None), ("a", "b.csv")):
        with pytest.raises(ValueError, match=r"data\.root=.* data\.manifest=.*give one of them"):
            slide_list(root=root, manifest=path)


def test_um_per_px_is_stated_for_the_slides_that_say_none_or_for_some_by_name(folder: Path) -> None:
    slides = pd.DataFrame({"slide_id": ["a", "b"]})
    (folder / "mpp.csv").write_text("slide_id,mpp\nb,0.25\n")
    assert stated_mpp(slides, None) == ([None, None], None)
    assert stated_mpp(slides, 0.5) == ([None, None], 0.5)
    assert stated_mpp(slides, "0.5") == ([None, None], 0.5)
    assert stated_mpp(slides, str(folder / "mpp.csv")) == ([None, 0.25], None)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("slide_id,mpp\nzz,0.5\n", r"not in the slide list: zz$"),
        ("slide_id,mpp\na,0.5\na,0.6\n", r"slides listed twice: a$"),
        ("slide_id,mpp\na,0\n", r"a: '0' is no um/px; a number above 0"),
        ("slide_id\na\n", r"no column mpp; found slide_id, expected slide_id, mpp$"),
    ],
)
def test_a_faulty_list_of_um_per_px_is_refused(folder: Path, rows: str, complaint: str) -> None:
    path = manifest(folder, rows)
    with pytest.raises(ValueError, match=complaint):
        stated_mpp(pd.DataFrame({"slide_id": ["a"]}), path)


@pytest.mark.parametrize("override", [0.0, -1.0, math.nan, "a quarter"])
def test_a_senseless_um_per_px_is_refused(override: float | str) -> None:
    with pytest.raises(ValueError, match=r"data\.mpp_override.*is no um/px; a number above 0"):
        stated_mpp(pd.DataFrame({"slide_id": ["a"]}), override)


def test_the_listing_knows_sizes_and_descriptions_but_neither_times_nor_places(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "a.svs").write_bytes(b"12345")
    path = manifest(folder, "slide_id,path,label,stage\na,a.svs,IDC,\nb,deep/b.TIF,,II\n")
    slides = slide_list(root=None, manifest=path)
    listed = slide_listing(slides, mpps=[None, 0.25])
    assert listed == {"a": {"bytes": 5, "label": "IDC"}, "b": {"bytes": 0, "stage": "II", "mpp": 0.25}}
    copy = tmp_path_factory.mktemp("copy") / "slides"
    shutil.copytree(folder, copy)
    os.utime(copy / "a.svs", (1, 1))
    again = slide_list(root=None, manifest=str(copy / "list.csv"))
    assert slide_listing(again, mpps=[None, 0.25]) == listed


def test_a_slide_at_an_address_is_listed_without_asking_for_its_size(folder: Path) -> None:
    path = manifest(folder, "slide_id,path\nfar,https://example.invalid/far.svs\n")
    assert slide_listing(slide_list(root=None, manifest=path), mpps=[None]) == {"far": {}}


@pytest.mark.parametrize("where", ["root", "manifest", "row"])
def test_credentials_in_an_address_are_refused_before_anything_is_read(folder: Path, where: str) -> None:
    address = "https://me:hunter22@example.invalid/far.svs"
    words = {"root": {"root": address, "manifest": None}, "manifest": {"root": None, "manifest": address}}
    row = {"root": None, "manifest": manifest(folder, f"slide_id,path\nfar,{address}\n")}
    with pytest.raises(ValueError, match=r"https://\*\*\*@example\.invalid/far\.svs holds credentials"):
        slide_list(**words.get(where, row))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["..", "b"], r"starts with no dot; found: \.\."),
        ([".tmp-1", "b"], r"starts with no dot; found: \.tmp-1"),
        (["a\tb", "b"], r"control characters or broken text in column 'slide_id' of: 'a\\tb'"),
        (["x" * 201, "b"], r"up to 200 bytes; found: xxx"),
        (["Case", "b", "cASE"], r"differs in more than capitals .*: Case = a\.tif, cASE = a\.tif"),
        (["\u00e9", "b", "e\u0301"], r"differs in more than capitals"),
    ],
)
def test_a_slide_id_that_is_no_file_name_is_refused_with_its_row(
    tmp_path: Path, ids: list[str], said: str
) -> None:
    (tmp_path / "a.tif").touch()
    rows = pd.DataFrame({"slide_id": ids, "path": str(tmp_path / "a.tif")})
    rows.to_csv(tmp_path / "list.csv", index=False)
    with pytest.raises(ValueError, match=said.replace(r"a\.tif", r"\S*a\.tif")):
        slide_list(root=None, manifest=str(tmp_path / "list.csv"))


def test_columns_that_tiling_writes_itself_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("slide_id,path,mpp,reason\na,a.tif,0.5,x\n")
    with pytest.raises(ValueError, match=r"status\.csv has columns mpp, reason of its own; rename them"):
        slide_list(root=None, manifest=str(tmp_path / "list.csv"))


NAMES = ("slide_id", "path", "patient_id", "site", "label", "split", "mpp", "batch")
cells = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["a.tif", "", "..", "a/b", "x" * 5000, "https://x", "::", "test", "\0", '"', "=1+1", "a\nb"]
    ),
)


headers = st.lists(st.sampled_from(NAMES) | st.text(max_size=5), max_size=8)
good = st.tuples(st.text(min_size=1, max_size=5), st.just("a.tif"), cells).map(list)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    header=headers | st.just(["slide_id", "path", "label"]),
    rows=st.lists(good | st.lists(cells, max_size=8), max_size=3),
    as_csv=st.booleans(),
)
def test_whatever_a_manifest_holds_it_is_a_list_of_slides_or_one_sentence(
    header: list[str], rows: list[list[str]], as_csv: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.tif").touch()
        path = Path(folder) / "list.csv"
        if as_csv:
            with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
                csv.writer(file, escapechar="\\").writerows([header, *rows])
        else:
            path.write_bytes("\n".join(map(",".join, [header, *rows])).encode(errors="surrogatepass"))
        try:
            slides = slide_list(root=None, manifest=str(path))
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
        else:
            said = ""
        if said:
            assert said.startswith(folder)
            assert "\n" not in said
            return
        assert slides["slide_id"].is_unique
        assert (slides["slide_id"] != "").all()
        assert list(slides.columns[:6]) == list(NAMES[:6])
        for slide_id in slides["slide_id"]:
            (Path(folder) / f"{slide_id}.png").touch()  # it names files
