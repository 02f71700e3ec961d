"""Folds by a column of a list: words make one fold, numbers one each; what is neither is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate

from histo_ssl.folds.column import Column


def _column(
    path: Path | None,
    *,
    column: str = "split",
    valid_share: float = 0.0,
    allow_leaks: bool = False,
    allow_missing: bool = False,
) -> Column:
    return Column(
        path=str(path) if path else None,
        slide="slide_id",
        column=column,
        valid_share=valid_share,
        seed=0,
        allow_leaks=allow_leaks,
        allow_missing=allow_missing,
    )


@pytest.fixture
def cases() -> pd.DataFrame:
    """Twenty slides of ten patients, two classes, patient by patient."""
    patient = [f"p{i // 2}" for i in range(20)]
    return pd.DataFrame(
        {
            "slide": [f"s{i:02d}" for i in range(20)],
            "patient": patient,
            "site": "",
            "label": ["a" if int(name[1]) % 2 else "b" for name in patient],
        }
    )


def _csv(folder: Path, cases: pd.DataFrame, values: list[str], *, suffix: str = "") -> Path:
    path = folder / "list.csv"
    pd.DataFrame({"slide_id": cases["slide"] + suffix, "split": values}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", ["", ".svs", ".SVS"])
def test_words_make_one_fold_and_empty_cells_are_in_none(
    cases: pd.DataFrame, tmp_path: Path, suffix: str
) -> None:
    values = ["train"] * 8 + ["Val"] * 4 + [" test"] * 4 + [""] * 4
    (fold,), notes = _column(_csv(tmp_path, cases, values, suffix=suffix)).split(cases)
    assert fold.name == "k0"
    assert cases["slide"][fold.train].tolist() == [f"s{i:02d}" for i in range(8)]
    assert cases["slide"][fold.valid].tolist() == ["s08", "s09", "s10", "s11"]
    assert cases["slide"][fold.test].tolist() == ["s12", "s13", "s14", "s15"]
    assert "no fold has 4 labelled slides (s16, s17, s18, ...)" in notes


def test_a_validation_is_drawn_by_patient_where_the_column_names_none(
    cases: pd.DataFrame, tmp_path: Path
) -> None:
    path = _csv(tmp_path, cases, ["train"] * 16 + ["test"] * 4)
    (fold,), _ = _column(path, valid_share=0.25).split(cases)
    assert cases["label"][fold.valid].value_counts().to_dict() == {"a": 2, "b": 2}  # a quarter of 8 each
    assert set(cases["patient"][fold.valid]).isdisjoint(cases["patient"][fold.train])
    assert (fold.train | fold.valid).tolist() == [True] * 16 + [False] * 4


@pytest.mark.parametrize("suffix", ["", ".0"])
def test_numbers_make_a_fold_each_in_their_order(cases: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    numbers = [(10, 2, 3)[int(name[1]) % 3] for name in cases["patient"]]
    path = _csv(tmp_path, cases, [f"{number}{suffix}" for number in numbers])
    folds, notes = _column(path, valid_share=0.2).split(cases)
    assert [fold.name for fold in folds] == ["k2", "k3", "k10"]
    for fold, number in zip(folds, (2, 3, 10), strict=True):
        assert fold.test.tolist() == [n == number for n in numbers]
        assert fold.valid.any()
    assert notes == []


def test_the_slides_own_column_serves_without_a_csv(cases: pd.DataFrame) -> None:
    own = cases.assign(split=["train"] * 10 + ["test"] * 10)
    (fold,), _ = _column(None).split(own)
    assert fold.test.tolist() == [False] * 10 + [True] * 10
    with pytest.raises(ValueError, match=r"say \+task\.labels\.columns\.split=split, or task\.folds\.path"):
        _column(None).split(cases)


def test_a_patient_of_two_numbers_is_an_error_or_is_counted(cases: pd.DataFrame, tmp_path: Path) -> None:
    path = _csv(tmp_path, cases, ["0", "1"] + ["0"] * 8 + ["1"] * 10)
    with pytest.raises(ValueError, match=r"^2 of 20 test slides \(10\.0%\) .* \(p0\): this flatters scores"):
        _column(path).split(cases)
    folds, notes = _column(path, allow_leaks=True).split(cases)
    assert [int(fold.test.sum()) for fold in folds] == [9, 11]
    assert notes[0].startswith("LEAK: 2 of 20 test slides (10.0%)")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train"] * 10 + ["tset"] * 10, "column split: tset; either train, valid and test are expected"),
        (["train"] * 10 + ["1"] * 10, "column split: 1; either"),
        (["-1"] * 10 + ["1.5"] * 10, r"column split: -1, 1\.5; either"),
        ([""] * 20, "column split: all cells are empty"),
        (["train"] * 20, "fold k0 has no slide to test"),
        (["test"] * 20, "fold k0 has no slide to learn from"),
        (["3"] * 20, "fold k3 has no slide to learn from"),
    ],
)
def test_a_column_that_divides_nobody_is_refused(
    cases: pd.DataFrame, tmp_path: Path, values: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _column(_csv(tmp_path, cases, values)).split(cases)


def test_listed_slides_that_are_not_there_are_named(cases: pd.DataFrame, tmp_path: Path) -> None:
    path = _csv(tmp_path, cases, ["train"] * 10 + ["test"] * 10)
    fewer = cases.iloc[1:].reset_index(drop=True)
    with pytest.raises(ValueError, match=r"list\.csv, column split: 1 listed slides \(s00\) have no tiles"):
        _column(path).split(fewer)
    (fold,), notes = _column(path, allow_missing=True).split(fewer)
    assert int(fold.train.sum()) == 9
    assert "1 listed slides (s00) have no tiles or no label here and are left out" in notes


def test_a_csv_without_the_column_or_not_there_is_named(cases: pd.DataFrame, tmp_path: Path) -> None:
    path = _csv(tmp_path, cases, ["train"] * 10 + ["test"] * 10)
    with pytest.raises(ValueError, match=r"no column fold; it has slide_id, split: task\.folds\.slide and"):
        _column(path, column="fold").split(cases)
    with pytest.raises(FileNotFoundError, match="there is no such CSV"):
        _column(tmp_path / "other.csv").split(cases)


def test_every_choice_of_folds_divides_slides_as_configured(
    compose: Any, cases: pd.DataFrame, tmp_path: Path
) -> None:
    path = _csv(tmp_path, cases, [str(int(name[1]) // 5) for name in cases["patient"]])
    lists = pd.DataFrame({"train": cases["slide"][:10], "val": "", "test": cases["slide"][10:].to_numpy()})
    lists.to_csv(tmp_path / "splits_0.csv")
    choices = {
        "partition": [],
        "sites": [],
        "monte_carlo": [],
        "column": [f"task.folds.path={path}"],
        "given": [f"task.folds.path={tmp_path}"],
    }
    own = cases.assign(site=[f"site{name}" for name in cases["patient"]])
    for choice, overrides in choices.items():
        plan = compose("method=dino", "backbone=vit_t", "task=slides", f"task/folds={choice}", *overrides)
        folds, _ = instantiate(plan.group("task.folds")).split(own)
        assert len(folds) == {"monte_carlo": 10, "column": 2, "given": 1}.get(choice, 5)
        assert all(np.any(fold.train) and np.any(fold.test) for fold in folds)
