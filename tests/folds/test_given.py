"""Split files from outside: read as they are, and checked: the study's own leak patients into the test."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histo_ssl.folds.base import Fold
from histo_ssl.folds.given import Given
from histo_ssl.folds.leaks import count_leaks, leaked
from histo_ssl.folds.partition import Partition

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
        "2 of 6 slides are ever tested",
        "1 of 1 folds (k0) test no slide of class p",
        "1 of 1 folds (k0) choose their epoch by no slide of class q",
    ]


def _as_clam(folder: Path, cases: pd.DataFrame, *, boolean: bool) -> list[Fold]:
    """Folds of patients, written as CLAM's `save_splits` does, with `.svs`."""
    folds, _ = Partition(n_folds=2, n_repeats=1, valid_share=0.4, seed=0).split(cases)
    for k, fold in enumerate(folds):
        parts = {"train": fold.train, "val": fold.valid, "test": fold.test}
        names = [(cases["slide"][mask] + ".svs").reset_index(drop=True) for mask in parts.values()]
        if boolean:
            table = pd.DataFrame(
                {name: list(mask) for name, mask in parts.items()}, index=cases["slide"] + ".svs"
            )
            table.index.name = None
            table.to_csv(folder / f"splits_{k}_bool.csv")
        else:
            table = pd.concat(names, ignore_index=True, axis=1)
            table.columns = pd.Index(parts)
            table.to_csv(folder / f"splits_{k}.csv")
            (folder / f"splits_{k}_descriptor.csv").write_text(",train,val,test\np,1,1,1\nq,1,1,1\n")
    return folds


@pytest.fixture
def many() -> pd.DataFrame:
    """Thirty slides of fifteen patients."""
    patient = [f"p{i // 2:02d}" for i in range(30)]
    label = ["a" if int(name[1:]) % 3 else "b" for name in patient]
    return pd.DataFrame(
        {"slide": [f"s{i:02d}.x" for i in range(30)], "patient": patient, "site": "", "label": label}
    )


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("suffix", ["", ".svs"])
def test_what_clam_writes_is_read_as_it_was(
    many: pd.DataFrame, tmp_path: Path, boolean: bool, suffix: str
) -> None:
    written = _as_clam(tmp_path, many, boolean=boolean)
    read, notes = _given(tmp_path).split(many.assign(slide=many["slide"] + suffix))
    assert [fold.name for fold in read] == ["k0", "k1"]
    for one, other in zip(written, read, strict=True):
        for part in ("train", "valid", "test"):
            assert np.array_equal(getattr(one, part), getattr(other, part))
    assert notes == []


def test_a_folder_must_be_named(cases: pd.DataFrame) -> None:
    unsaid = Given(path=None, allow_leaks=False, allow_missing=False)
    with pytest.raises(
        ValueError, match=r"task\.folds\.path is missing: give a folder of CLAM's splits_0\.csv"
    ):
        unsaid.split(cases)


def test_of_both_kinds_of_a_fold_the_list_of_names_counts(cases: pd.DataFrame, tmp_path: Path) -> None:
    _write(tmp_path, "train,val,test\na1,c1,d1\n")
    (tmp_path / "splits_0_bool.csv").write_text(",train,val,test\ne1,True,False,False\nb1,False,False,True\n")
    (fold,), _ = _given(tmp_path).split(cases)
    assert cases["slide"][fold.test].tolist() == ["d1"]


def test_a_single_list_is_a_fold(cases: pd.DataFrame, tmp_path: Path) -> None:
    _write(tmp_path, "train,val,test\na1,c1,d1\n", k=3)
    _write(tmp_path, "train,val,test\na1,c1,e1\n", k=4)
    (fold,), _ = _given(tmp_path / "splits_3.csv").split(cases)
    assert fold.name == "k3"
    assert cases["slide"][fold.test].tolist() == ["d1"]


