"""The list of slides: from a folder, a glob, or a CSV, checked before the first slide is opened."""

import contextlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd

from histo_ssl.data.base import N_NAMED, STATUS, named_splits, read_table, refuse_shared_patients
from histo_ssl.folders.redaction import redact, refuse_credentials
from histo_ssl.slides.fetching import filesystem, in_words
from histo_ssl.slides.stores import is_remote
from histo_ssl.slides.survey import FOUND

COLUMNS = ("slide_id", "path", "patient_id", "site", "label", "split")
NEEDED = ("slide_id", "path")
SUFFIXES = (".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".qptiff")  # what tiffslide opens
TCGA_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}(?=-|$)")  # the first 12 characters of a barcode
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # no text, or halves of it; no CSV gives it back
MAX_ID_BYTES = 200  # file systems take 255, some of which go into ".tmp-" and a suffix


def slide_list(*, root: str | None, manifest: str | None) -> pd.DataFrame:
    """One row per slide, all columns text.

    Args:
        root: a folder with slides (at any depth), a glob, or a manifest; local, or an address for fsspec.
        manifest: a CSV with the columns slide_id and path, if known patient_id, site, label, split; others
            are kept. Its relative paths start at its own folder. Give either this or `root`.

    Returns:
        slide_id, path, patient_id, site, label, split, then the manifest's other columns. Without a manifest
        slide_id is the file's name without its suffix. A missing patient_id is "", of a TCGA barcode its
        first 12 characters; other missing values are "".

    Raises:
        FileNotFoundError: there is no such manifest, or no slide in the folder.
        ValueError: neither or both are given; a column is missing, or one of status.csv's own; an id is empty
            or no file name, or is there twice; a local file is missing; a patient is in two splits.
    """
    if (root is None) == (manifest is None):
        raise ValueError(
            f"data.root={root}, data.manifest={manifest}: give one of them, a folder (or glob) or a CSV"
        )
    source = manifest or root or ""
    if not source:
        raise ValueError("data.root is empty; give a folder, a glob, or a CSV")
    refuse_credentials(source, where="data.manifest" if manifest else "data.root")
    slides = _from_csv(source) if manifest or source.endswith(".csv") else _from_folder(source)
    for path in slides["path"]:
        refuse_credentials(str(path), where=redact(source))
    slides = _completed(slides)
    slides["split"] = named_splits(slides["split"], source=source)
    _check(slides, source)
    return slides


def stated_mpp(slides: pd.DataFrame, override: float | str | None) -> tuple[list[float | None], float | None]:
    """What a person says of the slides' um/px, by `data.mpp_override`.

    Args:
        slides: with a column slide_id.
        override: um/px of slides whose files say none, or a CSV with the columns slide_id and mpp.

    Returns:
        For each slide the um/px that overrules its file, None where the file is believed; and the um/px of
        slides whose files say none. `([None, 0.25], None)` for two slides and a CSV that lists the second.

    Raises:
        FileNotFoundError: there is no such CSV.
        ValueError: a value is not above 0; the CSV lacks a column, or lists a slide twice or one not there.
    """
    believed: list[float | None] = [None] * len(slides)
    if override is None:
        return believed, None
    if not (isinstance(override, str) and override.endswith(".csv")):
        return believed, _um_per_px(str(override), "data.mpp_override, a number or a CSV")
    table = _read_csv(override, needed=("slide_id", "mpp"))
    ids = table["slide_id"]
    _refuse(ids[ids.duplicated()], f"{override}: slides listed twice")
    _refuse(ids[~ids.isin(slides["slide_id"])], f"{override}: slide_id values that are not in the slide list")
    known = {
        slide_id: _um_per_px(mpp, f"{override}: {slide_id}")
        for slide_id, mpp in zip(ids, table["mpp"], strict=True)
    }
    return [known.get(slide_id) for slide_id in slides["slide_id"]], None


def slide_listing(slides: pd.DataFrame, *, mpps: Sequence[float | None]) -> dict[str, dict[str, Any]]:
    """What is known of each slide of a list, by its id: all but its place, and its file's size.

    Args:
        slides: of `slide_list`.
        mpps: of `stated_mpp`, what a CSV says of each slide.

    Returns:
        Such as `{"a": {"bytes": 1234, "label": "IDC"}}`; no size of a file at an address, which would cost a
        request for each slide whenever a command starts.
    """
    rows = [{str(name): value for name, value in row.items() if value} for row in slides.to_dict("records")]
    found = {}
    for row, mpp in zip(rows, mpps, strict=True):
        slide_id, path = str(row.pop("slide_id")), str(row.pop("path"))
        size = {} if is_remote(path) else {"bytes": Path(path).stat().st_size}
        found[slide_id] = {**size, **row, **({"mpp": mpp} if mpp else {})}
    return found


