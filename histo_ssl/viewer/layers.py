"""Maps that a slide may have, each known by a number of its own before anything of it is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from histo_ssl.folders.artifacts import fingerprint
from histo_ssl.heads.over_slides import SlideHeads
from histo_ssl.slidemaps.frame import Tiles
from histo_ssl.viewer.clusters import CHOICES, Clusters, Embedded
from histo_ssl.viewer.maps import Classes, Numbers, TileMap
from histo_ssl.viewer.memory import Memory
from histo_ssl.viewer.tables import PERCENTILE, Column, SideOf, Table
from histo_ssl.viewer.tilesets import TileSet

FIRST = 8  # of the numbers of clusters
OF_PATCHES, OF_TILES = "patches", "tiles"  # what a map of heads has values of


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One map of one slide, not yet read."""

    id: str
    title: str
    maker: "Maker"
    slide: str  # its name
    what: Any = None  # which map of the maker's
    variant: str = ""  # of several maps of one title, such as "8 clusters"
    is_first: bool = False  # of them, whether it is the one that is shown until another is chosen
    is_of_tiles: bool = False  # whether it has every tile that the slide was cut into

    def read(self) -> TileMap:
        """The map.

        Raises:
            ValueError: its file can't be read, or says nothing that could be drawn.
        """
        return self.maker.tile_map(self.slide, self.what)


class Maker(Protocol):
    """Where layers come from: a file, or a folder."""

    def layers(self, slide: str) -> Iterable[Layer]:
        """The maps of a slide."""

    def tile_map(self, slide: str, what: Any) -> TileMap:
        """One of them."""


class LabelMaker:
    """Labels of the tiles of a tile folder, or where the tiles lie."""

    def __init__(self, tiles: TileSet) -> None:
        self._tiles = tiles

    def layers(self, slide: str) -> Iterator[Layer]:
        """The one map, of slides that have tiles."""
        number = self._tiles.number.get(slide)
        if number is not None and self._tiles.index.slides["n_tiles"].iloc[number]:
            title = "labels of tiles" if self._tiles.has_labels else "tiles"
            mark = fingerprint(["labels", str(self._tiles.folder.resolve())])
            words = f"{title} ({self._tiles.folder.name})"
            yield Layer(id=mark, title=words, maker=self, slide=slide, is_of_tiles=True)

    def tile_map(self, slide: str, what: Any) -> TileMap:  # noqa: ARG002 (there is but one)
        """The map of a slide."""
        return self._tiles.tile_map(slide)

    def side_level0(self, slide: str) -> int:
        """Side of a slide's tiles on its scan, px."""
        return self._tiles.side_level0(slide)


class AttentionMaker:
    """A folder of CSV files, one for each slide that a model of bags was looked at on."""

    def __init__(self, folder: Path, *, title: str, side_of: SideOf) -> None:
        self._folder, self._title, self._side_of = folder, title, side_of
        self._paths = {path.stem: path for path in sorted(folder.glob("*.csv"))}

    def layers(self, slide: str) -> Iterator[Layer]:
        """The percentiles of a slide's attention."""
        if slide in self._paths:
            mark = _mark(self._paths[slide])
            yield Layer(id=mark, title=f"attention ({self._title})", maker=self, slide=slide)

    def tile_map(self, slide: str, what: Any) -> TileMap:  # noqa: ARG002 (there is but one)
        """The map of a slide."""
        table = Table(self._paths[slide], side_of=self._side_of)
        if Column(name=PERCENTILE) not in table.columns:
            raise ValueError(f"{table.path}: a column {PERCENTILE} is expected")
        return table.tile_map(slide, Column(name=PERCENTILE))


class TableMaker:
    """A CSV of tiles of any number of slides, read when one of them is looked at."""

    def __init__(self, path: Path, *, title: str, side_of: SideOf) -> None:
        self._table, self._title = Table(path, side_of=side_of), title

    def layers(self, slide: str) -> Iterator[Layer]:
        """A map for each column and protocol; none of a table of slides."""
        if not self._has_places or not self._table.has(slide):
            return
        for column in self._table.columns:
            mark = _mark(self._table.path, column.name, column.protocol)
            words = f"{column.name}, {column.protocol}" if column.protocol else column.name
            yield Layer(id=mark, title=f"{words} ({self._title})", maker=self, slide=slide, what=column)

    def tile_map(self, slide: str, what: Any) -> TileMap:
        """One column of a slide's tiles."""
        return self._table.tile_map(slide, what)

    @cached_property
    def _has_places(self) -> bool:
        with self._table.path.open() as file:
            return {"x", "y"} <= set(file.readline().strip().split(","))


