"""Split files from outside: read as they are, and checked: the study's own leak patients into the test."""

from pathlib import Path

import pandas as pd
import pytest

from histo_ssl.folds.given import Given
from histo_ssl.folds.leaks import leaked

STUDY = Path(__file__).resolve().parents[3] / "shared" / "data" / "seed_paper"


def _given(path: Path, *, allow_leaks: bool = False, allow_missing: bool = False) -> Given:
    return Given(path=str(path), allow_leaks=allow_leaks, allow_missing=allow_missing)


@pytest.fixture
def cases() -> pd.DataFrame:
    """Six slides of five patients."""
    return pd.DataFrame(
        {
            "slide": ["a1", "a2", "b1", "c1", "d1", "e1"],
            "patient": ["A", "A", "B", "C", "D", "E"],
            "site": ["x", "x", "x", "y", "y", ""],
            "label": ["p", "p", "q", "p", "q", "q"],
        }
    )


def _write(folder: Path, text: str, *, k: int = 0) -> None:
    (folder / f"splits_{k}.csv").write_text(text)


def test_clams_columns_may_differ_in_length_and_names_may_have_suffixes(
    cases: pd.DataFrame, tmp_path: Path
) -> None:
    _write(tmp_path, ",train,val,test\n0,a1.svs,c1,d1\n1,a2.svs,,e1\n2,b1,,\n")
    folds, notes = _given(tmp_path).split(cases)
    (fold,) = folds
    assert fold.name == "k0"
    assert cases["slide"][fold.train].tolist() == ["a1", "a2", "b1"]
    assert cases["slide"][fold.valid].tolist() == ["c1"]
    assert cases["slide"][fold.test].tolist() == ["d1", "e1"]
    assert notes == [
        "2 of 6 slides are ever tested, 0 of them by several folds, so that folds are not independent"
    ]


def test_folds_come_in_the_order_of_their_numbers(cases: pd.DataFrame, tmp_path: Path) -> None:
    for k in range(11):
        _write(tmp_path, "train,val,test\na1,c1,d1\n", k=k)
    assert [fold.name for fold in _given(tmp_path).split(cases)[0]] == [f"k{k}" for k in range(11)]


def test_a_patient_on_two_sides_is_an_error_or_is_counted(cases: pd.DataFrame, tmp_path: Path) -> None:
    _write(tmp_path, "train,val,test\na1,c1,a2\nb1,,d1\n")
    with pytest.raises(ValueError, match=r"1 of 2 test slides \(50\.0%\) are of patients .* 0 more .* \(A\)"):
        _given(tmp_path).split(cases)
    _, notes = _given(tmp_path, allow_leaks=True).split(cases)
    assert notes[0].startswith(
        "LEAK: 1 of 2 test slides (50.0%) are of patients that the same fold learns from"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train,test\na1,b1\n", r"splits_0\.csv: no column val; it has train, test"),
        ("train,val,test\na1,a1,b1\n", "listed twice: a1; a slide has one place in a fold"),
        (
            "train,val,test\na1,c1,z9\n",
            r"1 listed slides \(z9\) have no tiles or no label here; add them, or",
        ),
    ],
)
def test_a_list_that_can_not_be_right_is_refused(
    cases: pd.DataFrame, tmp_path: Path, text: str, message: str
) -> None:
    _write(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        _given(tmp_path).split(cases)


def test_listed_slides_that_are_not_there_may_be_left_out(cases: pd.DataFrame, tmp_path: Path) -> None:
    _write(tmp_path, "train,val,test\na1,c1,z9\nb1,,d1\n")
    _, notes = _given(tmp_path, allow_missing=True).split(cases)
    assert notes[0] == "1 listed slides (z9) have no tiles or no label here and are left out"


def test_an_empty_folder_is_named(cases: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no splits_0\.csv there; a folder of CLAM's split files"):
        _given(tmp_path).split(cases)


def _study() -> pd.DataFrame:
    if not STUDY.is_dir():
        pytest.skip(f"the study's split files are not at {STUDY}")
    table = pd.read_csv(STUDY / "labels.csv", dtype=str)
    table = table[table["oncotree_code"].isin(["IDC", "ILC"])]
    columns = {"slide": "slide_id", "patient": "case_id", "site": "site", "label": "oncotree_code"}
    cases = pd.DataFrame({ours: table[theirs] for ours, theirs in columns.items()}).reset_index(drop=True)
    return cases.assign(slide=cases["slide"].str.removesuffix(".svs"))


@pytest.mark.parametrize(("fraction", "n_leaked", "share"), [("1.00", 53, 0.064), ("0.25", 14, 0.017)])
def test_the_studys_own_folds_leak_and_are_refused(fraction: str, n_leaked: int, share: float) -> None:
    cases, folder = _study(), STUDY / "splits_run" / fraction
    with pytest.raises(ValueError, match=rf"^{n_leaked} of 822 test slides \({share:.1%}\) are of patients"):
        _given(folder).split(cases)
    folds, notes = _given(folder, allow_leaks=True).split(cases)
    assert sum(leaked(fold, cases, into=fold.train).sum() for fold in folds) == n_leaked
    assert notes[1].startswith("569 of 875 slides are ever tested")
    assert notes[2].startswith(("98% of the test slides come from a site", "99% of the test slides come"))
