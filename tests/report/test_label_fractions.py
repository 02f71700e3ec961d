"""Table 1: all twelve cells of the study from its own fold results, and ours beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

from histo_ssl.report.label_fractions import cell_row, fraction_table, read_fold_files
from histo_ssl.report.runs import read_results
from histo_ssl.report.study import PUBLISHED, study_tables

STUDY = Path(__file__).resolve().parents[3] / "shared" / "data" / "seed_paper" / "results"
FACTS = json.loads(PUBLISHED.read_text())["table1"]
FILES = {  # names in the study's files
    "imagenet": "resnet50_trunc",
    "simclr": "resnet50_tcga_brca_simclr",
    "dino": "vits_tcga_brca_dino",
}


@pytest.mark.parametrize("method", FILES)
def test_the_studys_fold_results_give_its_printed_cells(method: str) -> None:
    if not STUDY.is_dir():
        pytest.skip(f"the study's fold results are not at {STUDY}")
    cells = read_fold_files(STUDY)[FILES[method]]
    row = cell_row("here", method, cells, fractions=FACTS["fractions"])
    printed = FACTS["published"][method][1:]
    assert row.cells() == [f"{mean:.3f} ± {sd:.3f}".replace("0.", ".") for mean, sd in printed]


def test_a_folder_of_fold_files_is_read_by_encoder_and_share(tmp_path: Path) -> None:
    (tmp_path / "a_b_0.25.csv").write_text(",folds,test_auc\n0,0,0.5\n1,1,0.75\n")
    (tmp_path / "a_b_1.00.csv").write_text(",folds,test_auc\n0,0,1.0\n")
    assert read_fold_files(tmp_path) == {"a_b": {0.25: [0.5, 0.75], 1.0: [1.0]}}


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no files of fold results"):
        read_fold_files(tmp_path)
    (tmp_path / "a_1.00.csv").write_text("fold,auc\n0,1\n")
    with pytest.raises(ValueError, match="no column test_auc"):
        read_fold_files(tmp_path)


def test_our_folds_stand_beside_what_was_printed(fake_runs: Any) -> None:
    for fraction, shift in ((1.0, 0.0), (0.25, -0.1)):
        fake_runs.result(
            f"pretrain/dino-{fraction}",
            "tiles/t",
            values={},
            scores=[],
            confusion={},
            classes=["IDC", "ILC"],
            task="tcga_brca_subtype",
            method="dino",
            backbone="vit_s",
            label_fraction=fraction,
            folds={
                "encoder": {"clam_sb": {"k0": 0.9 + shift, "k1": 0.8 + shift, "k2": None}},
                "colour": {"clam_sb": {"k0": 0.5, "k1": 0.6, "k2": 0.7}},
            },
        )
    table = fraction_table("table1", FACTS, read_results(fake_runs.path))
    assert [(row.kind, row.cells()) for row in table.rows] == [
        ("here", [".850 ± .071", "–", "–", ".750 ± .071"]),
        ("published", [".886 ± .059", ".852 ± .049", ".862 ± .052", ".809 ± .034"]),
        ("difference", ["-.036", "–", "–", "-.059"]),
        ("floor", [".600 ± .100", "–", "–", ".600 ± .100"]),
    ]
    assert [made.name for made in study_tables(read_results(fake_runs.path))] == ["table1"]
