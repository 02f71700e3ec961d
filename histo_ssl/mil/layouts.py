"""How programs lay out a slide's features in an HDF5 file, and what such a file says of its tiles.

Looked at, for names and shapes; nothing is copied:

- CLAM (github.com/mahmoodlab/CLAM: `extract_features_fp.py` at 14fbcc4, `utils/file_utils.py` at e033abb,
  `dataset_modules/dataset_generic.py` at d613a3d): `h5_files/<slide>.h5` with `features` (N, D) float32 in
  chunks of 32 rows and `coords` (N, 2) int32 in level-0 px, without attributes; `pt_files/<slide>.pt`, the
  features alone as one tensor, which is what its training reads. Other tools keep the attributes of its files
  of patches, or an axis more.
- TRIDENT (github.com/mahmoodlab/TRIDENT: `trident/wsi_objects/WSI.py` at ac5f46e, `trident/IO.py` at
  0408667): `features_<encoder>/<slide>.h5` with `features` (N, D) in chunks of a row, its attribute `encoder`
  in some versions, and `coords` (N, 2) int64 in level-0 px, with `patch_size`, `patch_size_level0`,
  `level0_magnification`, `target_magnification` and `overlap`. It states magnifications, no um/px.
- STAMP (github.com/KatherLab/STAMP: `src/stamp/preprocessing/__init__.py` at 01b5ac6,
  `src/stamp/modeling/data.py` at 0016467): `<slide>.h5` with `feats` (N, D) float16 and `coords` (N, 2) in
  um; of the file `stamp_version`, `extractor`, `unit`, `tile_size_um` (before 2.1 `tile_size`),
  `tile_size_px`, `feat_type`. Version 1 had no `unit`, and positions in px of tiles of 224 px over 256 um.

Letters: N tiles, D width of a feature vector.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HISTO_SSL, CLAM, TRIDENT, STAMP, TENSOR = "histo_ssl", "clam", "trident", "stamp", "tensor"
FEATURES, FEATS, COORDS = "features", "feats", "coords"
TILE_UM_V1, TILE_PX_V1 = 256.0, 224  # of STAMP's version 1
UM = "um"
BY_ENCODER = "features_"  # what TRIDENT's folders begin with


class LayoutError(ValueError):
    """A file that is whole holds other things than it should."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Whose file it is, and what it says of its tiles; None or "" where it says nothing."""

    name: str
    encoder: str = ""  # as its program calls it
    tile_px: float | None = None  # side of a tile as it was cut, before the encoder's own resizing
    tile_um: float | None = None  # the same in um
    tile_px_level0: float | None = None  # the same on the scan
    um_per_unit: float | None = None  # of the positions; None: they are in level-0 px
    has_coords: bool = True

    @property
    def mpp(self) -> float | None:
        """The tiles' um/px; 0.5 where 256 px cover 128 um."""
        return None if self.tile_um is None or self.tile_px is None else self.tile_um / self.tile_px

    def side_level0(self, slide_mpp: float) -> float | None:
        """Side of a tile in level-0 px; 512 for 128 um on a scan of 0.25 um/px."""
        if self.tile_px_level0 is not None or self.tile_um is None or not math.isfinite(slide_mpp):
            return self.tile_px_level0
        return self.tile_um / slide_mpp

    def level0(self, coords: NDArray[Any], *, slide_mpp: float, path: Path) -> NDArray[np.int64]:
        """Positions (N, 2) in level-0 px.

        Args:
            coords: (N, 2) as the file holds them.
            slide_mpp: um/px of level 0; NaN: not known.
            path: of the file, for the message.

        Raises:
            ValueError: they can't be told.
        """
        if not self.has_coords:
            raise ValueError(
                f"{path}: it has no positions that can be found on the slide, so no map can be drawn; give "
                "HDF5 files with positions instead"
            )
        if coords.dtype.kind not in "fiu" or not np.isfinite(coords).all():
            raise ValueError(
                f"{path}: positions that are no finite numbers; have its program make the file again"
            )
        if self.um_per_unit is None:
            return _whole(coords, path=path)
        if not math.isfinite(slide_mpp):
            raise ValueError(
                f"{path}: its positions are in um, so that maps of the slide need its um/px; state them in "
                "the slide list"
            )
        return np.rint(coords * (self.um_per_unit / slide_mpp)).astype(np.int64)


