"""Scores as tables outside the page: plain text for the terminal, a long CSV file for spreadsheets."""

import csv
import io
import itertools
import math
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from histo_ssl.folders.cells import harmless
from histo_ssl.report.runs import Estimate, Result, Run, ScoreKey, read_results
from histo_ssl.report.scores import ScoreRow, interval, measured_floors, number, score_rows, words

CSV_COLUMNS = (
    *("run", "result", "method", "backbone", "data", "task", "subject", "protocol", "metric", "class"),
    *("value", "low", "high", "chance"),
)
TERMINAL_COLUMNS = 110


def scores_text(runs_dir: Path) -> str:
    """Score tables of all finished results under `runs_dir`, as plain text for the terminal."""
    stream = io.StringIO()
    console = Console(file=stream, width=TERMINAL_COLUMNS, color_system=None, markup=False, emoji=False)
    for result in read_results(runs_dir):
        console.print(f"{result.title}: {result.task_title}", highlight=False)
        if result.scores:
            console.print(_terminal_table(result))
            console.print("* stands for the task in the report")
        for note in result.notes:
            console.print(note, highlight=False)
        console.print()
    return stream.getvalue()


def csv_text(runs: list[Run]) -> str:
    """All scores, a line per run, subject, protocol, metric and class; NaN is an empty cell."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in runs:
        for result in run.results:
            writer.writerows(_csv_row(run, result, key=key, estimate=e) for key, e in result.scores.items())
    return stream.getvalue()


def _terminal_table(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("score", no_wrap=True)
    floors = measured_floors([result])
    for name in ("encoder", "95 % interval", *floors, "chance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("encoder against floors")
    for protocol, rows in itertools.groupby(score_rows(result), key=lambda row: words(row.protocol)):
        table.add_row(protocol)
        for row in rows:
            table.add_row(*_cells(row, floors=list(floors)))
    return table


def _cells(row: ScoreRow, *, floors: list[str]) -> list[str]:
    name = f"  {words(row.metric)}{' *' if row.is_primary else ''}"
    bounds = interval(row.encoder) if row.encoder else ""
    beside = [_value(row.floors.get(subject)) for subject in floors]
    return [name, _value(row.encoder), bounds, *beside, number(row.chance), row.verdict]


def _value(estimate: Estimate | None) -> str:
    return "–" if estimate is None else number(estimate.value)


def _csv_row(run: Run, result: Result, *, key: ScoreKey, estimate: Estimate) -> list[str]:
    names = (run.name, result.folder.name, result.method, result.backbone, result.data, result.task, *key)
    numbers = (estimate.value, estimate.low, estimate.high, estimate.chance)
    return [*map(harmless, names), *("" if math.isnan(x) else repr(x) for x in numbers)]