@pytest.mark.parametrize("empty", ["", "nan", "NaN"])
def test_columns_may_be_filled_up_in_any_way_and_begin_with_a_mark(
    cases: pd.DataFrame, tmp_path: Path, empty: str
) -> None:
    _write(tmp_path, f"\ufefftrain, val ,test\n x/a1.svs ,c1,d1\nb1,{empty},{empty}\na2\n")
    (fold,), notes = _given(tmp_path).split(cases)
    assert cases["slide"][fold.train].tolist() == ["a1", "a2", "b1"]
    assert cases["slide"][fold.test].tolist() == ["d1"]
    assert "no fold has 1 labelled slide (e1)" in notes


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"splits_0\.csv: not a CSV: No columns"),
        (b"train,val,test\na1,c1,d1\nb1,,,\nx,y,z,w\n", r"splits_0\.csv: not a CSV: .* line 3"),
        (b"train,val,test\na1,c1,d\xe9\n", r"splits_0\.csv: not a CSV: 'utf-8'"),
        (b"train,val,test\n", "fold k0 has no slide to learn from"),
        (b"train,val,test\na1,c1,\n", "fold k0 has no slide to test"),
        (b"train,val,test\nTrue,False,False\n", "which slides"),
        (b",train,val,test\na1,True,False,True\nb1,False,False,True\n", "listed twice: a1"),
        (
            b"train,val,test\na1,a2,d1\n",
            r"^0 of 1 test slides \(0\.0%\) .*; 1 of 1 validation slides are of patients .* \(A\)",
        ),
    ],
)
def test_a_file_that_is_no_list_is_refused_in_a_sentence(
    cases: pd.DataFrame, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "splits_0.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _given(tmp_path).split(cases)


def test_slides_that_differ_in_their_suffix_alone_are_refused(cases: pd.DataFrame, tmp_path: Path) -> None:
    _write(tmp_path, "train,val,test\na1,c1,d1\n")
    twins = cases.assign(slide=["a.svs", "a.tif", "b1", "c1", "d1", "e1"])
    with pytest.raises(ValueError, match="several slides are called a but for their suffix"):
        _given(tmp_path).split(twins)


def test_listed_slides_that_are_not_there_may_be_left_out(cases: pd.DataFrame, tmp_path: Path) -> None:
    _write(tmp_path, "train,val,test\na1,c1,z9\nb1,,d1\n")
    _, notes = _given(tmp_path, allow_missing=True).split(cases)
    assert "1 listed slides (z9) have no tiles or no label here and are left out" in notes


def test_an_empty_folder_is_named(cases: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no splits_0\.csv there; a folder of CLAM's split files"):
        _given(tmp_path).split(cases)


def test_slides_tested_twice_and_the_worst_fold_are_told(cases: pd.DataFrame, tmp_path: Path) -> None:
    _write(tmp_path, "train,val,test\nb1,c1,a1\n,,a2\n", k=0)
    _write(tmp_path, "train,val,test\na1,c1,a2\ne1,,d1\n", k=1)
    _write(tmp_path, "train,val,test\nd1,a1,b1\n,,c1\n,,e1\n", k=2)
    _, notes = _given(tmp_path, allow_leaks=True).split(cases)
    assert notes[0] == (
        "LEAK: 1 of 7 test slides (14.3%) are of patients that the same fold learns from (most in fold "
        "k1: 50%), 0 more of patients that choose its epoch; 0 of 3 validation slides are of patients "
        "learned from"
    )
    assert notes[1] == (
        "6 of 6 slides are ever tested, 1 of them by several folds (2 of 3 folds overlap), so that folds are "
        "not independent"
    )


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


def test_the_studys_leaks_by_fold_add_up() -> None:
    cases, folder = _study(), STUDY / "splits_run" / "1.00"
    folds, notes = _given(folder, allow_leaks=True).split(cases)
    count = count_leaks(folds, cases)
    by_hand, n_same_site = [], 0
    for k in range(10):
        lists = pd.read_csv(folder / f"splits_{k}.csv")
        learned = {name[:12] for name in lists["train"].dropna()}
        by_hand.append(sum(name[:12] in learned for name in lists["test"].dropna()))
        sites = {name[5:7] for name in lists["train"].dropna()}
        n_same_site += sum(name[5:7] in sites for name in lists["test"].dropna())
    assert count.n_learned_F.tolist() == by_hand
    assert sum(by_hand) == 53
    assert int((count.n_times_n > 0).sum()) == 569
    assert count.n_same_site_F.sum() == n_same_site == 816  # 99.3 %
    assert count.n_overlapping == 10
    assert not any(note.startswith("no fold has") for note in notes)
