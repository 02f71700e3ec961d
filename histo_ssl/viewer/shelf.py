"""Which slides are shown with which maps: a table made at the start, in which all requests are looked up.

What is given is a folder of runs, or one of its tile, embedding or result folders; what belongs to such a
one is found beside it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from histo_ssl.folders.artifacts import CONFIG, is_done, read_json
from histo_ssl.viewer.layers import (
    AttentionMaker,
    ClusterMaker,
    HeadMaker,
    LabelMaker,
    Layer,
    Maker,
    TableMaker,
)
from histo_ssl.viewer.tilesets import Shown, TileSet

log = logging.getLogger(__name__)

TILES, EMBEDDINGS, RESULTS = "tiles", "embeddings", "results"
ATTENTION, HEADS, PREDICTIONS, RESULT = "attention", "heads", "predictions.csv", "results.json"
EXPECTED = "a folder of runs, or one of its folders tiles/..., embeddings/... or results/... is expected"


@dataclass
class Shelf:
    """All slides by their number, and what maps there are of each."""

    slides: dict[str, Shown] = field(default_factory=dict)
    makers: dict[str, list[Maker]] = field(default_factory=dict)  # by the number of the slide
    _layers: dict[str, dict[str, Layer]] = field(default_factory=dict)

    def put(self, shown: Shown, makers: Sequence[Maker]) -> None:
        """Add a slide, or maps to a slide that is there."""
        self.slides.setdefault(shown.id, shown)
        known = self.makers.setdefault(shown.id, [])
        known += [maker for maker in makers if maker not in known]

    def layers(self, slide_id: str) -> dict[str, Layer]:
        """The maps of a slide by their number; one whose file can't be read is left out, with a warning."""
        if slide_id not in self._layers:
            found: dict[str, Layer] = {}
            for maker in self.makers[slide_id]:
                try:
                    found |= {layer.id: layer for layer in maker.layers(self.slides[slide_id].name)}
                except (ValueError, OSError) as error:
                    log.warning("view: a map is left out: %s", error)
            self._layers[slide_id] = found
        return self._layers[slide_id]


def fill(given: Sequence[Path], *, slides: Sequence[Path], values: Sequence[Path]) -> Shelf:
    """The slides and maps of folders, of slide files and of CSV files.

    Raises:
        FileNotFoundError: something given is not there.
        ValueError: nothing that was given has a slide.
    """
    shelf = Shelf()
    for path in given:
        _put_folder(shelf, path)
    for path in slides:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such slide")
        shelf.put(Shown.of_file(path), [])
    if not shelf.slides:
        raise ValueError(
            f"{', '.join(map(str, given)) or 'nothing given'}: no slides there to show; {EXPECTED}"
        )
    _put_values(shelf, values)
    return shelf


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """A folder of runs: its finished tile folders, and what else was made of their tiles."""

    root: Path
    tiles: dict[str, TileSet]  # by the folder's name

    @classmethod
    def at(cls, root: Path) -> "_Runs":
        found = {}
        for folder in _finished(root / TILES):
            try:
                found[folder.name] = TileSet(folder)
            except FileNotFoundError as error:
                log.info("view: %s", error)
        return cls(root=root, tiles=found)

    def of_embeddings(self, folder: Path) -> TileSet | None:
        """The tiles of a folder of embeddings: those of its fingerprint, else those of its slides."""
        mark, names = folder.name.rpartition("-")[2], {path.stem for path in folder.glob("*.h5")}
        for tiles in self.tiles.values():
            if tiles.folder.name.endswith(f"-{mark}"):
                return tiles
        alike = [tiles for tiles in self.tiles.values() if names and names <= set(tiles.number)]
        return alike[0] if len(alike) == 1 else None


def _put_folder(shelf: Shelf, path: Path) -> None:
    """Put all of a folder of runs on the shelf, or one folder of it and what belongs to it."""
    path = path.resolve()
    if path.parent.name in (TILES, EMBEDDINGS, RESULTS) and (path.parent.parent / TILES).is_dir():
        if not is_done(path):
            raise FileNotFoundError(f"{path}: there is no such finished folder; {EXPECTED}")
        runs = _Runs.at(path.parent.parent)
        _put_one(shelf, runs, path)
        return
    root = path.parent if path.name in (TILES, EMBEDDINGS, RESULTS) else path
    if not (root / TILES).is_dir():
        raise FileNotFoundError(f"{path}: no slides were tiled there; {EXPECTED}")
    runs = _Runs.at(root)
    for tiles in runs.tiles.values():
        embeddings = [folder for folder in _finished(root / EMBEDDINGS) if not _is_floor(folder)]
        _put_tiles(shelf, runs, tiles, results=_finished(root / RESULTS), embeddings=embeddings)


