"""The study's tables: our numbers in its columns, what it printed, and the difference, by hand."""

import csv
import json
import math
from typing import Any

import pytest

from histo_ssl.report.html import build_report
from histo_ssl.report.runs import read_results
from histo_ssl.report.study import PUBLISHED, study_csv, study_tables, study_text

METRICS = ("mse", "prediction_probability", "concordance_as_published")
CLASSES = ["ADI", "BACK", "DEB", "LYM", "MUC", "NORM", "STR", "TUM"]


def scored(values: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {
            **{"subject": subject, "protocol": "euclidean_k5", "metric": "auc", "label": label},
            **{"value": value, "low": value - 0.01, "high": value + 0.01, "chance": 0.5},
        }
        for subject, numbers in values.items()
        for label, value in zip([*CLASSES, ""], numbers, strict=True)
    ]


def result(fake_runs: Any, encoder: str, values: dict[str, list[float]], **names: str) -> None:
    fake_runs.result(
        f"pretrain/{encoder}",
        "tiles/t",
        values={},
        scores=scored(values),
        confusion={},
        classes=CLASSES,
        **names,
    )


@pytest.fixture
def tables(fake_runs: Any) -> Any:
    """DINO on the normalised tiles, MoCo on those as scanned."""
    ours = [0.9, 1.0, 0.95, 0.8, 0.7, 0.97, 0.992, 0.967, 0.91]
    floors = {"colour": [0.5] * 3 + [0.8] + [0.5] * 5, "random": [0.4] * 9}
    result(fake_runs, "a", {"encoder": ours, **floors}, task="crc100k", method="dino", backbone="vit_t")
    result(fake_runs, "b", {"encoder": [0.6] * 9}, task="crc100k_nonorm", method="moco", backbone="resnet50")
    return study_tables(read_results(fake_runs.path))


def test_a_row_stands_beside_what_was_printed_and_the_difference(tables: Any) -> None:
    (table,) = tables
    assert table.columns == [*CLASSES, "all"]
    assert [(row.kind, row.name, row.setting) for row in table.rows] == [
        ("here", "dino, vit_t", "normalised"),
        ("published", "dino, vit_t", ""),
        ("difference", "dino, vit_t", ""),
        ("floor", "colour floor", "normalised"),
        ("floor", "random-weights floor", "normalised"),
        ("here", "moco, resnet50", "as scanned"),  # the study had none
    ]
    ours, printed, apart = (row.cells() for row in table.rows[:3])
    assert ours == [".900", "1.000", ".950", ".800▼", ".700", ".970", ".992", ".967", ".910"]
    assert printed == [".999", "1.000", ".999", ".985", ".992", ".960", ".992", ".967", ".987"]
    assert apart == ["-.099", "+.000", "-.049", "-.185", "-.292", "+.010", "+.000", "+.000", "-.077"]
    assert table.notes == [
        "▼ a floor is as good or better",
        "not the same architectures: dino with vit_t here, vit_s there",
    ]


def test_it_is_on_the_terminal_in_the_report_and_in_a_file(tables: Any, fake_runs: Any) -> None:
    text = study_text(tables)
    assert [" ".join(line.split()) for line in text.splitlines() if "difference" in line] == [
        "difference -.099 +.000 -.049 -.185 -.292 +.010 +.000 +.000 -.077"
    ]
    rows = list(csv.reader(study_csv(tables[0]).splitlines()))
    assert rows[0] == ["kind", "name", "stain", *CLASSES, "all"]
    assert rows[3][:4] == ["difference", "dino, vit_t", "", "-0.099"]
    page = build_report(fake_runs.path)
    assert page.with_name("table2.csv").read_text() == study_csv(tables[0])
    for place in (page, page.with_name("report.md")):
        content = place.read_text()
        for number in ("-.292", ".800▼"):
            assert number in content, place


def test_without_such_a_task_there_is_no_such_table(shared_runs: Any) -> None:
    assert study_tables(read_results(shared_runs.path)) == []
    build_report(shared_runs.path)
    assert not (shared_runs.path / "report" / "table2.csv").exists()


def test_the_published_mean_over_classes_is_the_mean_of_the_published_classes() -> None:
    table = json.loads(PUBLISHED.read_text())["table2"]
    for rows in table["published"].values():
        for _, *numbers in rows.values():
            assert len(numbers) == len(table["columns"]) == len(table["scores"])
            # rounded to three digits, as each of the eight is
            assert numbers[-1] == pytest.approx(math.fsum(numbers[:-1]) / 8, abs=0.00101)


def test_breastpathq_stands_beside_the_true_concordance_and_less_error_is_better(fake_runs: Any) -> None:
    rows = [
        {
            **{"subject": subject, "protocol": "least_squares", "metric": metric, "label": ""},
            **{"value": value, "low": value, "high": value, "chance": 0.5},
        }
        for subject, values in (("encoder", (0.03, 0.8, 0.833)), ("colour", (0.04, 0.85, 0.87)))
        for metric, value in zip(METRICS, values, strict=True)
    ]
    names = {"task": "breastpathq", "method": "dino", "backbone": "vit_s"}
    fake_runs.result("pretrain/a", "tiles/t", values={}, scores=rows, confusion={}, classes=[], **names)
    (table,) = study_tables(read_results(fake_runs.path))
    assert [row.cells() for row in table.rows] == [
        [".030", ".800▼", ".833▼"],
        [".029", ".829", ".854"],
        ["+.001", "-.029", "-.021"],
        [".040", ".850", ".870"],
    ]
    facts = json.loads(PUBLISHED.read_text())["breastpathq"]["published"]["breastpathq"]
    assert [printed for *_, printed in facts.values()] == [0.828, 0.788, 0.854]  # as in the paper
    for _, _, p_k, printed in facts.values():
        assert 2 - 1 / printed == pytest.approx(p_k, abs=0.0006)
