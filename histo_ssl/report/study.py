"""The study's tables (arXiv:2203.00585) in its own form: our scores, what it printed, the difference.

What it printed stands in `published.json`, with the scores of ours that it is to be held against.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from histo_ssl.folders.cells import harmless
from histo_ssl.report.label_fractions import fraction_table
from histo_ssl.report.runs import Result
from histo_ssl.report.scores import FLOORS, ScoreRow, class_rows, score_rows
from histo_ssl.report.study_rows import (
    BELOW,
    DIFFERENCE,
    FLOOR,
    OURS,
    PRINTED,
    StudyRow,
    StudyTable,
    plain_row,
)

PUBLISHED = Path(__file__).with_name("published.json")
TERMINAL_COLUMNS = 118


def study_tables(results: Sequence[Result]) -> list[StudyTable]:
    """The tables that any of the results has a part in."""
    made = [
        (fraction_table if "fractions" in facts else _table)(name, facts, results)
        for name, facts in json.loads(PUBLISHED.read_text()).items()
    ]
    return [table for table in made if table.rows]


def study_text(tables: Sequence[StudyTable]) -> str:
    """The tables as plain text for the terminal."""
    stream = io.StringIO()
    console = Console(file=stream, width=TERMINAL_COLUMNS, color_system=None, markup=False, emoji=False)
    for table in tables:
        console.print(f"{table.title}\n{table.source}", highlight=False)
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        has_settings = any(row.setting for row in table.rows)
        for name in ("", *(["stain"] if has_settings else []), *table.columns):
            shown.add_column(name, justify="left" if name in ("", "stain") else "right", no_wrap=True)
        for row in table.rows:
            shown.add_row(label(row), *([row.setting] if has_settings else []), *row.cells())
        console.print(shown)
        for note in table.notes:
            console.print(note, highlight=False)
        console.print()
    return stream.getvalue()


def study_csv(table: StudyTable) -> str:
    """A table as CSV: kind, name and setting of each row, then its numbers, and their SDs if it has any."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    has_spreads = any(row.spreads for row in table.rows)
    spreads = [f"{column} SD" for column in table.columns] if has_spreads else []
    writer.writerow(["kind", "name", "stain", *table.columns, *spreads])
    for row in table.rows:
        numbers = [*row.values, *(row.spreads or [math.nan] * len(spreads))]
        shown = ["" if math.isnan(value) else f"{value:.6g}" for value in numbers]
        writer.writerow([row.kind, harmless(row.name), harmless(row.setting), *shown])
    return stream.getvalue()


def label(row: StudyRow) -> str:
    """What a row is, for its first cell."""
    return row.name if row.kind in (OURS, FLOOR) else f"  {row.kind}"


def _table(name: str, facts: dict[str, Any], results: Sequence[Result]) -> StudyTable:
    columns = [_Column(*key) for key in facts["scores"]]
    rows: list[StudyRow] = []
    others: dict[str, None] = {}
    for task, setting in facts["tasks"].items():
        of_task = [result for result in results if result.task == task and _is_scored(result, columns)]
        for result in of_task:
            backbone, *printed = facts["published"][task].get(result.method, [result.backbone])
            rows += _rows(result, columns, setting=setting, printed=printed)
            if backbone != result.backbone:
                others[f"{result.method} with {result.backbone} here, {backbone} there"] = None
        rows += [row for result in of_task[:1] for row in _floors(result, columns, setting=setting)]
    notes = [f"{BELOW} a floor is as good or better"] if any(any(row.is_below) for row in rows) else []
    notes += [f"not the same architectures: {'; '.join(others)}"] if others else []
    facts = {part: facts[part] for part in ("title", "source", "columns")}
    return StudyTable(name=name, rows=rows, notes=notes, **facts)


class _Column(NamedTuple):
    protocol: str
    metric: str
    label: str


def _is_scored(result: Result, columns: Sequence[_Column]) -> bool:
    return bool(set(_by_column(result)) & set(columns))


def _by_column(result: Result) -> dict[tuple[str, str, str], ScoreRow]:
    rows = [*score_rows(result), *class_rows(result)]
    return {(row.protocol, row.metric, row.label): row for row in rows}


def _rows(
    result: Result, columns: Sequence[_Column], *, setting: str, printed: list[float]
) -> list[StudyRow]:
    """Our scores; and what was printed with the difference, if anything was."""
    scored = _by_column(result)
    found = [scored.get(column) for column in columns]
    ours = [row.encoder.value if row and row.encoder else math.nan for row in found]
    below = [bool(row and row.winners) for row in found]
    name = f"{result.method}, {result.backbone}"
    rows = [StudyRow(kind=OURS, name=name, setting=setting, values=ours, is_below=below)]
    if printed:
        apart = [a - b for a, b in zip(ours, printed, strict=True)]
        rows += [plain_row(PRINTED, name, printed), plain_row(DIFFERENCE, name, apart)]
    return rows


def _floors(result: Result, columns: Sequence[_Column], *, setting: str) -> list[StudyRow]:
    scored = _by_column(result)
    rows = []
    for subject, name in FLOORS.items():
        estimates = [scored[column].floors.get(subject) if column in scored else None for column in columns]
        values = [estimate.value if estimate else math.nan for estimate in estimates]
        if not all(map(math.isnan, values)):
            rows.append(replace(plain_row(FLOOR, name, values), setting=setting))
    return rows
