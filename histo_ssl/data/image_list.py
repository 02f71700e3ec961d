"""Which image files there are: in a folder per class, or by a CSV."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from histo_ssl.data.base import SPLITS, named_splits, read_table

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
COLUMNS = ("path", "label", "split", "group")


def from_folder(root: Path) -> pd.DataFrame:
    """Images below `root`: `<class>/x.png`, `<split>/<class>/x.png`, or `x.png` without a label."""
    paths = images_below(root)
    _refuse_a_level_too_high(root, paths)
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
        ValueError: names the folder to take.
    """
    above = {path.relative_to(root).parts[:2] for path in paths if len(path.relative_to(root).parts) > 2}
    first = {parts[0] for parts in above}
    is_alone = len(first) == 1 and not any(len(path.relative_to(root).parts) <= 2 for path in paths)
    if is_alone and len(above) > 1 and not SPLITS.get(min(first).lower()):
        raise ValueError(
            f"data.root={root}: all images lie in {min(first)}, which would be their only class, although "
            f"it has {len(above)} folders; say data.root={root / min(first)}"
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


def from_csv(csv: Path) -> pd.DataFrame:
    """Images that a CSV lists, their paths taken from its own folder."""
    rows = read_csv(csv)
    rows["path"] = [str((csv.parent / path).resolve()) for path in rows["path"]]
    return rows


def read_csv(csv: Path) -> pd.DataFrame:
    """Rows of a CSV of images: its `path` as it stands there; label, split and group, "" if not given."""
    if not csv.is_file():
        raise FileNotFoundError(f"data.csv={csv}: no such file")
    rows = read_table(str(csv), known=(*COLUMNS, "patient_id"))
    if "path" not in rows:
        raise ValueError(
            f"data.csv={csv}: column 'path' is missing; the columns are {', '.join(rows.columns)}"
        )
    if rows.empty or (rows["path"] == "").any():
        raise ValueError(f"data.csv={csv}: {'lists no image' if rows.empty else 'has rows without a path'}")
    twice = rows["path"][rows["path"].duplicated()]
    if len(twice):
        raise ValueError(f"data.csv={csv}: {len(twice)} images are listed twice, {twice.iloc[0]} among them")
    if "group" not in rows:
        rows = rows.rename(columns={"patient_id": "group"})
    rows = rows.reindex(columns=list(COLUMNS), fill_value="")
    rows["split"] = named_splits(rows["split"], source=f"data.csv={csv}")
    return rows


def groups_in(paths: Iterable[str], *, pattern: str) -> list[str]:
    """First group of the pattern in each file's name, "" where it doesn't match.

    Raises:
        ValueError: it is no regular expression, or has no group.
    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"data.group_pattern={pattern}: not a regular expression: {error}") from error
    if not found.groups:
        raise ValueError(
            f"data.group_pattern={pattern}: put the part that names slide or patient into parentheses"
        )
    matches = [found.search(Path(path).name) for path in paths]
    return [(match.group(1) or "") if match else "" for match in matches]
