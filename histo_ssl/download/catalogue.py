"""Which public sets there are, and where: the content of `catalogue.json`, checked."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histo_ssl.download.archives import safe_path

CATALOGUE = Path(__file__).with_name("catalogue.json")
SCHEMES = ("https://", "http://")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to be fetched and unpacked."""

    name: str  # that it gets here
    url: str
    n_bytes: int | None  # None: not known in advance
    md5: str | None  # None: only the archive's own check sums are held against it
    makes: str  # file or folder that is there when it is unpacked
    most_bytes: int  # it may unpack to; more is taken for an attack
    most_files: int

    def __post_init__(self) -> None:
        for path in (self.name, self.makes):
            if len(safe_path(path).parts) != 1:
                raise ValueError(f"{path}: the plain name of a file or folder is expected")
        if not self.url.startswith(SCHEMES):
            raise ValueError(f"{self.url}: an address that begins with {' or '.join(SCHEMES)} is expected")


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Tiles that come as HDF5 arrays `x` (N, S, S, 3) and class numbers `y` (N, ...)."""

    classes: Sequence[str]
    splits: Mapping[str, Sequence[str]]  # split -> file of x, file of y


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A set of labelled tiles that its owners have published."""

    name: str
    about: str  # what it is, its size and licence
    source: str  # its page
    files: Sequence[RemoteFile]
    sums: str = ""  # where the checksums are from
    root: str = ""  # folder, below the one that it is fetched to, that its task expects
    arrays: Arrays | None = None
    by_hand: str = ""  # what a person has to do where no program may
    needs: Sequence[str] = field(default_factory=tuple)  # what is then there


def find(name: str, catalogue: Path) -> PublicSet:
    """The set of that name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    known = sets_of(catalogue)
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"{name}: no such set; {guess}there are {', '.join(known)}")


def sets_of(catalogue: Path) -> dict[str, PublicSet]:
    """All sets of a catalogue by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no catalogue.
    """
    try:
        content = json.loads(catalogue.read_text())
        return {name: _made(name, values) for name, values in content.items()}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{catalogue}: there is no such catalogue") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{catalogue}: no catalogue of data sets: {error}") from error


def _made(name: str, values: Mapping[str, Any]) -> PublicSet:
    files = [RemoteFile(**file) for file in values["files"]]
    arrays = Arrays(**values["arrays"]) if "arrays" in values else None
    return PublicSet(**{**values, "name": name, "files": files, "arrays": arrays})