def _from_folder(root: str) -> pd.DataFrame:
    files, start = filesystem(root)
    with in_words(root) if is_remote(root) else contextlib.nullcontext():
        is_glob = any(character in root for character in "*?[") and not files.exists(start)
        if is_remote(root) and not is_glob:
            files.ls(start)  # fails where the store does; a search would come back empty
        found = files.glob(start) if is_glob else files.find(start)
    slides = [path for path in map(str, found) if path.lower().endswith(SUFFIXES)]
    if not slides:
        raise FileNotFoundError(
            f"{root}: no slide there; files ending in {', '.join(SUFFIXES)} were looked for"
            + ("" if is_glob else ", in its folders too")
        )
    paths = [files.unstrip_protocol(path) if is_remote(root) else path for path in sorted(slides)]
    names = [unquote(path) if path.startswith(("http://", "https://")) else path for path in paths]
    return pd.DataFrame({"slide_id": [Path(name).stem for name in names], "path": paths})


def _from_csv(manifest: str) -> pd.DataFrame:
    slides = _read_csv(manifest, needed=NEEDED)
    if slides.empty:
        raise ValueError(f"{manifest}: lists no slide")
    folder = manifest.rpartition("/")[0]
    slides["path"] = [_resolved(path, folder) for path in slides["path"]]
    return slides


def _read_csv(path: str, *, needed: Sequence[str]) -> pd.DataFrame:
    """A CSV with the columns that are needed."""
    table = read_table(path, known=(*COLUMNS, *needed))
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(map(str, table.columns))}, "
            f"expected {', '.join(needed)}"
            + (f" and optionally {', '.join(COLUMNS[2:])}" if needed == NEEDED else "")
        )
    return table


def _resolved(path: str, folder: str) -> str:
    """A path of a manifest that lies in `folder`: as it is if absolute, else from there."""
    path = str(Path(path).expanduser()) if path.startswith("~") else path.removeprefix("file://")
    if is_remote(path) or Path(path).is_absolute() or not folder:
        return path
    return f"{folder}/{path}"


def _completed(slides: pd.DataFrame) -> pd.DataFrame:
    """All of `COLUMNS`, in their order, then the others."""
    absent = {name: "" for name in COLUMNS if name not in slides.columns}
    slides = slides.assign(**absent)
    own = [
        patient or _patient(slide_id)
        for patient, slide_id in zip(slides["patient_id"], slides["slide_id"], strict=True)
    ]
    slides["patient_id"] = own
    return slides[[*COLUMNS, *(name for name in slides.columns if name not in COLUMNS)]]


def _patient(slide_id: str) -> str:
    """The patient in a TCGA barcode, elsewhere nobody.

    >>> _patient("TCGA-CR-7395-01A-01-TS1"), _patient("her2st_C2")
    ('TCGA-CR-7395', '')
    """
    barcode = TCGA_PATIENT.match(slide_id)
    return barcode.group() if barcode else ""


def _check(slides: pd.DataFrame, source: str) -> None:
    ids, paths = slides["slide_id"], slides["path"]
    ours = [name for name in slides.columns if name in FOUND]
    if ours:
        raise ValueError(
            f"{source}: {STATUS} has columns {', '.join(ours)} of its own; rename them (um/px that a person "
            "knows are stated with data.mpp_override)"
        )
    _refuse(paths[ids == ""], f"{source}: slides without a slide_id")
    _refuse(ids[ids.str.contains(r"[/\\]")], f"{source}: a slide_id names files, so it has no slash; found")
    _refuse(
        ids[ids.str.startswith(".")], f"{source}: a slide_id names files, so it starts with no dot; found"
    )
    for name in slides.columns:
        rows = slides["slide_id"][slides[name].str.contains(UNFIT)]
        _refuse(rows.map(ascii), f"{source}: control characters or broken text in column {name!a} of")
    too_long = ids.map(lambda slide_id: len(slide_id.encode())) > MAX_ID_BYTES
    _refuse(ids[too_long], f"{source}: a slide_id names files, so it has up to {MAX_ID_BYTES} bytes; found")
    _refuse((ids + " = " + paths)[ids.duplicated(keep=False)], f"{source}: slide_id is not unique; found")
    alike = ids.map(lambda slide_id: unicodedata.normalize("NFC", slide_id).casefold())
    _refuse(
        (ids + " = " + paths)[alike.duplicated(keep=False)],
        f"{source}: slide_id names files, so it differs in more than capitals and accents' encoding; found",
    )
    is_missing = [not is_remote(path) and not _is_file(path) for path in paths]
    _refuse((ids + " = " + paths)[is_missing], f"{source}: files that do not exist")
    refuse_shared_patients(slides["patient_id"], slides["split"], source=source)
    _refuse(
        (ids + " = " + paths)[paths.duplicated(keep=False)], f"{source}: one file is listed as several slides"
    )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # the name is too long, say
        return False


def _refuse(rows: "pd.Series[str]", complaint: str) -> None:
    """Raise the complaint with the rows that it is about, if there are any."""
    if rows.empty:
        return
    more = f" and {len(rows) - N_NAMED} more" if len(rows) > N_NAMED else ""
    raise ValueError(f"{complaint}: {', '.join(rows[:N_NAMED])}{more}")


def _um_per_px(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{where}: {text!r} is no um/px; a number above 0, such as 0.25, is expected")
    return value
