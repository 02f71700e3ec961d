"""All images of a data set in its own layout: parts with a split each, classes chosen and merged."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from histo_ssl.data.base import named_splits
from histo_ssl.data.image_list import (
    CsvLayout,
    WrongLayoutError,
    from_csv,
    from_folder,
    images_below,
    read_csv,
)

# What a part may say: the folder or CSV below the root; where the CSV's images are; whose split it is.
PART_KEYS = ("folder", "csv", "images", "split")


def images_of(root: Path, parts: Sequence[Mapping[str, str]], layout: CsvLayout) -> pd.DataFrame:
    """Images of all parts: absolute path, label, split and group.

    Raises:
        ValueError: a part is not one folder or one CSV, or an image belongs to two of them.
    """
    tables = []
    for part in parts:
        check_part(part)
        if "folder" in part:
            rows = from_folder(root / part["folder"])
        else:
            rows = from_csv(root / part["csv"], layout, images=root / part.get("images", ""))
        if "split" in part:
            (split,) = named_splits([part["split"]], source="data.parts")
            rows["split"] = split
        tables.append(rows)
    images = pd.concat(tables, ignore_index=True)
    twice = images["path"][images["path"].duplicated()]
    if len(twice):
        raise ValueError(f"data.parts: {len(twice)} images are in two parts, {twice.iloc[0]} among them")
    return images


def listing_of(
    root: Path, parts: Sequence[Mapping[str, str]], layout: CsvLayout
) -> dict[str, dict[str, str]]:
    """The same by path below the root, without reading folders for more than names: what is known of each."""
    listed: dict[str, dict[str, str]] = {}
    for part in parts:
        check_part(part)
        if "folder" in part:
            paths = images_below(root / part["folder"])
            listed |= {path.relative_to(root).as_posix(): {} for path in paths}
        else:
            listed |= {
                (Path(part.get("images", "")) / path).as_posix(): row
                for path, row in rows_by_path(root / part["csv"], layout).items()
            }
    return listed


def rows_by_path(csv: Path, layout: CsvLayout) -> dict[str, dict[str, str]]:
    """What a CSV says of each image, by the image's path as it stands there."""
    rows = read_csv(csv, layout).to_dict("records")
    return {str(row.pop("path")): {str(name): str(value) for name, value in row.items()} for row in rows}


def check_part(part: Mapping[str, str]) -> None:
    """Stop at a part that is not one folder or one CSV.

    Raises:
        ValueError: says what a part may be.
    """
    keys = set(part) if isinstance(part, Mapping) else {""}
    if not keys <= set(PART_KEYS) or len(keys & {"folder", "csv"}) != 1 or keys >= {"images", "folder"}:
        raise ValueError(
            f"data.parts has {part}: {{folder: A}} or {{csv: b.csv, images: B}} is expected, "
            "with split: train, valid or test where all of it is of one"
        )


def of_classes(
    images: pd.DataFrame, *, classes: Collection[str] | None, merge: Mapping[str, str] | None
) -> pd.DataFrame:
    """Images of the classes asked for, those that count as others renamed.

    Raises:
        WrongLayoutError: a class that is named has no image, which points to a wrong folder or a wrong name.
    """
    found = set(images["label"]) - {""}
    for key, named in (("classes", classes or ()), ("merge", merge or ())):
        absent = [name for name in named if name not in found]
        if absent:
            raise WrongLayoutError(
                f"data.{key} names {', '.join(absent)}: no image is of this class; "
                f"found: {', '.join(sorted(found)) or 'no class at all'}"
            )
    kept = images if classes is None else images[images["label"].isin(list(classes))]
    renamed = kept.assign(label=kept["label"].replace(dict(merge))) if merge else kept
    return renamed.reset_index(drop=True)
