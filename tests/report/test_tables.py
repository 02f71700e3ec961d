"""The scores outside the page: terminal and CSV."""

import csv
import io
import math
from typing import Any

from histo_ssl.report.runs import read_runs
from histo_ssl.report.tables import csv_text, scores_text

FORMULA = '=HYPERLINK("x","y")'
VALUES = {"encoder": 0.90123456789, "colour": 0.8, "random": 1 / 3}


def test_the_csv_file_read_back_has_every_score_to_the_last_digit(fake_runs: Any) -> None:
    fake_runs.result("pretrain/a-b-c-0", "tiles/t", values=VALUES)
    (run,) = read_runs(fake_runs.path)
    rows = list(csv.DictReader(io.StringIO(csv_text([run]))))
    names = ("subject", "protocol", "metric", "class")
    read_back = {tuple(row[name] for name in names): float(row["value"]) for row in rows}
    assert read_back == {key: estimate.value for key, estimate in run.results[0].scores.items()}
    assert len(rows) == 3 * 2 * (4 + 4)  # subjects x protocols x (metrics + AUC of four classes)
    assert {row["chance"] for row in rows if row["metric"] == "auc"} == {"0.5"}


def test_a_missing_number_is_an_empty_cell(fake_runs: Any) -> None:
    row = {"subject": "encoder", "protocol": "p", "metric": "auc", "label": "", "value": math.nan}
    scores = [{**row, "low": None, "high": None, "chance": 0.5}]
    fake_runs.result("pretrain/a-b-c-0", "tiles/t", values={}, scores=scores)
    line = csv_text(read_runs(fake_runs.path)).splitlines()[1]
    assert line.endswith("encoder,p,auc,,,,,0.5")


def test_no_cell_of_the_csv_file_is_a_formula(fake_runs: Any) -> None:
    fake_runs.result("pretrain/a-b-c-0", "tiles/t", values=VALUES, data=FORMULA, method="@x", backbone="-1+1")
    (_, *rows) = csv.reader(io.StringIO(csv_text(read_runs(fake_runs.path))))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]
    assert {tuple(row[2:5]) for row in rows} == {("'@x", "'-1+1", f"'{FORMULA}")}


def test_the_terminal_shows_each_score_beside_its_floors(fake_runs: Any) -> None:
    fake_runs.result("pretrain/a-b-c-0", "tiles/t", values=VALUES)
    text = scores_text(fake_runs.path)
    (primary,) = [" ".join(line.split()) for line in text.splitlines() if line.strip().startswith("AUC *")]
    assert primary == "AUC * 0.901 [0.871, 0.931] 0.800 0.333 0.500 above both floors"
    assert "Split by patient: 16 patients in train, 8 in test." in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_terminal_says_why_there_is_no_score(fake_runs: Any) -> None:
    fake_runs.result("pretrain/a-b-c-0", "tiles/t", values={}, notes=["No tile has a label."])
    assert scores_text(fake_runs.path) == "dino, vit_t on synthetic: knn\nNo tile has a label.\n\n"
