"""What the rest of the house knows of data: sets that can be cut into tiles, sources that read them."""

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.data.rows import RowList
from histo_ssl.executors.base import Executor
from histo_ssl.slides.fetching import filesystem, in_words
from histo_ssl.slides.grid import Tiling
from histo_ssl.slides.stores import is_remote

SOURCE = "source.json"  # in a tile folder: what kind of tiles it lists, and their scale
STATUS = "status.csv"  # in a tile folder: one row per slide, or per image that could not be read
FEW = 3  # names that stand for more of their kind
N_NAMED = 5  # rows or patients that an error names; the others are counted
BETWEEN_READERS = ";"  # between the numbers of a label that several readers gave
HELD_OUT = ("valid", "test")  # splits that pretraining never sees
SPLITS = {
    **{"": "", "train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("valid", "val", "validation"), "valid"),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of tiles that is embedded into one file: all tiles of a slide, or a stretch of images."""

    name: str
    start: int
    stop: int


@runtime_checkable
class TileSource(Protocol):
    """Tiles by number. Picklable and without open handles, so that any worker may read any tile."""

    tile_px: int
    mpp: float | None  # um per tile pixel; None where nobody knows

    def __len__(self) -> int:
        """Number of tiles."""

    def read(self, i: int) -> NDArray[np.uint8]:
        """Tile i as (tile_px, tile_px, 3) RGB."""

    def coords(self) -> NDArray[np.int64]:
        """(N, 2) left and top edges of all tiles in level-0 px; zeros for images."""

    def training_rows(self) -> RowList:
        """Numbers of the tiles that pretraining may see: all but those of a validation or test split."""

    def parts(self) -> list[Part]:
        """Runs of tiles that together are all tiles, in order."""

    def table(self, part: Part | None = None) -> pd.DataFrame:
        """One row per tile, in order: slide, x, y (level-0 px), patient, site, split, label ("" for none).

        Of all tiles, or of a part's, with their numbers as the table's index.

        And `version`: what is known of the content of its file, another one when that changes.
        """

    def slides(self) -> pd.DataFrame:
        """One row per slide of the list: slide, patient, site, split, label ("" for none), n_tiles.

        And the list's other columns, as text. No row where tiles are not cut from slides.
        """


@runtime_checkable
class Distant(Protocol):
    """A source whose tiles may lie behind a network."""

    def fetch(self, rows: Sequence[int]) -> None:
        """Fetch together what some tiles, which are read next, are stored in."""


@runtime_checkable
class Costly(Protocol):
    """A source of which something could make reading cheaper."""

    def faster(self, rows: RowList) -> str:
        """What would make reading some tiles cheaper, and what it would take; "" where nothing is known."""


class DataSet(Protocol):
    """Slides or images on a disk, or yet to be drawn."""

    def listing(self) -> dict[str, Any]:
        """What is there, as far as tiles depend on it, quickly: a noun -> names -> what is known of each.

        Part of the fingerprint of everything made of these data; so neither times (a copy is the same data)
        nor the place of the files. Empty where the configuration says it all.
        """

    def tile(
        self,
        tiling: Tiling,
        *,
        folder: Path,
        home: Path,
        n_processes: int,
        slide_timeout_s: float,
        executor: Executor | None = None,
    ) -> dict[str, int]:
        """Write the list of all tiles into `folder`; what was counted comes back.

        Args:
            tiling: how slides are cut.
            folder: receives the index, `source.json` and `status.csv`.
            home: where a data set that makes its own slides keeps them.
            n_processes: how many slides are surveyed at a time, each in a process of its own; 0: in this one.
            slide_timeout_s: after which a slide is given up, unless it is surveyed in this process.
            executor: who surveys slides; None: those processes.
        """


def named_splits(values: Iterable[str], *, source: str) -> list[str]:
    """Splits by the names of the house: `["Test", "val", ""]` is `["test", "valid", ""]`.

    Raises:
        ValueError: a value is no split; letting it pass could show test tiles to pretraining.
    """
    words = [value.strip().lower() for value in values]
    unknown = sorted(set(words) - SPLITS.keys())
    if unknown:
        raise ValueError(f"{source}: split {', '.join(unknown)}: train, valid, test or nothing is expected")
    return [SPLITS[word] for word in words]


def few_of(names: Sequence[str]) -> str:
    """The first names, for a message.

    >>> few_of(["a", "b", "c", "d"]), few_of(["a", "b"])
    ('a, b, c, ...', 'a, b')
    """
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")


def refuse_shared_patients(patients: "pd.Series[str]", splits: "pd.Series[str]", *, source: str) -> None:
    """Stop where pretraining, or a classifier, would see a patient whose other tiles are held out.

    Args:
        patients: of each row, "" where unknown.
        splits: of each row, by the names of the house.
        source: for the message.

    Raises:
        ValueError: names the patients and their splits.
    """
    named = splits.where(splits != "", "no split")[patients != ""]
    found = named.groupby(patients[patients != ""]).agg(lambda split: "/".join(sorted(set(split))))
    shared = found[found.str.contains("/") & found.str.contains("|".join(HELD_OUT))]
    if len(shared):
        few = ", ".join(f"{patient} in {split}" for patient, split in shared[:N_NAMED].items())
        more = f" and {len(shared) - N_NAMED} more" if len(shared) > N_NAMED else ""
        raise ValueError(f"{source}: all of a patient belongs to one split; found: {few}{more}")


def read_table(path: str, *, known: Collection[str]) -> pd.DataFrame:
    """A CSV that a person wrote, as text without spaces around names and cells.

    Args:
        path: local, or an address for fsspec.
        known: names of columns that mean something.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV, or in a store of which the library is not installed; or a column's name is
            one that is known but for capitals or other signs, and what is in it would not count.
    """
    source = _from_store(path) if is_remote(path) else path
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such CSV") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError, UnicodeError) as error:
        raise ValueError(f"{path}: not a CSV: {' '.join(str(error).split())}") from error
    table = table.rename(columns=lambda name: str(name).strip())
    for name in table.columns:
        table[name] = table[name].str.strip()
    meant = {_bare(name): name for name in known}
    for name in table.columns:
        right = meant.get(_bare(name), name)
        if name != right:
            raise ValueError(f"{path}: the column {name!r} would not count; did you mean {right}? rename it")
    return table


def _from_store(url: str) -> io.BytesIO:
    files, place = filesystem(url)
    with in_words(url):
        return io.BytesIO(files.cat_file(place))


def _bare(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def check_failures(failed: list[str], *, n_items: int, max_failed: float, noun: str) -> None:
    """Refuse to go on when too much of a data set can't be used.

    Args:
        failed: one sentence per slide or image that failed.
        n_items: how many there are in all.
        max_failed: largest share that may fail, 0-1.
        noun: what they are, for the message.

    Raises:
        ValueError: more than that share failed; names the first of them.
    """
    if len(failed) > max_failed * n_items:
        raise ValueError(
            f"{len(failed)} of {n_items} {noun} failed, more than data.max_failed={max_failed:g} allows; "
            f"the first: {failed[0]}"
        )
