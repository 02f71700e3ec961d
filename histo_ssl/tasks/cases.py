"""The slides of a slide-level task with what is known of each: its label, patient and site.

They come from the run's slide list, or from a CSV of somebody's that is joined to it by the slides' names.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histo_ssl.folds.lists import read_text
from histo_ssl.folds.names import bare

SLIDE, PATIENT, SITE, LABEL = "slide", "patient", "site", "label"
KNOWN = (SLIDE, PATIENT, SITE, LABEL)  # columns of every table of cases; more where a task asks for them
N_NAMED = 3  # slides that a sentence names
UNITS = ("slide", "patient")
BARCODE = re.compile(
    r"(?P<patient>TCGA-(?P<site>\w{2})-\w{4})(?=-|$)"
)  # of TCGA; site: where the tissue is from


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Labelled slides, or patients, ordered by name, and what a reader of their scores must know."""

    table: pd.DataFrame  # KNOWN and what was asked for, all as text
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where labels are.

    Args:
        path: CSV with a row per slide, or per patient if it has no column of slides; None: the slide list.
        columns: our names of columns -> the CSV's (or the slide list's); those that it lacks count as empty.
        classes: labels that count; slides with others are left out. None: all.
        needed: our names of the columns without which a slide has no label.
    """

    path: str | None
    columns: Mapping[str, str]
    classes: Sequence[str] | None
    needed: Sequence[str]

    def cases(self, slides: pd.DataFrame) -> Cases:
        """The slides that have a label and tiles.

        Args:
            slides: the slide list: slide, patient, site, label (text, "" where unknown), n_tiles, and others.

        Raises:
            FileNotFoundError: there is no such CSV.
            ValueError: it is no CSV, has no column that is needed or no row, lists a slide twice, or no slide
                of the list; or no slide has a label.
        """
        has_tiles = slides["n_tiles"] > 0
        listed = slides[has_tiles].drop(columns="n_tiles").reset_index(drop=True)
        joined, notes = (self._own(listed), []) if self.path is None else self._joined(listed)
        is_labelled = (joined[list(self.needed)] != "").all(axis=1)
        notes += _counted(
            joined.loc[~is_labelled, SLIDE], "has no label and is left out", "have no label and are left out"
        )
        if self.classes is not None:
            is_other = is_labelled & ~joined[LABEL].isin(self.classes)
            notes += _counted(
                joined.loc[is_other, SLIDE],
                "is of another class and is left out",
                "are of other classes and are left out",
            )
            is_labelled &= ~is_other
        if not is_labelled.any():
            wanted = f" ({', '.join(self.classes)})" if self.classes is not None else ""
            raise ValueError(
                f"none of {len(listed)} slides has a label{wanted}: give the slide list a column "
                f"'{self.needed[0]}', or a CSV by task.labels.path"
            )
        notes += _counted(
            slides.loc[~has_tiles, SLIDE], "has no tile and is left out", "have no tile and are left out"
        )
        table = joined[is_labelled].sort_values(SLIDE).reset_index(drop=True)
        for name in (PATIENT, SITE):
            table[name] = table[name].where(
                table[name] != "", table[SLIDE].map(lambda s, n=name: _of_barcode(s, n))
            )
        is_unknown = table[PATIENT] == ""
        notes += _counted(
            table.loc[is_unknown, SLIDE],
            "has no patient: it stands for one",
            "have no patient: each stands for one",
        )
        table[PATIENT] = table[PATIENT].where(~is_unknown, table[SLIDE])
        return Cases(table=table, notes=notes)

    def _own(self, slides: pd.DataFrame) -> pd.DataFrame:
        """The slide list's own columns under our names."""
        wanted = {**dict.fromkeys([*KNOWN, *self.needed]), **self.columns}
        return pd.DataFrame({name: _column(slides, column or name, name) for name, column in wanted.items()})

    def _joined(self, slides: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The slides with what the CSV says of each."""
        found = self._read()
        key = SLIDE if SLIDE in found else PATIENT
        twice = found[key][found[key].duplicated()]
        if len(twice):
            raise ValueError(
                f"{self.path}: {key}s listed twice: {_named(twice)}; a row per {key} is expected"
            )
        names = slides[key].map(bare) if key == SLIDE else slides[key]
        at = pd.Index(found[key]).get_indexer(pd.Index(names))
        if (at < 0).all():
            raise ValueError(
                f"{self.path}: none of its {len(found)} {key}s (such as {found[key].iloc[0]}) is among the "
                f"{len(slides)} {key}s of the list (such as {names.iloc[0]})"
            )
        joined = slides[list(KNOWN)].assign(**dict.fromkeys(self.needed, ""))
        for name in found.columns.drop(key):
            theirs = found[name].to_numpy()[at]
            joined[name] = np.where((at >= 0) & (theirs != ""), theirs, joined.get(name, ""))
        unused = found[key][~found[key].isin(names)]
        source, absent = f"of {Path(str(self.path)).name}", "not in the slide list"
        return joined, _counted(unused, f"{source} is {absent}", f"{source} are {absent}", noun=key)

    def _read(self) -> pd.DataFrame:
        """The CSV's columns under our names."""
        path = Path(str(self.path))
        if not path.is_file():
            raise FileNotFoundError(f"task.labels.path={path}: there is no such CSV")
        table = read_text(path)
        known = {name: table[column] for name, column in self.columns.items() if column in table}
        missing = [self.columns.get(name, name) for name in self.needed if name not in known]
        if missing or not {SLIDE, PATIENT} & known.keys():
            wanted = ", ".join(missing) or f"{self.columns[SLIDE]} or {self.columns[PATIENT]}"
            raise ValueError(
                f"{path}: no column {wanted}; it has {', '.join(table.columns)}: task.labels.columns says "
                "which of them is what"
            )
        if table.empty:
            raise ValueError(f"{path}: no row below its header; a row per slide or patient is expected")
        if SLIDE in known:
            known[SLIDE] = known[SLIDE].map(bare)
        return pd.DataFrame(known)


def _of_barcode(slide: str, name: str) -> str:
    """The patient or the site of a slide of TCGA, elsewhere nothing.

    >>> _of_barcode("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF", "site"), _of_barcode("her2st_C2", "patient")
    ('3C', '')
    """
    match = BARCODE.match(slide)
    return match[name] if match else ""


def _column(slides: pd.DataFrame, column: str, name: str) -> "pd.Series[str]":
    """A column of the slide list by its own name or by ours; empty where there is none."""
    if column in slides or name in slides:
        return slides[column if column in slides else name]
    return pd.Series("", index=slides.index)


def _counted(names: Iterable[str], one: str, many: str, *, noun: str = SLIDE) -> list[str]:
    """How many slides (or patients) there are of a kind, and who, if there are any."""
    names = list(names)
    said = one if len(names) == 1 else many
    return [f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({_named(names)}) {said}"] if names else []


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more
