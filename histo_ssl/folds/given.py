"""Divisions from outside: the split files of CLAM (arXiv:2004.09666).

A folder of `splits_<k>.csv`, each with the columns train, val and test, which list names of slides and need
not be equally long.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histo_ssl.folds.base import Fold, Mask
from histo_ssl.folds.leaks import check_leaks

COLUMNS = {"train": "train", "valid": "val", "test": "test"}  # ours: CLAM's
SUFFIX = re.compile(r"\.(svs|tiff?|ndpi|mrxs|scn|h5|pt)$", re.IGNORECASE)
N_NAMED = 3  # slides that a sentence names


@dataclass(frozen=True, kw_only=True)
class Given:
    """Folds that somebody has listed, checked before they are used.

    Args:
        path: folder of the lists; each gives a fold by its name.
        allow_leaks: count patients on two sides, in place of stopping.
        allow_missing: leave out listed slides that are not there, in place of stopping.
    """

    path: str
    allow_leaks: bool
    allow_missing: bool

    def split(self, cases: pd.DataFrame) -> tuple[list[Fold], list[str]]:
        """A fold per list, in the order of their numbers.

        Raises:
            FileNotFoundError: there is no list.
            ValueError: a list has other columns, names a slide twice or one that is not there, or a patient
                is on two sides.
        """
        files = sorted(Path(self.path).glob("splits_*.csv"), key=_number)
        files = [file for file in files if _number(file) >= 0]
        if not files:
            raise FileNotFoundError(
                f"task.folds.path={self.path}: no splits_0.csv there; a folder of CLAM's split files is "
                "expected"
            )
        read = [self._fold(file, cases) for file in files]
        folds, absent = [fold for fold, _ in read], sorted({name for _, names in read for name in names})
        return folds, [*self._absent(absent), *check_leaks(folds, cases, allow_leaks=self.allow_leaks)]

    def _fold(self, file: Path, cases: pd.DataFrame) -> tuple[Fold, list[str]]:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        missing = [column for column in COLUMNS.values() if column not in table]
        if missing:
            raise ValueError(f"{file}: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
        listed = {ours: _names(table[theirs]) for ours, theirs in COLUMNS.items()}
        everyone = [name for names in listed.values() for name in names]
        twice = sorted(name for name, count in Counter(everyone).items() if count > 1)
        if twice:
            raise ValueError(f"{file}: listed twice: {_named(twice)}; a slide has one place in a fold")
        masks = {ours: _mask(names, cases) for ours, names in listed.items()}
        absent = sorted(set(everyone) - set(cases["slide"]))
        return Fold(name=file.stem.replace("splits_", "k"), **masks), absent

    def _absent(self, names: list[str]) -> list[str]:
        if not names:
            return []
        said = f"{len(names)} listed slides ({_named(names)}) have no tiles or no label here"
        if not self.allow_missing:
            raise ValueError(
                f"{self.path}: {said}; add them, or say task.folds.allow_missing=true to go without them"
            )
        return [f"{said} and are left out"]


def _number(file: Path) -> int:
    """The number in `splits_3.csv`, -1 where there is none."""
    found = re.fullmatch(r"splits_(\d+)", file.stem)
    return int(found.group(1)) if found else -1


def _names(column: "pd.Series[str]") -> list[str]:
    return [SUFFIX.sub("", name.strip()) for name in column if name.strip()]


def _mask(names: Sequence[str], cases: pd.DataFrame) -> Mask:
    mask: Mask = cases["slide"].isin(names).to_numpy()
    return mask


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
