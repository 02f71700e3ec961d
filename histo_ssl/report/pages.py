"""The pages of runs and tile sets: each is drawn anew when something that it tells of has changed."""

import base64
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from histo_ssl.folders.artifacts import file_fingerprint, fingerprint, write_bytes, write_text
from histo_ssl.report import scores
from histo_ssl.report.maps import THUMBNAILS, has_map, sheet, sheet_bytes, sheet_name
from histo_ssl.report.photographs import Allowance, allowance
from histo_ssl.report.run_page import run_pictures
from histo_ssl.report.runs import Result
from histo_ssl.report.sections import RunSection
from histo_ssl.report.tile_sets import TileLink, is_trained_on, links_of, tile_section

RUNS, TILES, SHEETS = "runs", "tiles", "sheets"  # folders of the report
DRAWN_FROM = ("*.json", "*.jsonl", "*.csv", "*.png", "attention/*.png", "figures/*", "overlays/*.png")
UNUSED = ("done.json", "card.json")
STAMP_BYTES = 400  # from the beginning of a page, where its stamp stands
Made = Mapping[str, Any]  # what a template wants


@dataclass(frozen=True, kw_only=True)
class Pages:
    """All pages below the overview, of one report."""

    report: Path
    templates: jinja2.Environment
    runs: Sequence[RunSection]
    links: Sequence[TileLink]
    floors: Mapping[str, str]

    def write(self) -> None:
        """Draw what has changed, and remove what tells of folders that are gone."""
        kept = {*self._write_sheets(), *self._write_runs(), *self._write_tiles()}
        for folder in (RUNS, TILES, SHEETS):
            for path in (self.report / folder).glob("*.*"):
                if path not in kept and not path.name.startswith("."):
                    path.unlink()

    @functools.cached_property
    def _allowance(self) -> Allowance:
        return allowance(len(self.runs) + len(self.links))

    @functools.cached_property
    def _maps(self) -> list[Result]:
        """Results that are maps, one for each sheet of tiles."""
        maps = [result for section in self.runs for result in section.run.results if has_map(result)]
        return list({sheet_name(result, n_bytes=0): result for result in maps}.values())

    @functools.cached_property
    def _sheet_bytes(self) -> int:
        return sheet_bytes(len(self._maps))

    def _write_sheets(self) -> Iterator[Path]:
        for result in self._maps:
            path = self.report / SHEETS / sheet_name(result, n_bytes=self._sheet_bytes)
            if not path.exists():
                write_bytes(path, sheet(result.folder / THUMBNAILS, n_bytes=self._sheet_bytes).content)
            yield path

    def _write_runs(self) -> Iterator[Path]:
        for section in self.runs:
            links = links_of(section.run, list(self.links))
            folders = [section.run.folder, *(result.folder for result in section.run.results)]
            told = [self._sheet_bytes, list(self.floors), _beside(section), _told(links)]
            make = functools.partial(self._run, section, links)
            yield self._written(
                f"{RUNS}/{section.page}", "run.html.j2", folders=folders, told=told, make=make
            )

    def _run(self, section: RunSection, links: Sequence[TileLink]) -> Made:
        return {
            "section": section,
            "pictures": run_pictures(section, self._allowance, sheet_bytes=self._sheet_bytes),
            "links": links,
            "trained_on": [link for link in links if is_trained_on(section.run, link)],
            "headline": scores.headline([section.run]),
        }

    def _write_tiles(self) -> Iterator[Path]:
        for link in self.links:
            users = [section for section in self.runs if link in links_of(section.run, list(self.links))]
            folders = [self.report.parent / link.tile_set.name]
            told = [dict(link.tile_set.counts), [[user.page, user.run.title] for user in users]]
            make = functools.partial(self._tiles, link, users)
            yield self._written(
                f"{TILES}/{link.page}", "tiles.html.j2", folders=folders, told=told, make=make
            )

    def _tiles(self, link: TileLink, users: Sequence[RunSection]) -> Made:
        return {"section": tile_section(link.tile_set, self._allowance), "users": users}

    def _written(
        self, name: str, template: str, *, folders: Sequence[Path], told: Any, make: Callable[[], Made]
    ) -> Path:
        """The page, drawn unless it stands there already, made of the same."""
        path = self.report / name
        stamp = fingerprint([_program(), self._allowance.n_bytes, told], *_inputs(folders))
        if not _is_stamped(path, stamp):
            content = {**make(), "floors": self.floors, "stamp": stamp}
            write_text(path, self.templates.get_template(template).render(content))
        return path


def script_hash(text: str) -> str:
    """How a page's policy names the one script that it may run.

    >>> script_hash("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _beside(section: RunSection) -> list[Any]:
    """Scores and notes of a run's results, some of which come from results of ImageNet's weights."""
    return [[result.folder.name, repr(result.scores), result.notes] for result in section.run.results]


def _told(links: Sequence[TileLink]) -> list[Any]:
    """What the page of a run tells of its tile sets."""
    return [[link.page, repr(link.tile_set.config), link.tile_set.n_failed, link.failed] for link in links]


def _inputs(folders: Sequence[Path]) -> Iterator[str]:
    """Names and content of all files that a page may be drawn from."""
    for folder in folders:
        for pattern in DRAWN_FROM:
            for path in sorted(folder.glob(pattern)):
                if path.is_file() and path.name not in UNUSED:
                    yield f"{folder.name}/{path.relative_to(folder).as_posix()} {file_fingerprint(path)}"


@functools.cache
def _program() -> str:
    """Content of the code and the templates that draw: a page of an older version is drawn anew."""
    files = (path for path in sorted(Path(__file__).parent.rglob("*.*")) if path.suffix != ".pyc")
    return fingerprint([file_fingerprint(path) for path in files if path.is_file()])


def _is_stamped(path: Path, stamp: str) -> bool:
    try:
        with path.open("rb") as file:
            return f'content="{stamp}"'.encode() in file.read(STAMP_BYTES)
    except FileNotFoundError:
        return False
