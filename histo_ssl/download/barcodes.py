"""Which slides are wanted: by a CSV of slides, or by the split files of CLAM (arXiv:2004.09666)."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

SLIDE_ID = "slide_id"
# Our column -> what lists of slides call it; the first that is there counts.
COLUMNS = {"patient_id": ("patient_id", "case_id"), "site": ("site",), "label": ("label", "oncotree_code")}
SPLIT_COLUMNS = ("train", "val", "test")
SPLIT_FILE = re.compile(r"splits_\d+\.csv")
BARCODE = re.compile(r"(?P<patient_id>TCGA-(?P<site>\w{2})-\w{4})-")  # site: where the tissue is from
SUFFIX = ".svs"
N_NAMED = 3  # slides that a sentence names


def wanted_slides(source: Path, *, classes: Sequence[str]) -> pd.DataFrame:
    """One row per slide: slide_id (without `.svs`), patient_id, site, label; text, "" where unknown.

    Args:
        source: a CSV with a column slide_id and, where known, patient_id or case_id, site, label or
            oncotree_code; or one of CLAM's split files, or a folder of them.
        classes: labels of the slides that are wanted; none: all slides.

    Raises:
        FileNotFoundError: there is no such file, or no split file in the folder.
        ValueError: it has other columns, lists a slide twice, or none of the classes.
    """
    slides = _from_splits(source) if source.is_dir() else _from_csv(source)
    ids = slides[SLIDE_ID]
    odd = ids[(ids == "") | ids.str.contains(r"[/\\\s]")]
    if len(odd):
        raise ValueError(f"{source}: {odd.iloc[0]!r} is no name of a slide; a barcode is expected")
    twice = ids[ids.duplicated()]
    if len(twice):
        raise ValueError(f"{source}: slides listed twice: {named(twice)}")
    if classes:
        slides = _of_classes(slides, classes, source=source)
    if slides.empty:
        raise ValueError(f"{source}: lists no slide")
    return _completed(slides).reset_index(drop=True)


def named(names: Sequence[str] | pd.Series) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(list(names)[:N_NAMED]) + more


def _from_csv(source: Path) -> pd.DataFrame:
    table = _read(source)
    if SLIDE_ID not in table and set(SPLIT_COLUMNS) <= set(table):
        return _of_splits([table])
    if SLIDE_ID not in table:
        raise ValueError(
            f"{source}: no column {SLIDE_ID} (nor {', '.join(SPLIT_COLUMNS)}, as split files have); found "
            f"{', '.join(map(str, table.columns))}"
        )
    found = {SLIDE_ID: table[SLIDE_ID].map(_bare)}
    for ours, theirs in COLUMNS.items():
        there = [name for name in theirs if name in table]
        found[ours] = table[there[0]] if there else pd.Series("", index=table.index)
    return pd.DataFrame(found)


def _from_splits(folder: Path) -> pd.DataFrame:
    files = sorted(path for path in folder.iterdir() if SPLIT_FILE.fullmatch(path.name))
    if not files:
        raise FileNotFoundError(f"{folder}: no splits_0.csv there; split files of CLAM are expected")
    tables = {file: _read(file) for file in files}
    for file, table in tables.items():
        if not set(SPLIT_COLUMNS) <= set(table):
            raise ValueError(f"{file}: the columns {', '.join(SPLIT_COLUMNS)} are expected")
    return _of_splits(list(tables.values()))


def _of_splits(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All slides that any split names, once, by name."""
    names = {_bare(name) for table in tables for column in SPLIT_COLUMNS for name in table[column] if name}
    return pd.DataFrame({SLIDE_ID: sorted(names), **dict.fromkeys(COLUMNS, "")}, dtype=str)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such list of slides") from error
    except ValueError as error:  # pandas' ParserError, EmptyDataError and UnicodeDecodeError are its kinds
        raise ValueError(f"{path}: no CSV ({error})") from error
    stripped: pd.DataFrame = table.apply(lambda column: column.str.strip())
    return stripped


def _of_classes(slides: pd.DataFrame, classes: Sequence[str], *, source: Path) -> pd.DataFrame:
    missing = sorted(set(classes) - set(slides["label"]))
    if missing:
        known = sorted(set(slides["label"]) - {""})
        there = f"its labels are {', '.join(known)}" if known else "it has no labels"
        raise ValueError(
            f"--classes {','.join(classes)}: no slide of {', '.join(missing)} in {source}; {there}"
        )
    return slides.loc[slides["label"].isin(classes)]


def _completed(slides: pd.DataFrame) -> pd.DataFrame:
    """Patients and sites from barcodes, where the list has none."""
    for name in BARCODE.groupindex:
        read = [_from_barcode(slide, name) for slide in slides[SLIDE_ID]]
        slides = slides.assign(**{name: slides[name].where(slides[name] != "", read)})
    return slides


def _from_barcode(slide: str, name: str) -> str:
    """What a barcode of TCGA says of a slide, elsewhere nothing.

    >>> _from_barcode("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF", "site"), _from_barcode("her2st_C2", "site")
    ('3C', '')
    """
    match = BARCODE.match(slide)
    return match[name] if match else ""


def _bare(name: str) -> str:
    """A slide's name without its suffix.

    >>> _bare("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF.svs"), _bare("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF")
    ('TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF', 'TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF')
    """
    return name.removesuffix(SUFFIX)
