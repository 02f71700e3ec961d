"""Bags as other programs write them, so that those read them as their own.

What is written is as of the versions that `mil.layouts` names, but not in chunks. What CLAM and TRIDENT need
of a bag, the files of the stage `embed` have too; STAMP looks for other names and for um.

Letters: N tiles, D width of a feature vector.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from histo_ssl.embeddings import check_rows, narrowed
from histo_ssl.folders.artifacts import write_bytes
from histo_ssl.mil.layouts import CLAM, COORDS, FEATS, FEATURES, STAMP, TRIDENT, UM

Arrays = Mapping[str, NDArray[np.generic]]
Values = Mapping[str, str | int | float]

LAYOUTS = (CLAM, TRIDENT, STAMP)
SUFFIXES = {CLAM: (".h5", ".pt"), TRIDENT: (".h5",), STAMP: (".h5",)}
STAMP_VERSION = "2.1.0"  # the first that writes and reads `tile_size_um`; it refuses files of later ones
TIMES_UM = 10  # magnification x um/px: 40x has 0.25 um/px by convention


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a slide's tiles were cut.

    Args:
        slide: its name.
        slide_mpp: um/px of level 0.
        mpp: um/px of the tiles.
        tile_px: their side at that scale.
        overlap_px: of neighbours, at that scale.
    """

    slide: str
    slide_mpp: float
    mpp: float
    tile_px: int
    overlap_px: int


def write_bag(
    path: Path,
    *,
    features: NDArray[np.floating],
    coords: NDArray[np.integer],
    layout: str,
    encoder: str,
    cut: Cut,
) -> None:
    """Write one slide's features as another program does, atomically.

    Args:
        path: `<slide>.h5`; for CLAM also `<slide>.pt`, which holds the features alone.
        features: (N, D), finite; CLAM takes float32, STAMP float16, TRIDENT what it is given.
        coords: (N, 2) left and top edges in level-0 px.
        layout: clam, trident or stamp.
        encoder: its name.
        cut: how the tiles were cut.

    Raises:
        ValueError: there is no such layout, features and coords don't belong together, a feature is not
            finite or the layout can't hold it.
    """
    check_rows(path, features, coords)
    if layout not in LAYOUTS:
        raise ValueError(f"{path}: no layout '{layout}'; choose one of {', '.join(LAYOUTS)}")
    if path.suffix not in SUFFIXES[layout]:
        raise ValueError(f"{path}: files of {layout} end in {' or '.join(SUFFIXES[layout])}")
    if layout == CLAM:
        _write_clams(path, features, coords)
    elif layout == TRIDENT:
        data = {FEATURES: features, COORDS: coords.astype(np.int64)}
        about = {FEATURES: {"name": cut.slide, "encoder": encoder}, COORDS: _trident_values(cut)}
        _write(path, data, about)
    else:
        um = (coords * cut.slide_mpp).astype(np.float32)
        data = {COORDS: um, FEATS: narrowed(features.astype(np.float32), "float16", path=path)}
        _write(path, data, {"/": _stamp_values(cut, encoder=encoder)})


def _write_clams(path: Path, features: NDArray[np.floating], coords: NDArray[np.integer]) -> None:
    features = features.astype(np.float32)
    if path.suffix == ".pt":
        stream = io.BytesIO()
        torch.save(torch.from_numpy(features), stream)
        write_bytes(path, stream.getbuffer())
        return
    if len(coords) and np.abs(coords).max() > np.iinfo(np.int32).max:
        raise ValueError(f"{path}: coords up to {coords.max():,}; CLAM stores 32 bits")
    _write(path, {FEATURES: features, COORDS: coords.astype(np.int32)}, {})


def _trident_values(cut: Cut) -> Values:
    return {
        "patch_size": cut.tile_px,
        "patch_size_level0": round(cut.tile_px * cut.mpp / cut.slide_mpp),
        "level0_magnification": _plain(TIMES_UM / cut.slide_mpp),
        "target_magnification": _plain(TIMES_UM / cut.mpp),
        "overlap": cut.overlap_px,
        "name": cut.slide,
    }


def _stamp_values(cut: Cut, *, encoder: str) -> Values:
    return {
        "stamp_version": STAMP_VERSION,
        "extractor": encoder,
        "unit": UM,
        "tile_size_um": cut.tile_px * cut.mpp,
        "tile_size_px": cut.tile_px,
        "feat_type": "tile",
    }


def _plain(number: float) -> int | float:
    """A whole number as such."""
    return int(number) if number.is_integer() else number


def _write(path: Path, data: Arrays, about: Mapping[str, Values]) -> None:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, array in data.items():
            file.create_dataset(name, data=array)
        for name, values in about.items():
            file[name].attrs.update(values)
    write_bytes(path, stream.getbuffer())
