"""From a list of slides to what fetches them from the GDC, and to the slide list that a run takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histo_ssl.download import gdc
from histo_ssl.download.barcodes import SLIDE_ID, SUFFIX, named, wanted_slides
from histo_ssl.download.sets import NotObtainedError, make_folder
from histo_ssl.folders.artifacts import write_text
from histo_ssl.folders.cells import csv_text

MANIFEST, SLIDES = "gdc_manifest.txt", "slides.csv"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and of what nothing was to be had."""

    folder: Path  # of MANIFEST and SLIDES, and where the slides belong
    n_slides: int
    n_bytes: int  # of all slides
    absent: list[str]  # slides that the GDC does not list


def write_manifest(source: Path, folder: Path, *, classes: Sequence[str], address: str) -> Written:
    """Write a manifest for `gdc-client` and the list of its slides, as `data.manifest` takes it.

    `gdc-client` puts each file into a folder that is named by the file's id; the list says so already.

    Args:
        source: the slides, as of `wanted_slides`.
        folder: receives both files.
        classes: labels of the slides that are wanted; none: all.
        address: of the GDC's `files`.

    Raises:
        FileNotFoundError: there is no such list of slides.
        NotObtainedError: the GDC was not reached or lists none of the slides, or other files of these names
            are there.
        ValueError: the list can't be used.
    """
    slides = wanted_slides(source, classes=classes)
    files = gdc.listed([f"{slide}{SUFFIX}" for slide in slides[SLIDE_ID]], address=address)
    if not files:
        raise NotObtainedError(
            f"{source}: the GDC lists none of its {len(slides)} slides ({named(slides[SLIDE_ID])}); names of "
            "files with their long suffix, such as TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-..., are expected"
        )
    make_folder(folder)
    _write({folder / MANIFEST: gdc.manifest_text(files), folder / SLIDES: csv_text(_table(slides, files))})
    there = {file.name for file in files}
    return Written(
        folder=folder,
        n_slides=len(files),
        n_bytes=sum(file.n_bytes for file in files),
        absent=[slide for slide in slides[SLIDE_ID] if f"{slide}{SUFFIX}" not in there],
    )


def _table(slides: pd.DataFrame, files: Sequence[gdc.Listed]) -> pd.DataFrame:
    """The slide list: slide_id, path from the list's own folder, patient_id, site, label."""
    path = {file.name.removesuffix(SUFFIX): f"{file.id}/{file.name}" for file in files}
    kept = slides[slides[SLIDE_ID].isin(path)].reset_index(drop=True)
    kept.insert(1, "path", kept[SLIDE_ID].map(path))
    return kept


def _write(texts: dict[Path, str]) -> None:
    """Write files, unless others of their names are there."""
    for path, text in texts.items():
        if path.exists() and path.read_text() != text:
            raise NotObtainedError(f"{path}: another one is there; move it, or say --to another folder")
    for path, text in texts.items():
        write_text(path, text)
