"""Tiles that are cut from slides, straight from the slide file."""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histo_ssl.data.annotations import UNLABELLED, raster_sizes, read_classes, read_raster, tile_classes
from histo_ssl.data.base import HELD_OUT, SOURCE, STATUS, Part, check_failures
from histo_ssl.data.manifest import slide_list, slide_listing, stated_mpp
from histo_ssl.data.rows import RowList, Runs
from histo_ssl.executors.base import Executor, Processes
from histo_ssl.folders.artifacts import write_bytes, write_json
from histo_ssl.slides.grid import TileSpec, Tiling
from histo_ssl.slides.index import TileIndex
from histo_ssl.slides.ledger import forget
from histo_ssl.slides.packs import ENTRY, as_bytes
from histo_ssl.slides.reader import Slide
from histo_ssl.slides.segments import Limits
from histo_ssl.slides.stamps import Stamp, stamp_in
from histo_ssl.slides.stores import Store, is_remote, store_for
from histo_ssl.slides.survey import Recipe, survey_slides
from histo_ssl.units import MicronsPerPx, TilePx

LABELS = "labels.npy"
OF_SLIDES = ("path", "mpp", "n_bytes", "modified_ns", "digest")  # what must be known of a slide to read it
N_TRIED = 16  # tiles from which the size of packs is told
MAX_SLIDES = 4096  # whose facts a process keeps, about 1 kB each


@dataclass(frozen=True, kw_only=True)
class SlideData:
    """Slides on a disk (see `conf/data/slides.yaml` for what each value means)."""

    root: str | None
    manifest: str | None
    mpp_override: float | str | None
    max_failed: float
    max_gigapixels: float
    max_segment_megapixels: float
    max_memory_gb: float
    annotations: str | None
    min_label_share: float
    pack: bool = False  # the pretrain stage's: tiles are the same with it

    def listing(self) -> dict[str, Any]:
        """The slides with their sizes, what manifest and CSV say of them, and their label rasters."""
        slides = slide_list(root=self.root, manifest=self.manifest)
        mpps, _ = stated_mpp(slides, self.mpp_override)
        listed: dict[str, Any] = {"slides": slide_listing(slides, mpps=mpps)}
        if self.annotations:
            rasters = Path(self.annotations)
            names = read_classes(rasters)
            sizes = raster_sizes(rasters, slides["slide_id"])
            listed["annotations"] = {slide_id: {"bytes": size} for slide_id, size in sizes.items()}
            listed["classes"] = {str(value): name for value, name in names.items()}
        return listed

    def tile(
        self,
        tiling: Tiling,
        *,
        folder: Path,
        home: Path,  # noqa: ARG002
        n_processes: int,
        slide_timeout_s: float,
        executor: Executor | None = None,
    ) -> dict[str, int]:
        """Write the index of all tiles, `status.csv`, an overlay per slide, and labels where there are any.

        Raises:
            ValueError: more slides failed than `max_failed` allows, or none has a tile.
        """
        spec = tiling.spec  # refuses what no slide can be cut by, before any is looked for
        slides = slide_list(root=self.root, manifest=self.manifest)
        slides["path"] = [path if is_remote(path) else str(Path(path).resolve()) for path in slides["path"]]
        mpps, mpp_if_unknown = stated_mpp(slides, self.mpp_override)
        limits = Limits(slide_px=1e9 * self.max_gigapixels, segment_px=1e6 * self.max_segment_megapixels)
        index = survey_slides(
            slides,
            mpps=mpps,
            recipe=Recipe(tiling=tiling, limits=limits, mpp_if_unknown=mpp_if_unknown),
            folder=folder,
            processes=Processes(n=n_processes, timeout_s=slide_timeout_s, memory_gb=self.max_memory_gb),
            executor=executor,
        )
        failed = index.slides[index.slides["reason"] != ""]
        self._check(failed, n_slides=len(index.slides), folder=folder)
        facts: dict[str, Any] = {
            "tile_px": spec.size_px,
            "mpp": spec.mpp,
            "stride_px": spec.stride_px,
            "scaled_jpegs": spec.scaled_jpegs,
        }
        classes = self._write_labels(index, spec, folder=folder) if self.annotations else []
        write_json(folder / SOURCE, {"kind": "slides", **facts, "classes": classes})
        forget(folder)
        return {"slides": len(index.slides), "failed": len(failed), "tiles": len(index)}

    def _check(self, failed: pd.DataFrame, *, n_slides: int, folder: Path) -> None:
        reasons = [f"{row.slide_id}: {row.reason}" for row in failed.itertuples()]
        limit = self.max_failed if len(failed) < n_slides else 0.0
        noun = f"slides (listed in {folder / STATUS})"
        check_failures(reasons, n_items=n_slides, max_failed=limit, noun=noun)

    def _write_labels(self, index: TileIndex, spec: TileSpec, *, folder: Path) -> list[str]:
        """Write the class of every tile; the classes' names come back."""
        rasters = Path(str(self.annotations))
        names = read_classes(rasters)
        labels = np.full(len(index), UNLABELLED, dtype=np.int16)
        for i, row in enumerate(index.slides.to_dict("records")):
            path = rasters / f"{row['slide_id']}.png"
            if row["n_tiles"] and path.is_file():
                labels[index.offsets[i] : index.offsets[i + 1]] = tile_classes(
                    read_raster(path),
                    index.of_slide(i),
                    values=list(names),
                    side_level0=spec.side_level0(MicronsPerPx(row["mpp"])),
                    size_level0=(row["width_px"], row["height_px"]),
                    min_share=self.min_label_share,
                )
        stream = io.BytesIO()
        np.save(stream, labels)
        write_bytes(folder / LABELS, stream.getvalue())
        return list(names.values())


