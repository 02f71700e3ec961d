"""Which image files there are: in folders per class, or by a CSV."""

import logging
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histo_ssl.data.base import BETWEEN_READERS, SPLITS, few_of, named_splits, read_table

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
COLUMNS = ("path", "label", "split", "group")
ALIAS = "patient_id"  # another name for the column `group`
MEAN, READERS = "mean", "readers"  # of the numbers that several rows give to one image: their mean, or all
log = logging.getLogger(__name__)


class WrongLayoutError(ValueError):
    """Files or names are not where the configuration says."""


@dataclass(frozen=True, kw_only=True)
class CsvLayout:
    """How a CSV of images is written (see `conf/data/kind/images.yaml` for what each value means)."""

    columns: Mapping[str, str]
    splits: Mapping[str, str] | None
    repeats: str | None

    def __post_init__(self) -> None:
        if set(self.columns) != set(COLUMNS):
            raise ValueError(
                f"data.columns={dict(self.columns)}: a name for each of {', '.join(COLUMNS)} is expected"
            )
        if self.repeats not in (None, MEAN, READERS):
            raise ValueError(f"data.repeats={self.repeats}: null, {MEAN} or {READERS} is expected")

    @property
    def path_fields(self) -> list[str]:
        """Columns that a path is made of: `["slide", "rid"]` of "{slide}_{rid}.tif"."""
        try:
            found = [name for _, name, _, _ in string.Formatter().parse(self.columns["path"])]
        except ValueError:  # a brace without its twin
            found = [""]
        fields = [name for name in found if name is not None]
        if "" in fields:
            raise ValueError(
                f"data.columns.path={self.columns['path']}: a column's name is expected, or a pattern with "
                "names in braces, such as {slide}_{rid}.tif"
            )
        return fields or [self.columns["path"]]

    def of(self, table: pd.DataFrame, *, source: str) -> pd.DataFrame:
        """A table's columns by our names, as text; "" for those that it may lack.

        Raises:
            WrongLayoutError: a column is missing that paths are made of, or that was named.
        """
        named = [theirs for ours, theirs in self.columns.items() if ours not in ("path", theirs)]
        missing = [name for name in (*self.path_fields, *named) if name not in table]
        if missing:
            raise WrongLayoutError(
                f"{source}: column {missing[0]!r} is missing; the columns are {', '.join(table.columns)}"
            )
        rows = pd.DataFrame({"path": self._paths(table)}, dtype=str)
        for ours in COLUMNS[1:]:
            theirs = self.columns[ours]
            is_other = ours == theirs == "group" and theirs not in table
            rows[ours] = table.get(ALIAS if is_other else theirs, "")
        return rows

    def _paths(self, table: pd.DataFrame) -> list[str]:
        if self.path_fields == [self.columns["path"]]:
            return table[self.columns["path"]].tolist()
        cells = table[self.path_fields].to_dict("records")
        return [self.columns["path"].format_map(row) if all(row.values()) else "" for row in cells]


def from_folder(root: Path) -> pd.DataFrame:
    """Images below `root`: `<class>/x.png`, `<split>/<class>/x.png`, or `x.png` without a label."""
    paths = images_below(root)
    _refuse_a_level_too_high(root, paths)
    _warn_of_sets_side_by_side(root, paths)
    rows = [_place(path.relative_to(root).parts[:-1]) for path in paths]
    return pd.DataFrame(
        {
            "path": [str(path.resolve()) for path in paths],
            "label": [label for label, _ in rows],
            "split": [split for _, split in rows],
            "group": "",
        }
    )


