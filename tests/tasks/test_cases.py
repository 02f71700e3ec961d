"""The slides of a task: whose label is known, by the slide list or by somebody's CSV."""

from pathlib import Path

import pandas as pd
import pytest

from histo_ssl.tasks.cases import Labels

COLUMNS = {"slide": "slide_id", "patient": "case_id", "site": "site", "label": "oncotree_code"}


@pytest.fixture
def slides() -> pd.DataFrame:
    """Four slides of three patients, one without a tile."""
    return pd.DataFrame(
        {
            "slide": ["s1", "s2", "s3", "s4"],
            "patient": ["p1", "p1", "p2", ""],
            "site": ["A", "A", "B", "B"],
            "label": ["x", "x", "y", "y"],
            "n_tiles": [5, 1, 7, 0],
        }
    )


def _labels(path: Path | None, *, classes: list[str] | None = None) -> Labels:
    return Labels(path=str(path) if path else None, columns=COLUMNS, classes=classes, needed=["label"])


def _csv(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_without_a_csv_the_slide_list_has_the_labels(slides: pd.DataFrame) -> None:
    cases = _labels(None).cases(slides)
    assert cases.table["label"].tolist() == ["x", "x", "y"]
    assert cases.notes == ["1 slide (s4) has no tile and is left out"]


def test_a_csv_is_joined_by_names_without_suffix(slides: pd.DataFrame, tmp_path: Path) -> None:
    path = _csv(tmp_path, "case_id,slide_id,oncotree_code\nq1,s1.svs,IDC\nq2,s3.svs,ILC\nq9,s9.svs,ILC\n")
    cases = _labels(path).cases(slides)
    assert cases.table[["slide", "patient", "site", "label"]].to_numpy().tolist() == [
        ["s1", "q1", "A", "IDC"],
        ["s3", "q2", "B", "ILC"],
    ]
    assert cases.notes == [
        "1 slide (s9) of labels.csv is not in the slide list",
        "1 slide (s2) has no label and is left out",
        "1 slide (s4) has no tile and is left out",
    ]


def test_a_csv_of_patients_labels_all_their_slides(slides: pd.DataFrame, tmp_path: Path) -> None:
    cases = _labels(_csv(tmp_path, "case_id,oncotree_code\np1,IDC\np2,ILC\n")).cases(slides)
    assert cases.table["label"].tolist() == ["IDC", "IDC", "ILC"]


def test_classes_that_do_not_count_are_left_out_and_told(slides: pd.DataFrame, tmp_path: Path) -> None:
    path = _csv(tmp_path, "slide_id,oncotree_code\ns1,IDC\ns2,MDLC\ns3,ILC\n")
    cases = _labels(path, classes=["IDC", "ILC"]).cases(slides)
    assert cases.table["slide"].tolist() == ["s1", "s3"]
    assert "1 slide (s2) is of another class and is left out" in cases.notes


def test_a_slide_without_a_patient_stands_for_one(slides: pd.DataFrame) -> None:
    cases = _labels(None).cases(slides.assign(patient=["p1", "", "", ""]))
    assert cases.table["patient"].tolist() == ["p1", "s2", "s3"]
    assert "2 slides (s2, s3) have no patient: each stands for one" in cases.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,label\ns1,IDC\n", "no column oncotree_code; it has slide_id, label: task.labels.columns"),
        ("slide,oncotree_code\ns1,IDC\n", "no column slide_id or case_id; it has"),
        ("slide_id,oncotree_code\ns1,IDC\ns1.svs,ILC\n", "slides listed twice: s1;"),
        ("slide_id,oncotree_code\nz1,IDC\n", r"none of its 1 slides \(such as z1\) is among the 3 slides"),
        (
            "slide_id,oncotree_code\ns1,\n",
            "none of 3 slides has a label: give the slide list a column 'label'",
        ),
        ("slide_id,oncotree_code\n", r"labels\.csv: no row below its header; a row per slide or patient"),
        ("", r"labels\.csv: not a CSV: No columns to parse from file"),
        ("s\n" + "a,b\n" * 2 + "a,b,c\n", r"labels\.csv: not a CSV: Error tokenizing data"),
    ],
)
def test_a_csv_that_says_nothing_is_refused(
    slides: pd.DataFrame, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _labels(_csv(tmp_path, text)).cases(slides)


def test_spaces_around_names_of_columns_and_cells_are_not_part_of_them(
    slides: pd.DataFrame, tmp_path: Path
) -> None:
    cases = _labels(_csv(tmp_path, "slide_id , oncotree_code\ns1 , IDC \n")).cases(slides)
    assert cases.table[["slide", "label"]].to_numpy().tolist() == [["s1", "IDC"]]


def test_a_csv_that_is_not_there_is_named(slides: pd.DataFrame) -> None:
    with pytest.raises(FileNotFoundError, match=r"task\.labels\.path=nowhere\.csv: there is no such CSV"):
        _labels(Path("nowhere.csv")).cases(slides)


def test_an_empty_cell_of_a_csv_takes_no_patient_or_site_away(slides: pd.DataFrame, tmp_path: Path) -> None:
    path = _csv(tmp_path, "slide_id,case_id,site,oncotree_code\ns1,,,IDC\ns2,,C,IDC\ns3,q2,,ILC\n")
    table = _labels(path).cases(slides).table
    assert table["patient"].tolist() == ["p1", "p1", "q2"]
    assert table["site"].tolist() == ["A", "C", "B"]


def test_barcodes_of_tcga_say_patient_and_site_where_nothing_else_does() -> None:
    slides = pd.DataFrame(
        {
            "slide": [
                "TCGA-3C-AALI-01Z-00-DX1.F6",
                "TCGA-3C-AALI-01Z-00-DX2.C4",
                "TCGA-A1-A0SB-01Z",
                "TCGAX",
            ],
            "patient": ["", "", "own", ""],
            "site": ["", "B", "", ""],
            "label": ["x", "x", "y", "y"],
            "n_tiles": 1,
        }
    )
    cases = _labels(None).cases(slides)
    assert cases.table["patient"].tolist() == ["TCGA-3C-AALI", "TCGA-3C-AALI", "own", "TCGAX"]
    assert cases.table["site"].tolist() == ["3C", "B", "A1", ""]
    assert cases.notes == ["1 slide (TCGAX) has no patient: it stands for one"]
