"""Encoders in pairs, on the same patients: rows of the report, made elsewhere."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from histo_ssl.folders.cells import harmless

COLUMNS = (
    *("task", "protocol", "metric", "first", "second", "value_first", "value_second"),
    *("difference", "low", "high", "p", "test", "result_first", "result_second"),
)


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """The difference of a score of two encoders, or of an encoder and a floor."""

    task: str
    protocol: str
    metric: str
    first: str
    second: str
    values: tuple[float, float]
    difference: float
    low: float  # 95 % interval of the difference
    high: float
    p: float
    test: str  # "delong" or "bootstrap"
    results: tuple[str, str]  # names of folders, which tell apart what was asked in several ways


def comparisons_csv(rows: Sequence[ComparisonRow]) -> str:
    """The rows as CSV."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        names = map(harmless, (row.task, row.protocol, row.metric, row.first, row.second))
        numbers = (*row.values, row.difference, row.low, row.high, row.p)
        writer.writerow(
            [*names, *(f"{number:.6g}" for number in numbers), row.test, *map(harmless, row.results)]
        )
    return stream.getvalue()
