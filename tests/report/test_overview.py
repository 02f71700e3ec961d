"""The overview marks the best of what can be compared, and nothing else."""

from typing import Any

import pytest

from histo_ssl.report.overview import OverviewRow, overview
from histo_ssl.report.runs import read_runs
from histo_ssl.report.sections import run_section


def _rows(fake_runs: Any) -> dict[str, OverviewRow]:
    rows = overview([run_section(run) for run in read_runs(fake_runs.path)])
    return {f"{row.section.run.folder.name} {row.names[2]}": row for row in rows}


def _result(fake_runs: Any, name: str, value: float, *, tiles: str = "tiles/t", **changes: Any) -> None:
    fake_runs.result(f"pretrain/{name}", tiles, values={"encoder": value, "colour": 0.95}, data="", **changes)


def test_the_highest_score_of_the_same_question_is_the_best(fake_runs: Any) -> None:
    for name, value in (("a", 0.7), ("b", 0.9), ("c", 0.8)):
        _result(fake_runs, name, value)
    rows = _rows(fake_runs)
    assert [row.is_best for row in rows.values()] == [False, True, False]
    assert {row.n_alike for row in rows.values()} == {3}
    assert {row.rank for row in rows.values()} == {1}  # a best score may lie below a floor


def test_equal_scores_are_both_the_best(fake_runs: Any) -> None:
    _result(fake_runs, "a", 0.9)
    _result(fake_runs, "b", 0.9)
    assert [row.is_best for row in _rows(fake_runs).values()] == [True, True]


@pytest.mark.parametrize(
    "other",
    [
        {"tiles": "tiles/others"},
        {"asked": {"config": {"protocol": "another"}}},
        {"task": "logistic"},
        {"label_fraction": 0.25},
        {"primary": ["euclidean_k5", "auc"]},
    ],
)
def test_scores_of_another_question_are_not_compared(fake_runs: Any, other: dict[str, Any]) -> None:
    _result(fake_runs, "a", 0.9)
    _result(fake_runs, "b", 0.8, **other)
    rows = _rows(fake_runs).values()
    assert [(row.is_best, row.n_alike) for row in rows] == [(False, 1), (False, 1)]


def test_of_errors_the_lowest_is_the_best(fake_runs: Any) -> None:
    for name, value in (("a", 0.7), ("b", 0.2)):
        row = {"subject": "encoder", "protocol": "ridge", "metric": "mse", "label": "", "chance": 1.0}
        scores = [{**row, "value": value, "low": None, "high": None}]
        table = "subject,protocol,truth,predicted\nencoder,ridge,1,2\n"
        _result(
            *(fake_runs, name, value),
            scores=scores,
            primary=["ridge", "mse"],
            confusion={},
            predictions=table,
        )
    assert [row.is_best for row in _rows(fake_runs).values()] == [False, True]


def test_a_row_leads_to_its_task_on_the_run_s_page(fake_runs: Any) -> None:
    _result(fake_runs, "a", 0.7)
    _result(fake_runs, "a", 0.7, task="logistic")
    fake_runs.pretraining("b-0")
    rows = overview([run_section(run) for run in read_runs(fake_runs.path)])
    addresses = [row.address for row in rows]
    assert addresses == ["runs/a.html#result-1", "runs/a.html#result-2", "runs/b-0.html"]
    assert rows[2].names == ("b", "", "")
