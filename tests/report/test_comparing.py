"""Pairs of results in the report: an encoder against its floors, and others that were asked the same."""

import csv
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histo_ssl import comparing
from histo_ssl.comparing import comparisons
from histo_ssl.report.html import build_report
from histo_ssl.report.runs import read_results

N = 60


def _predictions(strengths: dict[str, float]) -> tuple[str, dict[str, Any]]:
    """A table of subjects who tell two classes apart, each as well as its strength; and their scores."""
    rng = np.random.default_rng(0)
    truth, noise = np.arange(N) % 2, rng.normal(size=N)
    lines, scores = ["fold,slide,patient,label,subject,protocol,score_IDC,score_ILC"], {}
    for subject, strength in strengths.items():
        score = 1 / (1 + np.exp(-(strength * (truth - 0.5) + noise)))
        scores[subject] = (truth, score)
        for i in range(N):
            label = ("IDC", "ILC")[truth[i]]
            values = f"{1 - score[i]},{score[i]}"
            lines.append(f"k{i // 30},s{i:02d},p{i:02d},{label},{subject},clam_sb,{values}")
    return "\n".join(lines) + "\n", scores


def _result(
    fake_runs: Any,
    predictions: str,
    *,
    method: str,
    classes: tuple[str, ...] = ("IDC", "ILC"),
    task: str = "slides",
    model: str = "clam_sb",
) -> None:
    """What a task on slides leaves of two folds by one model of bags."""
    fake_runs.result(
        f"pretrain/{method}",
        "tiles/t",
        values={},
        predictions=predictions,
        scores=[],
        confusion={},
        classes=list(classes),
        task=task,
        method=method,
        folds={"encoder": {model: {"k0": 0.9, "k1": 0.8}}},
    )


@pytest.fixture
def scores(fake_runs: Any) -> dict[str, dict[str, Any]]:
    """Two encoders with floors, by the same models of bags."""
    found = {}
    for method, strength in (("dino", 4.0), ("moco", 1.0)):
        text, found[method] = _predictions({"encoder": strength, "colour": 0.0})
        _result(fake_runs, text, method=method)
    return found


def test_encoders_stand_beside_their_floors_and_each_other(
    fake_runs: Any, scores: dict[str, dict[str, Any]]
) -> None:
    rows = [row for row in comparisons(read_results(fake_runs.path)) if row.metric == "auc"]
    assert [(row.first.split(",")[0], row.second.split(",")[0]) for row in rows] == [
        ("dino", "colour floor"),
        ("moco", "colour floor"),
        ("dino", "moco"),
    ]
    aucs = {method: roc_auc_score(*found["encoder"]) for method, found in scores.items()}
    assert rows[2].values == pytest.approx((aucs["dino"], aucs["moco"]))
    assert rows[2].difference == pytest.approx(aucs["dino"] - aucs["moco"])
    assert rows[2].p < 0.01
    assert rows[2].low > 0


def test_they_are_in_the_report_and_in_a_file(fake_runs: Any, scores: dict[str, dict[str, Any]]) -> None:
    assert scores
    rows = comparisons(read_results(fake_runs.path))
    page = build_report(fake_runs.path, comparisons=rows)
    assert "Differences of AUC and C-index on the same patients" in page.read_text()
    table = list(csv.DictReader(page.with_name("comparisons.csv").read_text().splitlines()))
    assert len(table) == len(rows) == 6
    assert float(table[0]["difference"]) == pytest.approx(rows[0].difference, rel=1e-4)
    named = [(row["result_first"], row["result_second"]) for row in table if row["metric"] == "auc"]
    dino, moco = sorted(path.name for path in (fake_runs.path / "results").iterdir() if path.is_dir())
    assert named == [(dino, dino), (moco, moco), (dino, moco)]


def test_of_more_encoders_than_are_paired_all_stand_beside_their_floors(
    fake_runs: Any,
    scores: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert scores
    monkeypatch.setattr(comparing, "MAX_PAIRED", 1)
    rows = comparisons(read_results(fake_runs.path))
    assert [row.second for row in rows] == ["colour floor"] * 4
    assert "2 encoders were asked slides; the first 1 by the names of their folders" in caplog.text


def test_results_of_tiles_are_not_compared(fake_runs: Any) -> None:
    fake_runs.result("pretrain/a", "tiles/t", values={"encoder": 0.9}, folds={"encoder": {}})
    assert comparisons(read_results(fake_runs.path)) == []


def test_random_weights_are_not_compared_with_random_weights(fake_runs: Any) -> None:
    text, _ = _predictions({"encoder": 0.5, "colour": 0.0, "random": 0.5})
    _result(fake_runs, text, method="random")
    rows = comparisons(read_results(fake_runs.path))
    assert {row.second for row in rows} == {"colour floor"}


def test_survival_is_compared_by_the_risks_of_the_same_patients(fake_runs: Any) -> None:
    rng = np.random.default_rng(0)
    time, died, noise = rng.exponential(20, size=N) + 1, rng.random(N) < 0.7, rng.normal(size=N)
    for method, strength in (("dino", 3.0), ("moco", 0.5)):
        lines = ["slide,patient,time,event,fold,risk,is_high,protocol,subject"]
        for subject, effect in (("encoder", strength), ("colour", 0.0)):
            risk = noise - effect * np.log(time)
            lines += [
                f"s{i:02d},p{i:02d},{time[i]},{died[i]},k{i // 30},{risk[i]},{risk[i] > 0},abmil,{subject}"
                for i in range(N)
            ]
        text = "\n".join(lines) + "\n"
        _result(fake_runs, text, method=method, classes=(), task="survival", model="abmil")
    rows = comparisons(read_results(fake_runs.path))
    assert [(row.first.split(",")[0], row.second.split(",")[0], row.metric) for row in rows] == [
        (first, second, metric)
        for first, second in (("dino", "colour floor"), ("moco", "colour floor"), ("dino", "moco"))
        for metric in ("c_index", "fold_mean_c_index")
    ]
    assert all(row.test == "bootstrap" for row in rows)
    assert rows[4].low > 0
    assert rows[4].p < 0.01
    assert "fold mean C-index" in build_report(fake_runs.path, comparisons=rows).read_text()
