"""Tiles that are image files already: a folder per class, or a CSV that lists them."""

import contextlib
import functools
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from histo_ssl.data.base import HELD_OUT, SOURCE, STATUS, Part, check_failures, refuse_shared_patients
from histo_ssl.data.image_list import (
    CsvLayout,
    WrongLayoutError,
    from_csv,
    from_folder,
    groups_in,
    images_below,
)
from histo_ssl.data.image_table import images_of, listing_of, of_classes, rows_by_path
from histo_ssl.executors.base import Executor
from histo_ssl.folders.artifacts import write_json, write_text
from histo_ssl.folders.cells import csv_text, exact_table
from histo_ssl.slides.grid import Tiling

IMAGES = "images.csv"
# What Pillow raises when bytes are not what they should be.
UNREADABLE = (
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
PART_TILES = 4096  # images embedded into one file: a minute or so of work on a small machine


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Image files as tiles (see `conf/data/kind/images.yaml` for what each value means)."""

    root: str | None
    csv: str | None
    parts: Sequence[Mapping[str, str]] | None
    columns: Mapping[str, str]
    splits: Mapping[str, str] | None
    repeats: str | None
    classes: Sequence[str] | None
    merge: Mapping[str, str] | None
    group_pattern: str | None
    max_tiles: int | None
    max_failed: float
    seed: int
    expected: str

    def listing(self) -> dict[str, Any]:
        """The CSV's rows, or the paths below `root`; not the sizes of what may be a million small files."""
        with self._explained():
            if self.csv:
                return {"images": rows_by_path(Path(self.csv), self._layout)}
            root = self._root()
            if self.parts:
                return {"images": listing_of(root, self.parts, self._layout)}
            return {"images": {path.relative_to(root).as_posix(): {} for path in images_below(root)}}

    def tile(
        self,
        tiling: Tiling,
        *,
        folder: Path,
        home: Path,  # noqa: ARG002
        n_processes: int,  # noqa: ARG002
        slide_timeout_s: float,  # noqa: ARG002
        executor: Executor | None = None,  # noqa: ARG002
    ) -> dict[str, int]:
        """Write `images.csv`, `status.csv` and `source.json`; headers are read, not pixels."""
        listed = self._listed()
        sizes = [_image_size(path) for path in listed["path"]]
        failures = {
            path: size for path, size in zip(listed["path"], sizes, strict=True) if isinstance(size, str)
        }
        check_failures(
            [f"{path}: {reason}" for path, reason in failures.items()],
            n_items=len(listed),
            max_failed=self.max_failed,
            noun="images",
        )
        good = listed[~listed["path"].isin(failures)].reset_index(drop=True)
        tile_px = tiling.size_px or _common_side([size for size in sizes if not isinstance(size, str)])
        n_bytes = [Path(path).stat().st_size for path in good["path"]]
        _write_csv(good.assign(n_bytes=n_bytes), folder / IMAGES)
        _write_csv(pd.DataFrame({"path": list(failures), "reason": list(failures.values())}), folder / STATUS)
        write_json(folder / SOURCE, {"kind": "images", "tile_px": tile_px, "mpp": tiling.mpp})
        return {"tiles": len(good), "failed": len(failures)}

    def _listed(self) -> pd.DataFrame:
        """Images sorted by absolute path, with label, split and group; a seeded draw of `max_tiles`."""
        with self._explained():
            images = of_classes(self._found(), classes=self.classes, merge=self.merge)
        images = images.sort_values("path", ignore_index=True)
        if self.group_pattern:
            images["group"] = groups_in(images["path"], pattern=self.group_pattern)
        refuse_shared_patients(
            images["group"],
            images["split"],
            source=f"data.csv={self.csv}" if self.csv else f"data.root={self.root}",
        )
        if self.max_tiles and len(images) > self.max_tiles:
            images = images.sample(n=self.max_tiles, random_state=self.seed).sort_index(ignore_index=True)
        return images

    def _found(self) -> pd.DataFrame:
        """Images as they lie there, with the classes' own names."""
        if self.csv:
            return from_csv(Path(self.csv), self._layout, images=Path(self.csv).parent)
        return images_of(self._root(), self.parts, self._layout) if self.parts else from_folder(self._root())

    @property
    def _layout(self) -> CsvLayout:
        return CsvLayout(columns=self.columns, splits=self.splits, repeats=self.repeats)

    def _root(self) -> Path:
        if not self.root:
            raise WrongLayoutError("there is neither a folder nor a list of images")
        return Path(self.root)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Adds what was expected to what is missing, in the names of that place: data.root or task.root."""
        try:
            yield
        except (FileNotFoundError, WrongLayoutError) as error:
            asked = self.expected.partition(".")[0]
            words = re.sub(r"\bdata\.(?=(root|csv)\b)", f"{asked}.", str(error))
            raise type(error)(f"{words}; expected: {self.expected}") from error


class ImageTiles:
    """The tiles of an image folder that `ImageData.tile` listed."""

    def __init__(self, folder: Path, *, tile_px: int, mpp: float | None) -> None:
        self.tile_px = tile_px
        self.mpp = mpp
        self.images = exact_table(pd.read_csv(folder / IMAGES, dtype=str, keep_default_na=False))
        self._paths = self.images["path"].to_numpy(dtype=str)
        is_known = "n_bytes" in self.images  # not in lists of old
        self._n_bytes = self.images["n_bytes"].astype(np.int64).to_numpy() if is_known else None

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, i: int) -> NDArray[np.uint8]:
        """Image i as (tile_px, tile_px, 3) RGB; its central square, scaled where it has another size."""
        path = self._paths[i]
        try:
            with Path(path).open("rb") as file:
                if self._n_bytes is not None and os.fstat(file.fileno()).st_size != self._n_bytes[i]:
                    raise ValueError(
                        "the file has changed since it was listed; delete what was made of it "
                        "under tiles/, embeddings/ and results/"
                    )
                with Image.open(file) as image:
                    return np.array(_square(_rgb(image), self.tile_px))
        except UNREADABLE as error:
            raise ValueError(f"{path}: cannot be read as an image: {error}") from error

    def coords(self) -> NDArray[np.int64]:
        """(N, 2) zeros: an image is its tile."""
        return np.zeros((len(self), 2), dtype=np.int64)

    def training_rows(self) -> NDArray[np.int64]:
        """Numbers of the images outside validation and test splits."""
        return np.flatnonzero(~self.images["split"].isin(HELD_OUT))

    def parts(self) -> list[Part]:
        """Stretches of `PART_TILES` images."""
        starts = range(0, len(self), PART_TILES)
        return [
            Part(name=f"images-{n:05d}", start=start, stop=min(start + PART_TILES, len(self)))
            for n, start in enumerate(starts)
        ]

    def table(self, part: Part | None = None) -> pd.DataFrame:
        """One row per image; its path stands for the slide, its group for the patient."""
        images = self.images.iloc[part.start : part.stop] if part else self.images
        known = {
            "slide": [Path(path).relative_to(self._common).as_posix() for path in images["path"]],
            "x": 0,
            "y": 0,
            "patient": images["group"],
            "site": "",
            "split": images["split"],
            "label": images["label"],
            "version": images["n_bytes"] if self._n_bytes is not None else "",
        }
        return pd.DataFrame(known, index=images.index)

    @functools.cached_property
    def _common(self) -> str:
        """The folder below which all images lie."""
        return os.path.commonpath([Path(path).parent for path in self.images["path"]])

    def slides(self) -> pd.DataFrame:
        """No row: images are tiles already."""
        columns = ("slide", "patient", "site", "split", "label", "n_tiles")
        return pd.DataFrame({name: [] for name in columns}, dtype=object)


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image of any size as (H, W, 3) RGB, on white where it is transparent.

    Raises:
        ValueError: it can't be read, or has more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            return np.array(_rgb(image))
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB, on white where it is transparent, as slides are.

    Raises:
        ValueError: its values have more than 8 bits; converted, they would be clipped.
    """
    depth = _unfit_depth(image)
    if depth:
        raise ValueError(depth)
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    on_white = Image.new("RGB", seen.size, "white")
    on_white.paste(seen, mask=seen.getchannel("A"))
    return on_white


def _unfit_depth(image: Image.Image) -> str:
    """Why an image's values are none of 8 bits; nothing if they are."""
    is_deep = image.mode.startswith(("I", "F"))
    return f"more than 8 bits (mode {image.mode}); convert it to 8-bit RGB" if is_deep else ""


def _image_size(path: str) -> tuple[int, int] | str:
    """Width and height from the file's header, or the reason why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _unfit_depth(image) or image.size
    except FileNotFoundError:
        return "no such file"
    except (*UNREADABLE, Image.DecompressionBombWarning) as error:
        return f"not a readable image ({type(error).__name__})"


def _common_side(sizes: list[tuple[int, int]]) -> int:
    """Side of images that are all the same square.

    Raises:
        ValueError: they differ, or are no squares.
    """
    different = sorted(set(sizes))
    if len(different) != 1 or different[0][0] != different[0][1]:
        shown = ", ".join(f"{width} x {height}" for width, height in different[:3])
        raise ValueError(
            f"the images are not squares of one size (there are {len(different)} sizes: {shown} px ...); "
            "say tiling.size_px=<side> to scale and centre-crop them"
        )
    return different[0][0]


def _square(image: Image.Image, side: int) -> Image.Image:
    """The image's central square, antialiased to `side`; untouched where it has that size already."""
    if image.size == (side, side):
        return image
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_text(path, csv_text(table))
