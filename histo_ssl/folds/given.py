"""Divisions from outside: the split files of CLAM (arXiv:2004.09666).

A folder of `splits_<k>.csv`, each with the columns train, val and test, which list names of slides and need
not be equally long; or of CLAM's `splits_<k>_bool.csv`, a row per slide that says which of them it is in.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histo_ssl.folds.base import Fold
from histo_ssl.folds.leaks import check_leaks
from histo_ssl.folds.lists import Lists, names_of, placed, read_text

COLUMNS = {"train": "train", "valid": "val", "test": "test"}  # ours: CLAM's
FILE = re.compile(r"splits_(\d+)(_bool)?")
YES, NO = "true", "false"


@dataclass(frozen=True, kw_only=True)
class Given:
    """Folds that somebody has listed, checked before they are used.

    Args:
        path: folder of the lists, each of which gives a fold by its name; or one list. None is refused.
        allow_leaks: count patients on two sides, in place of stopping.
        allow_missing: leave out listed slides that are not there, in place of stopping.
    """

    path: str | None
    allow_leaks: bool
    allow_missing: bool

    def split(self, cases: pd.DataFrame) -> tuple[list[Fold], list[str]]:
        """A fold per list, in the order of their numbers.

        Raises:
            FileNotFoundError: there is no list.
            ValueError: no path is given; a list is no CSV, has other columns, names a slide twice or one that
                is not there; or a patient is on two sides.
        """
        if self.path is None:
            raise ValueError(
                "task.folds.path is missing: give a folder of CLAM's splits_0.csv and so on, or one of them"
            )
        lists = [_lists(file) for file in _files(Path(self.path))]
        folds, notes = placed(lists, cases, allow_missing=self.allow_missing)
        return folds, [*check_leaks(folds, cases, allow_leaks=self.allow_leaks), *notes]


def _files(path: Path) -> list[Path]:
    """The lists by their number; of two of the same number the one of names."""
    if path.is_file():
        return [path]
    found: dict[int, Path] = {}
    for file in sorted(path.glob("splits_*.csv"), key=lambda file: file.stem.endswith("_bool")):
        match = FILE.fullmatch(file.stem)
        if match:
            found.setdefault(int(match[1]), file)
    if not found:
        raise FileNotFoundError(
            f"task.folds.path={path}: no splits_0.csv there; a folder of CLAM's split files is expected"
        )
    return [found[number] for number in sorted(found)]


def _lists(file: Path) -> Lists:
    table = read_text(file)
    missing = [column for column in COLUMNS.values() if column not in table]
    if missing:
        raise ValueError(f"{file}: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    parts = table[list(COLUMNS.values())]
    is_in = parts.apply(lambda column: column.str.lower())
    if len(table) and is_in.isin((YES, NO)).all(axis=None):
        if table.columns[0] in COLUMNS.values():
            raise ValueError(f"{file}: which slides? Their names are expected in its first column")
        listed = {ours: names_of(table.iloc[:, 0][is_in[theirs] == YES]) for ours, theirs in COLUMNS.items()}
    else:
        listed = {ours: names_of(parts[theirs]) for ours, theirs in COLUMNS.items()}
    match = FILE.fullmatch(file.stem)
    return Lists(source=str(file), name=f"k{match[1]}" if match else "k0", **listed)