def layout_of(file: Any, *, is_ours: bool, path: Path) -> Layout:
    """Whose HDF5 file it is, and what it says of its tiles.

    Args:
        file: open, as h5py opens it.
        is_ours: whether the stage `embed` wrote it.
        path: of the file, for messages and for the encoder's name in that of TRIDENT's folders.

    Raises:
        LayoutError: it holds no features of tiles.
    """
    name = FEATS if FEATS in file else FEATURES
    missing = {name, COORDS} - set(file)
    if missing:
        found = ", ".join(sorted(file)) or "nothing"
        raise LayoutError(
            f"{path}: '{min(missing)}' is missing; files of features have '{FEATURES}' (STAMP's '{FEATS}') "
            f"and '{COORDS}', this one has {found}"
        )
    of_coords = file[COORDS].attrs
    if is_ours:
        tile_px, mpp = _numbers(of_coords, "tile_px", "mpp")
        tile_um = tile_px * mpp if tile_px and mpp else None
        return Layout(name=HISTO_SSL, encoder=_text(of_coords, "encoder"), tile_px=tile_px, tile_um=tile_um)
    if name == FEATS:
        return _stamps(file, path=path)
    if "target_magnification" in of_coords:
        return _tridents(file, path=path)
    return Layout(name=CLAM, tile_px_level0=_clams_side(of_coords))


def _stamps(file: Any, *, path: Path) -> Layout:
    kind = _text(file.attrs, "feat_type") or "tile"
    if kind != "tile":
        raise LayoutError(f"{path}: it holds features of a {kind}, and bags are made of features of tiles")
    tile_px, tile_um, tile_size = _numbers(file.attrs, "tile_size_px", "tile_size_um", "tile_size")
    layout = Layout(name=STAMP, encoder=_text(file.attrs, "extractor"), tile_px=tile_px)
    if tile_um is None and _text(file.attrs, "unit") == UM:
        tile_um = tile_size
    if tile_um is not None:
        return replace(layout, tile_um=tile_um, um_per_unit=1.0)
    if round(tile_size or _stride(file[COORDS][()])) == TILE_PX_V1:
        return replace(layout, tile_um=TILE_UM_V1, tile_px=TILE_PX_V1, um_per_unit=TILE_UM_V1 / TILE_PX_V1)
    return replace(layout, has_coords=False)


def _tridents(file: Any, *, path: Path) -> Layout:
    names = "patch_size", "patch_size_level0", "level0_magnification", "target_magnification"
    tile_px, side, level0, target = _numbers(file[COORDS].attrs, *names)
    if side is None and tile_px and level0 and target:  # its parts are what files of coordinates always have
        side = tile_px * level0 / target
    folder = path.parent.name
    of_folder = folder.removeprefix(BY_ENCODER) if folder.startswith(BY_ENCODER) else ""
    encoder = _text(file[FEATURES].attrs, "encoder") or of_folder
    return Layout(name=TRIDENT, encoder=encoder, tile_px=tile_px, tile_px_level0=side)


def _clams_side(of_coords: Any) -> float | None:
    """Side of CLAM's tiles in level-0 px, where a fork has kept the attributes of its patches."""
    (tile_px,) = _numbers(of_coords, "patch_size")
    downsample = np.ravel(of_coords.get("downsample", []))
    if tile_px is None or not len(downsample) or downsample.dtype.kind not in "fiu":
        return None
    return tile_px * float(downsample[0])


def _stride(coords: NDArray[Any]) -> float:
    """Smallest distance of two columns of tiles, 0 where there is one column."""
    gaps = np.diff(np.unique(coords[..., 0]))
    return float(gaps.min()) if len(gaps) else 0.0


def _whole(coords: NDArray[Any], *, path: Path) -> NDArray[np.int64]:
    whole = coords.astype(np.int64)
    if not np.array_equal(whole, coords):
        raise LayoutError(
            f"{path}: its positions should be whole px of level 0, and {coords.dtype} fractions are in it"
        )
    return whole


def _numbers(attributes: Any, *names: str) -> list[float | None]:
    """Attributes that are numbers above 0, None for all else."""
    return [_number(attributes.get(name)) for name in names]


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float | np.integer | np.floating) and np.isfinite(value) and value > 0
    return float(value) if is_number else None  # type: ignore[arg-type]


def _text(attributes: Any, name: str) -> str:
    value = attributes.get(name)
    return value if isinstance(value, str) and value != "None" else ""