class HeadMaker:
    """A folder of what heads attend to, a file for each slide that was looked at under them."""

    def __init__(self, folder: Path, *, title: str) -> None:
        self._title = title
        self._paths = {path.stem: path for path in sorted(folder.glob("*.npz"))}
        self._read: Memory[SlideHeads] = Memory(limit=2, size=lambda _: 1)

    def layers(self, slide: str) -> Iterator[Layer]:
        """Two maps for each head and for the mean of all: of patches, and of tiles."""
        if slide not in self._paths:
            return
        heads = [None, *range(self._heads(slide).n_heads)]
        for what, words in ((OF_PATCHES, "attention of heads"), (OF_TILES, "how narrow heads are")):
            for head in heads:
                mark = _mark(self._paths[slide], what, str(head))
                variant = "mean of heads" if head is None else f"head {head + 1}"
                yield Layer(
                    id=mark,
                    title=f"{words} ({self._title})",
                    variant=variant,
                    is_first=head is None,
                    maker=self,
                    slide=slide,
                    what=(what, head),
                )

    def tile_map(self, slide: str, what: Any) -> TileMap:
        """One head, or the mean, over a slide."""
        found, (kind, head) = self._heads(slide), what
        if kind == OF_PATCHES:
            label = "attention, times an even share of its tile's"
            scale, tile_map = found.attention_scale(), None
            for seen in [*found.pooled()[::-1], found]:
                numbers = Numbers(values=seen.of_patches(head), scale=scale, label=label)
                tile_map = TileMap(
                    tiles=seen.patches(), drawn=numbers, known={}, coarser=tile_map, noun="patches"
                )
            assert tile_map is not None
            return tile_map
        label = "bits by which attention is narrower than even"
        numbers = Numbers(values=found.of_tiles(head), scale=found.narrowness_scale(), label=label)
        return TileMap(tiles=found.tiles(), drawn=numbers, known={})

    def _heads(self, slide: str) -> SlideHeads:
        return self._read.of(slide, lambda: SlideHeads.read(self._paths[slide]))


class ClusterMaker:
    """Clusters of a folder of embeddings."""

    def __init__(self, folder: Path, *, title: str, side_of: SideOf) -> None:
        self._embedded, self._title, self._side_of = Embedded(folder), title, side_of
        self._found: Memory[Clusters] = Memory(limit=len(CHOICES), size=lambda _: 1)

    def layers(self, slide: str) -> Iterator[Layer]:
        """A map for each number of clusters."""
        if slide not in self._embedded.paths:
            return
        for k in CHOICES:
            mark = _mark(self._embedded.paths[slide], str(k))
            title, variant = f"clusters ({self._title})", f"{k} clusters"
            is_first = k == FIRST
            yield Layer(
                id=mark, title=title, variant=variant, is_first=is_first, maker=self, slide=slide, what=k
            )

    def tile_map(self, slide: str, what: Any) -> TileMap:
        """Which of so many clusters each tile of a slide is in."""
        found = self._found.of(what, lambda: self._embedded.clusters(what))
        stored = self._embedded.read(slide)
        side = self._side_of(slide)
        if side is None:
            raise ValueError(
                f"{self._embedded.folder}: no tile folder says how large the tiles of {slide} are"
            )
        numbers = found.of(stored.features)
        names = [f"cluster {i}" for i in range(1, what + 1)]
        tiles = Tiles(xy_level0=stored.coords, side_level0=side)
        drawn = Classes(classes=numbers, names=names, label=f"cluster of {what}")
        return TileMap(tiles=tiles, drawn=drawn, known={})


def _mark(path: Path, *words: str) -> str:
    """The number of a map: another one where the file is another."""
    status = path.stat()
    return fingerprint([str(path.resolve()), status.st_size, status.st_mtime_ns, *words])
