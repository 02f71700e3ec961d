"""Figures that a task left beside its scores: `figures/figures.json` names and describes them.

A list of `{"file": "x.png", "title": "...", "alt": "...", "group": "..."}`, the files beside it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER, LIST = "figures", "figures.json"
WORDS = ("file", "title", "alt", "group")


@dataclass(frozen=True, kw_only=True)
class ListedFigure:
    """A figure's file and what is to be said of it."""

    path: Path
    title: str
    alt: str
    group: str


@dataclass(frozen=True, kw_only=True)
class ListedFigures:
    """The figures of a result, and a sentence about each entry that could not be taken."""

    figures: list[ListedFigure]
    warnings: list[str]


def read_figures(folder: Path) -> ListedFigures:
    """The figures of a result's folder; none where it has no list of them."""
    place = folder / FOLDER
    if not (place / LIST).is_file():
        return ListedFigures(figures=[], warnings=[])
    try:
        entries = json.loads((place / LIST).read_bytes())
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        said = f"{FOLDER}/{LIST} is no JSON list of figures; its figures are left out"
        return ListedFigures(figures=[], warnings=[said])
    figures, warnings = [], []
    for entry in entries:
        problem = _problem(place, entry)
        if problem:
            warnings.append(f"a figure in {FOLDER}/{LIST} was left out: {problem}")
        else:
            named = {word: entry[word] for word in WORDS if word != "file"}
            figures.append(ListedFigure(path=place / entry["file"], **named))
    return ListedFigures(figures=figures, warnings=warnings)


def _problem(place: Path, entry: Any) -> str:
    """Why an entry can't be taken; empty where it can."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(word), str) for word in WORDS):
        return f"the texts {', '.join(WORDS)} are expected of each, got {json.dumps(entry)[:80]}"
    name = entry["file"]
    if not is_plain_name(name):
        return f"{name!r} is not the plain name of a PNG file in {FOLDER}/"
    path = place / name
    if path.is_symlink() or not path.is_file():
        return f"{name!r} is not there"
    return ""


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a PNG file right there: no folder, nothing hidden, on any system.

    >>> [is_plain_name(name) for name in ("a.png", "../a.png", "b/a.png", "c:a.png", ".png", "a.svg")]
    [True, False, False, False, False, False]
    """
    is_here = not any(letter in name for letter in "/\\:\0") and not name.startswith(".")
    return is_here and name.lower().endswith(".png") and name.isprintable()
