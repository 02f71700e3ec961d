"""Survival in the report: a figure for each subject, told in words."""

from typing import Any

from histo_ssl.report.html import build_report
from histo_ssl.report.runs import read_results
from histo_ssl.report.survival import survival_curves

CURVES = """group,time,at_risk,survival,low,high,protocol,subject
high risk,2,5,0.8,,,abmil,encoder
high risk,4,3,0.5,0.2,0.7,abmil,encoder
low risk,3,6,0.9,,,abmil,encoder
low risk,9,2,0.7,0.4,0.9,abmil,encoder
high risk,2,6,0.8,,,abmil,colour
low risk,3,5,0.9,,,abmil,colour
low risk,3,5,0.9,,,mean,encoder
"""


def test_each_subject_has_its_curves(fake_runs: Any) -> None:
    folder = fake_runs.result("pretrain/a", "tiles/t", values={}, primary=["abmil", "fold_mean_c_index"])
    (folder / "curves.csv").write_text(CURVES)
    (result,) = read_results(fake_runs.path)
    pictures = survival_curves(result)
    assert [picture.title for picture in pictures] == ["encoder, abmil", "colour floor, abmil"]
    assert pictures[0].alt == "Kaplan-Meier curves of 5 of high risk, 6 of low risk, by encoder, abmil."
    (page,) = (build_report(fake_runs.path).parent / "runs").iterdir()
    assert "Kaplan-Meier curves by predicted risk" in page.read_text()


def test_other_tasks_have_none(fake_runs: Any) -> None:
    fake_runs.result("pretrain/a", "tiles/t", values={"encoder": 0.9})
    (result,) = read_results(fake_runs.path)
    assert survival_curves(result) == []
