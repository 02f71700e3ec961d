"""Scores over shares of the labels, as Table 1 of the study (arXiv:2203.00585).

A cell is mean and SD (ddof 1) of the AUCs of its folds, ours or somebody else's: from files of fold results
as CLAM writes them (columns folds, test_auc) the same table comes out.
"""

import csv
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from histo_ssl.report.runs import ENCODER, Result
from histo_ssl.report.scores import FLOORS
from histo_ssl.report.study_rows import DIFFERENCE, FLOOR, OURS, PRINTED, StudyRow, StudyTable

FOLD_FILE = re.compile(r"(?P<encoder>.+)_(?P<fraction>[01]\.\d+)\.csv")
Cells = Mapping[float, Sequence[float]]  # share of the labels -> AUC of each fold


def fraction_table(name: str, facts: dict[str, Any], results: Sequence[Result]) -> StudyTable:
    """Our cells, what was printed, and the difference, a row of each for every encoder."""
    fractions: list[float] = facts["fractions"]
    rows: list[StudyRow] = []
    for encoder, of_encoder in _by_encoder(results, facts).items():
        method, _ = encoder
        cells = {of.label_fraction: _aucs(of, facts["protocol"], subject=ENCODER) for of in of_encoder}
        printed = facts["published"].get(method)
        rows.append(cell_row(OURS, ", ".join(encoder), cells, fractions=fractions))
        if printed:
            rows += _printed(rows[-1], printed[1:])
        rows += _floor_rows(of_encoder, facts["protocol"], fractions=fractions)
    note = "mean ± SD (ddof 1) over folds; the study's folds are repeated random splits that share patients"
    others = {
        f"{method} with {backbone} here, {facts['published'][method][0]} there": None
        for method, backbone in _by_encoder(results, facts)
        if facts["published"].get(method, [backbone])[0] != backbone
    }
    notes = [note, *([f"not the same architectures: {'; '.join(others)}"] if others else [])]
    return StudyTable(
        name=name,
        title=facts["title"],
        source=facts["source"],
        columns=facts["columns"],
        rows=rows,
        notes=notes,
    )


def cell_row(kind: str, name: str, cells: Cells, *, fractions: Sequence[float]) -> StudyRow:
    """A row of cells: the mean of the folds' AUCs that are defined, and their SD with ddof 1."""
    found = [[auc for auc in cells.get(fraction, ()) if not math.isnan(auc)] for fraction in fractions]
    return StudyRow(
        kind=kind,
        name=name,
        setting="",
        values=[statistics.fmean(aucs) if aucs else math.nan for aucs in found],
        spreads=[statistics.stdev(aucs) if len(aucs) > 1 else math.nan for aucs in found],
        is_below=[False] * len(found),
    )


def read_fold_files(folder: Path) -> dict[str, Cells]:
    """The folds' test AUCs in a folder of `<encoder>_<share of labels>.csv`, by encoder and share.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file has no column test_auc.
    """
    found: dict[str, dict[float, Sequence[float]]] = {}
    for path in sorted(folder.glob("*.csv")):
        match = FOLD_FILE.fullmatch(path.name)
        if match:
            found.setdefault(match["encoder"], {})[float(match["fraction"])] = _test_aucs(path)
    if not found:
        raise FileNotFoundError(f"{folder}: no files of fold results, such as vits_1.00.csv")
    return dict(found)


def _test_aucs(path: Path) -> list[float]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "test_auc" not in rows[0]:
        raise ValueError(f"{path}: no column test_auc; files of CLAM's fold results are expected")
    return [float(row["test_auc"]) for row in rows]


def _by_encoder(results: Sequence[Result], facts: dict[str, Any]) -> dict[tuple[str, str], list[Result]]:
    """The results that have a part in the table, by method and backbone."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.task == facts["task"] and facts["protocol"] in result.folds.get(ENCODER, {}):
            found.setdefault((result.method, result.backbone), []).append(result)
    return found


def _aucs(result: Result, protocol: str, *, subject: str) -> list[float]:
    return list(result.folds.get(subject, {}).get(protocol, {}).values())


def _printed(ours: StudyRow, printed: Sequence[tuple[float, float]]) -> list[StudyRow]:
    """What was printed, and how far our means are from it."""
    means, spreads = [mean for mean, _ in printed], [sd for _, sd in printed]
    apart = [a - b for a, b in zip(ours.values, means, strict=True)]
    nothing = [math.nan] * len(means)
    shared: dict[str, Any] = {"name": ours.name, "setting": "", "is_below": [False] * len(means)}
    return [
        StudyRow(kind=PRINTED, values=means, spreads=spreads, **shared),
        StudyRow(kind=DIFFERENCE, values=apart, spreads=nothing, **shared),
    ]


def _floor_rows(results: Sequence[Result], protocol: str, *, fractions: Sequence[float]) -> list[StudyRow]:
    """The floors of an encoder's cells, those that were measured."""
    rows = []
    for subject, name in FLOORS.items():
        cells = {result.label_fraction: _aucs(result, protocol, subject=subject) for result in results}
        if any(cells.values()):
            rows.append(cell_row(FLOOR, name, cells, fractions=fractions))
    return rows