def gigabytes(n_bytes: int) -> str:
    """A size on a disk, for a message.

    >>> gigabytes(1_234_000_000), gigabytes(56_780_000)
    ('1.2 GB', '0.057 GB')
    """
    return f"{n_bytes / 1e9:.2g} GB" if n_bytes < 1e10 else f"{n_bytes / 1e9:,.0f} GB"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A slide, and the side of its tiles on it."""

    slide: Slide
    side_level0: int


class SlideTiles:
    """The tiles that `SlideData.tile` listed; pickled as the folder's name, and opened anew from it."""

    def __init__(
        self,
        folder: Path,
        *,
        tile_px: int,
        mpp: float,
        stride_px: int,
        classes: list[str],
        scaled_jpegs: bool = False,
        store: Store | None = None,
    ) -> None:
        self.tile_px = tile_px
        self.mpp: float | None = mpp
        self.index = TileIndex(folder)
        self.spec = TileSpec(
            size_px=TilePx(tile_px),
            mpp=MicronsPerPx(mpp),
            stride_px=TilePx(stride_px),
            min_tissue=0.0,
            scaled_jpegs=scaled_jpegs,
        )
        self._classes = np.array([*classes, ""])  # UNLABELLED is the last
        self._labels = np.load(folder / LABELS, mmap_mode="r", allow_pickle=False) if classes else None
        self._store = store or store_for(
            self.index.slides["path"]
        )  # of another process, whose blocks are used
        known = [name for name in OF_SLIDES if name in self.index.slides]  # lists of old have no stamps
        self._known = {name: self.index.slides[name].to_numpy() for name in known}
        self.slide = functools.lru_cache(MAX_SLIDES)(self._opened)

    def __reduce__(self) -> Any:
        return functools.partial(type(self), **self.facts()), (self.index.folder,)

    def facts(self) -> dict[str, Any]:
        """What it is opened with beside its folder."""
        classes: Any = self._classes[:-1].tolist()
        return {
            "tile_px": self.tile_px,
            "mpp": self.mpp,
            "stride_px": self.spec.stride_px,
            "classes": classes,
            "scaled_jpegs": self.spec.scaled_jpegs,
            "store": self._store,
        }

    def stamp(self, i: int) -> Stamp | None:
        """What the file of slide i was known by when it was tiled."""
        return stamp_in(self._row(i))

    def _row(self, i: int) -> dict[str, Any]:
        row = {name: values[i] for name, values in self._known.items()}
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}

    def _opened(self, i: int) -> Slide:
        row = self._row(i)
        store = self._store if is_remote(row["path"]) else None
        return Slide(row["path"], mpp=row["mpp"], known=stamp_in(row), store=store)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, i: int) -> NDArray[np.uint8]:
        """Tile i as (tile_px, tile_px, 3) RGB."""
        number, x, y = self.index.tile(i)
        return self.slide(number).read((x, y), self.spec)

    def fetch(self, rows: Sequence[int]) -> None:
        """Fetch together what tiles of remote slides are stored in."""
        by_slide: dict[int, list[tuple[int, int]]] = {}
        for row in rows if self._store else ():
            number, x, y = self.index.tile(int(row))
            by_slide.setdefault(number, []).append((x, y))
        for number, places in sorted(by_slide.items()):
            self.slide(number).fetch(places, self.spec)

    def faster(self, rows: RowList) -> str:
        """What would make reading some tiles cheaper, and what it would take."""
        packs = gigabytes(self.packed_bytes(rows))
        said = f"data.pack=true would store {len(rows):,} tiles once, about {packs}"
        slides = {self.index.tile(int(row))[0] for row in self._tried(rows)}
        if not any(self.slide(i).gains_by_scaled_jpegs(self.spec) for i in slides):
            return said
        return f"tiling.scaled_jpegs=true would cut nearly equal tiles from fewer decoded pixels, or {said}"

    def packed_bytes(self, rows: RowList) -> int:
        """About how many bytes packs of some tiles take, judged by a few of them."""
        n_bytes = 0
        for row in self._tried(rows):
            number, x, y = self.index.tile(int(row))
            n_bytes += len(as_bytes(self.slide(number), (x, y), self.spec)[2]) + ENTRY.itemsize
        return round(n_bytes / N_TRIED * len(rows))

    def _tried(self, rows: RowList) -> NDArray[np.int64]:
        tried: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, N_TRIED).astype(np.int64)]
        return tried

    def around(self, i: int, *, side_px: int) -> NDArray[np.uint8]:
        """The square (side_px, side_px, 3) around tile i at the tiles' um/px, white off the scan."""
        number, x, y = self.index.tile(i)
        slide = self.slide(number)
        wide = replace(self.spec, size_px=TilePx(side_px))
        before = (wide.side_level0(slide.mpp) - self.spec.side_level0(slide.mpp)) // 2
        return slide.read((x - before, y - before), wide)

    def coords(self) -> NDArray[np.int64]:
        """(N, 2) left and top edges of all tiles, level-0 px."""
        tiles = self.index.tiles
        return np.stack([tiles["x"], tiles["y"]], axis=1).astype(np.int64)

    def training_rows(self) -> Runs:
        """Numbers of the tiles of slides outside validation and test splits."""
        is_held_out = self.index.slides["split"].isin(HELD_OUT)
        bounds = zip(self.index.offsets, self.index.offsets[1:], is_held_out, strict=False)
        return Runs((start, stop) for start, stop, is_out in bounds if not is_out)

    def parts(self) -> list[Part]:
        """One part per slide that has tiles."""
        bounds = zip(self.index.slides["slide_id"], self.index.offsets, self.index.offsets[1:], strict=False)
        return [
            Part(name=name, start=int(start), stop=int(stop)) for name, start, stop in bounds if start < stop
        ]

    def table(self, part: Part | None = None) -> pd.DataFrame:
        """One row per tile; its label is its own class if the slides are annotated, else "" for none."""
        rows = slice(part.start, part.stop) if part else slice(0, len(self))
        tiles = self.index.tiles[rows]
        slides = self.index.slides.iloc[tiles["slide"]].set_axis(range(rows.start, rows.stop))
        columns = {"slide": "slide_id", "patient": "patient_id", "site": "site", "split": "split"}
        labels = "" if self._labels is None else self._classes[self._labels[rows]]
        known = {name: slides[column] for name, column in columns.items()}
        xy = {axis: tiles[axis].astype(np.int64) for axis in ("x", "y")}
        version = slides["digest"].where(slides["digest"] != "", slides["n_bytes"].astype(str))
        return pd.DataFrame({**known, **xy, "label": labels, "version": version})

    def scan(self, slide_id: str) -> Scan:
        """The slide of that name."""
        (i,) = np.flatnonzero(self.index.slides["slide_id"] == slide_id)
        mpp = MicronsPerPx(self.index.slides["mpp"].iloc[i])
        return Scan(slide=self.slide(int(i)), side_level0=self.spec.side_level0(mpp))

    def slides(self) -> pd.DataFrame:
        """One row per slide of the list, as text, and its number of tiles."""
        return self.index.slides.rename(columns={"slide_id": "slide", "patient_id": "patient"})
