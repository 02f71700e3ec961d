"""Rows and tables in the form of the study's: our scores, what it printed, the difference, the floors."""

import math
from dataclasses import dataclass

OURS, PRINTED, DIFFERENCE, FLOOR = "here", "published", "difference", "floor"  # kinds of rows
BELOW = "▼"  # after a score that a floor reaches


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A row of one of the study's tables."""

    kind: str  # OURS, PRINTED, DIFFERENCE or FLOOR
    name: str  # "dino, vit_s"; of a floor its name
    setting: str  # such as "as scanned"
    values: list[float]  # one per column, NaN where there is none
    is_below: list[bool]  # whether a floor is as good or better
    spreads: list[float] | None = None  # SD of each value, NaN where there is none

    def cells(self) -> list[str]:
        """Three decimals, differences with their sign, SDs, a mark where a floor is as good.

        >>> values = {"values": [0.01, -0.0201], "is_below": [False, False]}
        >>> StudyRow(kind="difference", name="", setting="", **values).cells()
        ['+.010', '-.020']
        """
        spreads = self.spreads or [math.nan] * len(self.values)
        triples = zip(self.values, spreads, self.is_below, strict=True)
        signed = self.kind == DIFFERENCE
        return [cell(value, sd, signed=signed) + (BELOW if below else "") for value, sd, below in triples]


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """One of the study's tables, as far as it was made here."""

    name: str  # of its file
    title: str
    source: str
    columns: list[str]
    rows: list[StudyRow]
    notes: list[str]


def plain_row(kind: str, name: str, values: list[float]) -> StudyRow:
    """A row without setting or marks."""
    return StudyRow(kind=kind, name=name, setting="", values=values, is_below=[False] * len(values))


def cell(value: float, sd: float, *, signed: bool) -> str:
    """As the study prints it: .983, 1.000; with an SD .884 ± .059.

    >>> nan = float("nan")
    >>> cell(0.98312, nan, signed=False), cell(1.0, nan, signed=False), cell(-0.5, nan, signed=True)
    ('.983', '1.000', '-.500')
    >>> cell(0.8841, 0.0591, signed=False)
    '.884 ± .059'
    """
    if math.isnan(value):
        return "–"
    shown = f"{value:{'+' if signed else ''}.3f}".replace("0.", ".", 1)
    return shown if math.isnan(sd) else f"{shown} ± {sd:.3f}".replace(" 0.", " .")