def _put_one(shelf: Shelf, runs: _Runs, path: Path) -> None:
    results, embeddings = _finished(runs.root / RESULTS), _finished(runs.root / EMBEDDINGS)
    if path.parent.name == TILES:
        tiles = runs.tiles.get(path.name)
    elif path.parent.name == EMBEDDINGS:
        tiles, results, embeddings = runs.of_embeddings(path), [], [path]
    else:
        made_of = _json(path / RESULT)
        tiles, results = runs.tiles.get(_tile_folder(made_of)), [path]
        mark = str(made_of.get("encoder_folder", "")).rpartition("-")[2]
        embeddings = [folder for folder in embeddings if folder.name.startswith(f"{mark}-")]
    if tiles is None:
        raise FileNotFoundError(
            f"{path}: its tiles are not of slides, or not in {runs.root / TILES} any more"
        )
    _put_tiles(shelf, runs, tiles, results=results, embeddings=embeddings)


def _put_tiles(
    shelf: Shelf, runs: _Runs, tiles: TileSet, *, results: Sequence[Path], embeddings: Sequence[Path]
) -> None:
    """Put the slides of a tile folder on the shelf, with those maps that are of its tiles."""
    side_of = partial(_side_in, [tiles])
    makers: list[Maker] = []
    for folder in results:
        made_of = _json(folder / RESULT)
        if _tile_folder(made_of) == tiles.folder.name:
            makers += _of_result(folder, made_of, tiles)
    for folder in embeddings:
        if runs.of_embeddings(folder) is tiles:
            makers.append(ClusterMaker(folder, title=_encoder_title(folder), side_of=side_of))
    makers.append(LabelMaker(tiles))
    for name in tiles.number:
        shelf.put(tiles.shown(name), makers)


def _of_result(folder: Path, made_of: dict[str, Any], tiles: TileSet) -> Iterator[Maker]:
    words = [str(made_of.get(name, "")) for name in ("method", "backbone", "task")]
    title = f"{' '.join(words)}, {folder.name.rpartition('-')[2]}"
    side_of = partial(_side_in, [tiles])
    if (folder / ATTENTION).is_dir():
        yield AttentionMaker(folder / ATTENTION, title=title, side_of=side_of)
    if (folder / HEADS).is_dir():
        yield HeadMaker(folder / HEADS, title=title)
    if (folder / PREDICTIONS).is_file():
        yield TableMaker(folder / PREDICTIONS, title=title, side_of=side_of)


def _put_values(shelf: Shelf, values: Sequence[Path]) -> None:
    """Tables of one's own: for every slide of that name."""
    sides: dict[str, int] = {}
    for slide_id, makers in shelf.makers.items():
        for maker in makers:
            if isinstance(maker, LabelMaker):
                sides[shelf.slides[slide_id].name] = maker.side_level0(shelf.slides[slide_id].name)
    for path in values:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such CSV")
        maker = TableMaker(path, title=path.name, side_of=sides.get)
        for shown in list(shelf.slides.values()):
            shelf.put(shown, [maker])


def _side_in(tile_sets: Sequence[TileSet], slide: str) -> int | None:
    return next((tiles.side_level0(slide) for tiles in tile_sets if slide in tiles.number), None)


def _tile_folder(made_of: dict[str, Any]) -> str:
    """Name of the tile folder of a result, which is looked up among those that are there."""
    return str(made_of.get("tile_folder", "")).rpartition("/")[2]


def _encoder_title(folder: Path) -> str:
    """Whose embeddings: "random vit_tiny_patch16_224, b2ba2d83a0"; the end tells equal ones apart."""
    card = (_json(folder / CONFIG).get("config") or {}).get("encoder") or {}
    architecture = card.get("architecture") if isinstance(card, dict) else None
    name = architecture.get("name", "") if isinstance(architecture, dict) else ""
    words = [str(card.get("method", "")) if isinstance(card, dict) else "", str(name)]
    return f"{' '.join(word for word in words if word) or 'embeddings'}, {folder.name.partition('-')[0]}"


def _is_floor(folder: Path) -> bool:
    """Whether embeddings are of a floor, which is for tables of scores."""
    return _json(folder / CONFIG).get("work") in ("embed (random)", "embed (colour)")


def _finished(parent: Path) -> list[Path]:
    return [path for path in sorted(parent.glob("*")) if path.is_dir() and is_done(path)]


def _json(path: Path) -> dict[str, Any]:
    """Content of a JSON file; nothing where that can't be read."""
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
