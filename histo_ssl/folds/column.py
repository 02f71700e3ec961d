"""Folds by a column of somebody's list of slides: in which part each slide is, or which fold tests it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.folds.base import Fold
from histo_ssl.folds.leaks import check_leaks
from histo_ssl.folds.lists import EMPTY, Lists, names_of, placed, read_text
from histo_ssl.folds.names import bare, some
from histo_ssl.folds.partition import check_share, drawn

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "tune", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NUMBER = re.compile(r"(\d+)(\.0+)?")  # tables that have known empty cells write 3 as 3.0


@dataclass(frozen=True, kw_only=True)
class Column:
    """A fold by words (train, valid, test), or several by the number of the fold that tests each slide.

    Args:
        path: CSV with a row per slide; None: the labelled slides' own columns.
        slide: the CSV's column of slides' names.
        column: the column of words or numbers; slides with an empty cell are in no fold.
        valid_share: of each class's slides to learn from, for choosing an epoch where the column names none,
            0-1.
        seed: of the validation.
        allow_leaks: count patients on two sides, in place of stopping.
        allow_missing: leave out listed slides that are not there, in place of stopping.
    """

    path: str | None
    slide: str
    column: str
    valid_share: float
    seed: int
    allow_leaks: bool
    allow_missing: bool

    def split(self, cases: pd.DataFrame) -> tuple[list[Fold], list[str]]:
        """A fold k0 of words, or a fold k<number> of each number.

        Raises:
            FileNotFoundError: there is no such CSV.
            ValueError: it has no such column, a cell is neither word nor number, a slide is listed twice or
                not there, or a patient is on two sides.
        """
        check_share(self.valid_share)
        slides, cells = self._cells(cases)
        is_empty = cells.str.lower().isin(EMPTY).to_numpy()
        lists = self._lists(slides[~is_empty], cells[~is_empty].str.lower().to_numpy(dtype=str))
        folds, notes = placed(lists, cases, allow_missing=self.allow_missing)
        folds = [self._validated(fold, cases) for fold in folds]
        return folds, [*check_leaks(folds, cases, allow_leaks=self.allow_leaks), *notes]

    @property
    def _source(self) -> str:
        return f"{self.path or 'the slide list'}, column {self.column}"

    def _cells(self, cases: pd.DataFrame) -> tuple[NDArray[np.str_], "pd.Series[str]"]:
        """Slides' bare names, and their cells of the column."""
        table, slide = (cases, "slide") if self.path is None else (read_text(Path(self.path)), self.slide)
        missing = [name for name in (slide, self.column) if name not in table]
        if missing and self.path is None:
            raise ValueError(
                f"task.folds.column={self.column}: the labelled slides have no such column; say "
                f"+task.labels.columns.{self.column}={self.column}, or task.folds.path, a CSV that has it"
            )
        if missing:
            raise ValueError(
                f"{self.path}: no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}: "
                "task.folds.slide and task.folds.column say which of them is what"
            )
        names = np.array([bare(name.strip()) for name in table[slide]], dtype=str)
        return names, table[self.column].str.strip().reset_index(drop=True)

    def _lists(self, slides: NDArray[np.str_], cells: NDArray[np.str_]) -> list[Lists]:
        values = sorted(set(cells.tolist()))
        if not values:
            raise ValueError(
                f"{self._source}: all cells are empty; train, valid, test or numbers of folds are expected"
            )
        is_word = [value in PARTS for value in values]
        if any(is_word):
            self._refuse([value for value, known in zip(values, is_word, strict=True) if not known])
            part = np.array([PARTS[cell] for cell in cells])
            return [Lists(source=self._source, name="k0", **_listed(slides, part))]
        self._refuse([value for value in values if not NUMBER.fullmatch(value)])
        number = np.array([int(float(cell)) for cell in cells])
        return [
            Lists(
                source=self._source,
                name=f"k{k}",
                **_listed(slides, np.where(number == k, "test", "train")),
            )
            for k in np.unique(number).tolist()
        ]

    def _refuse(self, values: Sequence[str]) -> None:
        if values:
            raise ValueError(
                f"{self._source}: {some(values)}; either train, valid and test are expected, or the number "
                "of the fold that tests a slide"
            )

    def _validated(self, fold: Fold, cases: pd.DataFrame) -> Fold:
        """The fold with a validation, drawn from whom it learns from where it has none."""
        if fold.valid.any() or not fold.train.any():
            return fold
        valid = drawn(cases, among=fold.train, share=self.valid_share, seed=[self.seed, *fold.name.encode()])
        return replace(fold, train=fold.train & ~valid, valid=valid)


def _listed(slides: NDArray[np.str_], part: NDArray[np.str_]) -> dict[str, list[str]]:
    return {name: names_of(slides[part == name]) for name in ("train", "valid", "test")}