def images_below(root: Path) -> list[Path]:
    """Image files below a folder, without hidden ones.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={root}: no such folder")
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise FileNotFoundError(f"data.root={root}: no image in it; looked for {', '.join(SUFFIXES)}")
    broken = [ascii(path.name) for path in paths if not _is_text(path)]
    if broken:
        raise ValueError(
            f"data.root={root}: {len(broken)} files have names that are not UTF-8, {broken[0]} among them; "
            "rename them"
        )
    return paths


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # a surrogate stands for each byte that is none
        return False
    return True


def _refuse_a_level_too_high(root: Path, paths: list[Path]) -> None:
    """Stop where the only folder would be the only class, and has the classes in it.

    Raises:
        WrongLayoutError: names the folder to take.
    """
    places = [path.relative_to(root).parts[:-1] for path in paths]
    below = {place[:2] for place in places}
    name = places[0][0] if places[0] else ""
    is_alone = all(len(place) > 1 and place[0] == name for place in places)
    if is_alone and len(below) > 1 and name.lower() not in SPLITS:
        raise WrongLayoutError(
            f"data.root={root}: all images lie in {name}, which would be their only class, although it has "
            f"{len(below)} folders; say data.root={root / name}"
        )


def _warn_of_sets_side_by_side(root: Path, paths: list[Path]) -> None:
    """Say so where folders that were taken for classes have no image, but folders of the same names.

    Not refused: below a class there may be a folder per patient, who has tiles of several classes.
    """
    places = [path.relative_to(root).parts[:-1] for path in paths]
    inner = {place[1:] if place and place[0].lower() in SPLITS else place for place in places}
    if any(len(place) < 2 for place in inner):
        return
    outer_of: dict[str, set[str]] = {}
    for place in inner:
        outer_of.setdefault(place[1], set()).add(place[0])
    shared = sorted(name for name, outer in outer_of.items() if len(outer) > 1)
    if shared:
        outer = sorted({place[0] for place in inner})
        log.warning(
            "data.root=%s: %s were taken for classes, but have no image of their own, and folders of the "
            "same names, %s; if those are the classes, say data.root=<one of the sets>, or list the sets in "
            "data.parts",
            root,
            few_of(outer),
            few_of(shared),
        )


def _place(folders: tuple[str, ...]) -> tuple[str, str]:
    """Label and split that the folders above an image name.

    >>> _place(("train", "tumor")), _place(("TUM",)), _place(())
    (('tumor', 'train'), ('TUM', ''), ('', ''))
    """
    split = SPLITS.get(folders[0].lower(), "") if folders else ""
    rest = folders[1:] if split else folders
    if any(SPLITS.get(name.lower()) for name in rest):
        raise ValueError(f"{'/'.join(folders)}: a folder of a split stands above those of its classes")
    return (rest[0] if rest else ""), split


def from_csv(csv: Path, layout: CsvLayout, *, images: Path) -> pd.DataFrame:
    """Images that a CSV lists, their paths taken from the folder `images`."""
    rows = read_csv(csv, layout)
    rows["path"] = [str((images / path).resolve()) for path in rows["path"]]
    return rows


def read_csv(csv: Path, layout: CsvLayout) -> pd.DataFrame:
    """Rows of a CSV of images: its path as it stands there; label, split and group, "" if not given."""
    source = f"data.csv={csv}"
    if not csv.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    known = (*layout.path_fields, *(layout.columns[name] for name in COLUMNS[1:]), ALIAS)
    rows = layout.of(read_table(str(csv), known=known), source=source)
    if rows.empty or (rows["path"] == "").any():
        raise ValueError(f"{source}: {'lists no image' if rows.empty else 'has rows without a path'}")
    if layout.splits is not None:
        ours = {word.lower(): split for word, split in layout.splits.items()}
        rows["split"] = [ours.get(word.lower(), word) for word in rows["split"]]
    rows["split"] = named_splits(rows["split"], source=source)
    twice = rows["path"][rows["path"].duplicated()]
    if len(twice) and layout.repeats:
        return _joined(rows, source=source, keep_all=layout.repeats == READERS)
    if len(twice):
        raise ValueError(f"{source}: {len(twice)} images are listed twice, {twice.iloc[0]} among them")
    return rows


def _joined(rows: pd.DataFrame, *, source: str, keep_all: bool) -> pd.DataFrame:
    """One row per image, its label the mean of its rows' where it has several; the rest must agree.

    With `keep_all` all of them, in their order: 0.2;0.5.
    """
    per_image = rows.groupby("path", sort=False)
    differ = per_image[["split", "group"]].nunique().max(axis=1) > 1
    if differ.any():
        raise ValueError(f"{source}: rows of {differ.idxmax()} differ in split or group")
    single = per_image.first().reset_index()
    several = single["path"].map(per_image.size()) > 1
    numbers = pd.to_numeric(rows["label"], errors="coerce")
    means = single["path"].map(numbers.groupby(rows["path"]).agg(lambda values: values.mean(skipna=False)))
    if means[several].isna().any():
        path = single["path"][several & means.isna()].iloc[0]
        raise ValueError(f"{source}: the labels of {path} can't be averaged: they are not all numbers")
    if keep_all:
        return single.assign(label=per_image["label"].agg(BETWEEN_READERS.join).to_numpy())
    # 12 digits: the mean of 0.1 and 0.2 is to read 0.15
    single.loc[several, "label"] = [f"{mean:.12g}" for mean in means[several]]
    return single


def groups_in(paths: Iterable[str], *, pattern: str) -> list[str]:
    """First group of the pattern in each file's name, "" where it doesn't match.

    Raises:
        ValueError: it is no regular expression, has no group, or matches none of the names.
    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"data.group_pattern={pattern}: not a regular expression: {error}") from error
    if not found.groups:
        raise ValueError(
            f"data.group_pattern={pattern}: put the part that names slide or patient into parentheses"
        )
    names = [Path(path).name for path in paths]
    matches = [found.search(name) for name in names]
    if names and not any(matches):
        raise ValueError(
            f"data.group_pattern={pattern}: matches no image's name, {names[0]} for one; correct it, or say "
            "group_pattern=null if names tell neither slide nor patient"
        )
    return [(match.group(1) or "") if match else "" for match in matches]
