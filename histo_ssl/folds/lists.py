"""Names of slides, listed by somebody for the parts of folds, and the slides that they mean."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histo_ssl.folds.base import Fold
from histo_ssl.folds.names import bare, some

EMPTY = ("", "nan")  # cells of a list that is shorter than its neighbours


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Who is in the parts of a fold, by the names of slides."""

    source: str  # for messages
    name: str
    train: Sequence[str]
    valid: Sequence[str]
    test: Sequence[str]

    @property
    def everyone(self) -> list[str]:
        """All names, of the three parts in turn."""
        return [*self.train, *self.valid, *self.test]


def read_text(path: Path) -> pd.DataFrame:
    """A CSV as text, without spaces around names and cells.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no CSV.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such CSV") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError, UnicodeError) as error:
        raise ValueError(f"{path}: not a CSV: {' '.join(str(error).split())}") from error
    stripped = {str(name).strip(): cells.str.strip() for name, cells in table.items()}
    return pd.DataFrame(stripped)


def names_of(cells: Iterable[str]) -> list[str]:
    """Bare names of the slides in a column; empty cells are none."""
    return [bare(cell.strip()) for cell in cells if cell.strip().lower() not in EMPTY]


def placed(
    lists: Sequence[Lists], cases: pd.DataFrame, *, allow_missing: bool
) -> tuple[list[Fold], list[str]]:
    """Folds of the slides that are listed, and whom the lists and the slides have without the other.

    Args:
        lists: of bare names.
        cases: one row per slide: slide, with a suffix or without.
        allow_missing: leave out listed slides that are not there, in place of stopping.

    Raises:
        ValueError: a list names a slide twice, or one that is not there; or two slides have the same name.
    """
    slides = cases["slide"].map(bare)
    if slides.duplicated().any():
        raise ValueError(
            f"several slides are called {some(slides[slides.duplicated()].tolist())} but for their suffix: a "
            "list of names can't tell them apart"
        )
    for one in lists:
        twice = sorted(name for name, count in Counter(one.everyone).items() if count > 1)
        if twice:
            raise ValueError(f"{one.source}: listed twice: {some(twice)}; a slide has one place in a fold")
    folds = [
        Fold(
            name=one.name,
            **{part: slides.isin(getattr(one, part)).to_numpy() for part in ("train", "valid", "test")},
        )
        for one in lists
    ]
    listed = {name for one in lists for name in one.everyone}
    return folds, _absent(sorted(listed - set(slides)), lists, allow_missing=allow_missing) + _unlisted(
        [slide for slide, name in zip(cases["slide"], slides, strict=True) if name not in listed]
    )


def _absent(names: list[str], lists: Sequence[Lists], *, allow_missing: bool) -> list[str]:
    if not names:
        return []
    said = f"{len(names)} listed slides ({some(names)}) have no tiles or no label here"
    if not allow_missing:
        raise ValueError(
            f"{lists[0].source}: {said}; add them, or say task.folds.allow_missing=true to go without them"
        )
    return [f"{said} and are left out"]


def _unlisted(slides: list[str]) -> list[str]:
    noun = "slide" if len(slides) == 1 else "slides"
    return [f"no fold has {len(slides)} labelled {noun} ({some(slides)})"] if slides else []
