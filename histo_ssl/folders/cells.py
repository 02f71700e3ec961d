"""Texts as cells of CSV files: no spreadsheet takes one for a formula, and we read back what was written.

Slide names, labels and columns come from strangers' files. A cell that would be run gets an apostrophe before
it, a spreadsheet's sign for text; one that begins with an apostrophe gets another, so that taking the first
away is always right.
"""

from typing import Any

import pandas as pd

# What a spreadsheet may run (OWASP, CSV injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
MARK = "'"


def harmless(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula.

    >>> harmless("=HYPERLINK(1)"), harmless("dino"), harmless("'")
    ("'=HYPERLINK(1)", 'dino', "''")
    """
    return f"{MARK}{text}" if text.startswith((*FORMULA_STARTS, MARK)) else text


def exact(cell: str) -> str:
    """The text that `harmless` made the cell of."""
    return cell.removeprefix(MARK)


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV with harmless texts, in cells and headings; numbers stay numbers."""
    return table.map(_harmless).rename(columns=harmless).to_csv(index=False, lineterminator="\n")


def exact_table(cells: pd.DataFrame) -> pd.DataFrame:
    """The texts that `csv_text` wrote, from a table that was read as text."""
    return cells.map(exact).rename(columns=exact)


def _harmless(value: Any) -> Any:
    return harmless(value) if isinstance(value, str) else value
